"""What people do with an exported model in PyTorch: train it on, save it, share it, ask it."""

import numpy as np
import pytest

from mosaicbert_jax import BertConfig, BertForMaskedLM, BertForSequenceClassification
from mosaicbert_jax.interop.writing import stored_tensors
from mosaicbert_jax.prediction import FillMask
from mosaicbert_jax.text.tokenizer import load_tokenizer
from mosaicbert_jax.text.tokenizer_training import train_tokenizer
from tests.interop.model_cases import SMALL, assert_same_parameters, call, random_model
from tests.interop.torch_cases import EMPTY_REPORT, load, torch, transformers

TEXTS = ["The law of the nation is peace.", "The people of the state of the union."]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 64).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def model():
    return random_model(BertForMaskedLM, BertConfig(**SMALL))


@pytest.fixture(scope="module")
def folder(model, tokenizer_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "use"
    model.save_pretrained(folder, tokenizer=tokenizer_folder)
    return folder


@pytest.fixture
def torch_model(folder):
    return load("AutoModelForMaskedLM", folder)[0]


@pytest.fixture
def batch(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    found = dict(tokenizer(["The law.", *TEXTS], padding=True, return_tensors="pt"))
    assert not found["attention_mask"].all()
    return found


def saved_bytes(step) -> int:
    """How much the forward pass keeps for the backward one."""
    total = 0

    def pack(tensor):
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return total


def gradients(model, batch):
    model.zero_grad()
    torch.manual_seed(0)  # dropout
    model(**batch, labels=batch["input_ids"]).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_gradient_checkpointing_recomputes_and_changes_nothing(torch_model, batch):
    torch_model.train()
    calls = []
    for layer in torch_model.bert.encoder.layer:
        layer.attention.register_forward_hook(lambda *_: calls.append(1))
    plain = gradients(torch_model, batch)
    assert len(calls) == 2
    kept = saved_bytes(lambda: torch_model(**batch))
    torch_model.activation_checkpointing_enable()
    calls.clear()
    checkpointed = gradients(torch_model, batch)
    assert len(calls) == 4
    assert saved_bytes(lambda: torch_model(**batch)) < 0.5 * kept
    assert all(map(torch.equal, plain, checkpointed))


def test_only_real_tokens_are_computed(torch_model, batch):
    seen = []
    for layer in torch_model.bert.encoder.layer:
        layer.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    torch_model(**batch)
    assert seen == [int(batch["attention_mask"].sum())] * 2


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(folder, torch_model, batch, autocast):
    low, _ = load("AutoModelForMaskedLM", folder, dtype="float32" if autocast else "bfloat16")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits_BLV = low(**batch).logits
    with torch.no_grad():
        expected_BLV = torch_model(**batch).logits
    assert logits_BLV.dtype == torch.bfloat16
    real_BL = batch["attention_mask"] > 0
    error_NV = (logits_BLV.float() - expected_BLV)[real_BL].abs()
    assert 0 < error_NV.mean() < 0.01 * expected_BLV.abs().max()
    low.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = low(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in low.parameters())


def test_trained_on_in_pytorch_and_back_here(torch_model, batch, tmp_path):
    torch_model.train()
    optimizer = torch.optim.AdamW(torch_model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = torch_model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    torch_model.eval().save_pretrained(tmp_path / "trained")
    again, report = load("AutoModelForMaskedLM", tmp_path / "trained")
    assert report == EMPTY_REPORT
    here = stored_tensors(BertForMaskedLM.from_pretrained(tmp_path / "trained"))
    for name, tensor in torch_model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
        np.testing.assert_array_equal(here.pop(name), tensor, err_msg=name)
    assert not here
    _, report = load("AutoModel", tmp_path / "trained")  # of which nobody spoke when it was saved
    assert report == EMPTY_REPORT


def test_the_same_bits_from_here_to_pytorch(model, torch_model):
    stored = stored_tensors(model)
    found = torch_model.state_dict()
    assert stored.keys() == found.keys()
    for name, tensor in stored.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_the_embeddings_can_be_resized_and_stay_tied(torch_model, batch):
    torch_model.resize_token_embeddings(72)
    decoder = torch_model.get_output_embeddings()
    assert decoder.weight is torch_model.get_input_embeddings().weight
    assert torch_model(**batch).logits.shape[-1] == 72 == len(decoder.bias)


def test_fill_mask_guesses_what_ours_guesses(model, folder, tokenizer_folder):
    text = "The [MASK] of the union."
    pipeline = transformers.pipeline("fill-mask", model=str(folder), trust_remote_code=True)
    score = {guess["token_str"]: guess["score"] for guess in pipeline(text, top_k=64)}
    (ours,) = FillMask(model, load_tokenizer(tokenizer_folder))(text, top=10)
    # Ours leaves out special tokens and padding of the vocabulary, so it has more to share out.
    shares = [guess.probability / score[guess.token] for guess in ours]
    np.testing.assert_allclose(shares, shares[0], rtol=1e-4)
    assert shares[0] > 1


def test_the_classifiers_first_token_is_found_behind_padding(model, tmp_path):
    classifier = random_model(BertForSequenceClassification, model.config, num_labels=3)
    classifier.save_pretrained(tmp_path / "exported")
    there, _ = load("AutoModelForSequenceClassification", tmp_path / "exported")
    tokens_1L = torch.arange(5, 15)[None]
    padded_1L = torch.cat([torch.zeros(1, 6, dtype=torch.long), tokens_1L], dim=1)
    alone_1C = there(tokens_1L).logits
    torch.testing.assert_close(
        there(padded_1L, attention_mask=(padded_1L > 0).long()).logits, alone_1C
    )
    expected_1C = call(classifier, tokens_1L.numpy())
    np.testing.assert_allclose(alone_1C.detach(), expected_1C, atol=1e-5)


def test_losses_of_a_classifier(torch_model, folder):
    torch.manual_seed(0)
    classifier, _ = load("AutoModelForSequenceClassification", folder, num_labels=3)
    tokens_BL = torch.arange(5, 25).reshape(2, 10)
    logits_BC = classifier(tokens_BL).logits
    several_BC = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    expected = torch.nn.BCEWithLogitsLoss()(logits_BC, several_BC)
    torch.testing.assert_close(classifier(tokens_BL, labels=several_BC).loss, expected)
    regression, _ = load("AutoModelForSequenceClassification", folder, num_labels=1)
    values_B = torch.tensor([0.5, -1.0])
    expected = ((regression(tokens_BL).logits[:, 0] - values_B) ** 2).mean()
    torch.testing.assert_close(regression(tokens_BL, labels=values_B).loss, expected)


@pytest.mark.parametrize("traced", [False, True])
def test_nothing_to_learn_and_nothing_but_padding(torch_model, traced, monkeypatch):
    """No label gives 0 and not NaN; labels may lie on padding; a row may be empty."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: traced)  # padding stays in then
    tokens_BL = torch.arange(5, 25).reshape(2, 10)
    mask_BL = torch.tensor([[1] * 7 + [0] * 3, [0] * 10])
    none_BL = torch.full((2, 10), -100)
    assert torch_model(tokens_BL, mask_BL, labels=none_BL).loss == 0
    outputs = torch_model(tokens_BL, mask_BL, labels=tokens_BL)
    outputs.loss.backward()
    assert outputs.logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in torch_model.parameters())


def test_other_forms_of_input_and_output(torch_model, batch):
    expected_BLV = torch_model(**batch).logits
    words_BLE = torch_model.get_input_embeddings()(batch["input_ids"])
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    torch.testing.assert_close(torch_model(inputs_embeds=words_BLE, **rest).logits, expected_BLV)
    (logits_BLV,) = torch_model(**batch, return_dict=False)
    torch.testing.assert_close(logits_BLV, expected_BLV)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        torch_model(attention_mask=batch["attention_mask"])
    with pytest.raises(ValueError, match="never holds the weights"):
        torch_model(**batch, output_attentions=True)
    with pytest.raises(ValueError, match=r"attention_mask is \(3, 2\)"):
        torch_model(batch["input_ids"], batch["attention_mask"][:, :2])


def test_shards_of_transformers_come_in(model, torch_model, tmp_path):
    torch_model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert_same_parameters(BertForMaskedLM.from_pretrained(tmp_path / "sharded"), model)


def test_torch_save_of_the_state_dict_comes_in(model, folder, torch_model, tmp_path):
    torch.save(torch_model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert_same_parameters(BertForMaskedLM.from_pretrained(tmp_path), model)
