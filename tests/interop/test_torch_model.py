"""The PyTorch model that goes along with an export, against the model here and the golden cases."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mosaicbert_jax import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from mosaicbert_jax.interop.names import tensor_names
from tests.golden_cases import FOLDER, NAMES, Case
from tests.interop.model_cases import SMALL, call, random_model
from tests.interop.torch_cases import EMPTY_REPORT, batch, ids, load, torch, transformers

VOCABULARY = 160


@pytest.fixture(scope="module")
def model():
    """With a number of heads that is no power of two."""
    fields = {**SMALL, "vocab_size": VOCABULARY, "hidden_size": 48, "num_attention_heads": 6}
    return random_model(BertForMaskedLM, BertConfig(**fields), scale=0.1)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "random"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def torch_model(folder):
    return load("AutoModelForMaskedLM", folder)[0]


def test_the_decoder_is_tied_and_nothing_is_left_to_report(folder):
    loaded, report = load("AutoModelForMaskedLM", folder)
    assert report == EMPTY_REPORT
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    encoder, report = load("AutoModel", folder)
    assert report == EMPTY_REPORT
    assert encoder.pooler is None
    for name in ("AutoModelForSequenceClassification", "AutoModelForTokenClassification"):
        _, report = load(name, folder)
        new = {"classifier.weight", "classifier.bias"}
        if "Sequence" in name:
            new |= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
        assert report == EMPTY_REPORT | {"missing_keys": new}


@pytest.mark.parametrize("head", ["mlm", "seqcls2"])
@pytest.mark.parametrize("size", ["base", "large"])
def test_names_and_shapes_in_pytorch_are_the_originals(size, head, folder, tmp_path):
    facts = json.loads((FOLDER / f"mosaic_{size}_{head}.json").read_text())
    stored = json.loads((folder / "config.json").read_text()) | facts["config"]
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    for key, value in stored.items():
        if key in facts["config"]:
            setattr(config, key, value)
    auto = "AutoModelForMaskedLM" if head == "mlm" else "AutoModelForSequenceClassification"
    with torch.device("meta"):
        found = getattr(transformers, auto).from_config(config, trust_remote_code=True)
    shapes = {name: list(tensor.shape) for name, tensor in found.state_dict().items()}
    assert shapes == facts["state_dict"]


@pytest.mark.parametrize("side", ["right", "left", "both"])
def test_logits_and_hidden_states_with_padding_on_any_side(model, torch_model, side):
    rng = np.random.default_rng(len(side))
    lengths = [*rng.integers(1, 24, 5), 24]
    tokens_BL, segment_ids_BL, types_BL = batch(
        rng, lengths, row_length=24, side=side, vocab_size=VOCABULARY
    )
    expected_BLV = call(model, tokens_BL, segment_ids_BL, types_BL)
    hidden_BLE = call(model.bert, tokens_BL, segment_ids_BL, types_BL)
    with torch.no_grad():
        outputs = torch_model(
            ids(tokens_BL), ids(segment_ids_BL), ids(types_BL), output_hidden_states=True
        )
    real_BL = segment_ids_BL > 0
    np.testing.assert_allclose(outputs.logits[real_BL], expected_BLV[real_BL], atol=1e-5)
    assert len(outputs.hidden_states) == 3
    np.testing.assert_allclose(outputs.hidden_states[-1][real_BL], hidden_BLE[real_BL], atol=1e-5)
    assert not outputs.hidden_states[-1][~real_BL].any()


def test_no_mask_no_types_and_longer_than_any_sequence_in_training(model, torch_model):
    """The config's 32 positions are no limit."""
    tokens_BL = np.random.default_rng(2).integers(5, VOCABULARY, (2, 200)).astype(np.int32)
    with torch.no_grad():
        logits_BLV = torch_model(ids(tokens_BL)).logits
    np.testing.assert_allclose(logits_BLV, call(model, tokens_BL), atol=1e-5)


def test_packed_here_and_one_by_one_there(model, torch_model):
    rng = np.random.default_rng(3)
    sequences = [rng.integers(5, VOCABULARY, n) for n in (7, 1, 12, 20)]
    packed_1L = np.concatenate([*sequences, [0] * 8])[None].astype(np.int32)
    segments_1L = np.repeat([1, 2, 3, 4, 0], [7, 1, 12, 20, 8])[None].astype(np.int32)
    packed_LV = call(model, packed_1L, segments_1L)[0]
    for number, tokens_L in enumerate(sequences, 1):
        with torch.no_grad():
            alone_LV = torch_model(ids(tokens_L[None])).logits[0]
        np.testing.assert_allclose(packed_LV[segments_1L[0] == number], alone_LV, atol=1e-5)


def test_loss_and_gradients_are_those_here(model, torch_model):
    rng = np.random.default_rng(4)
    tokens_BL, segment_ids_BL, types_BL = batch(
        rng, [24, 11, 17], row_length=24, side="left", vocab_size=VOCABULARY
    )
    positions_BP = np.stack([rng.choice(np.flatnonzero(row), 4, False) for row in segment_ids_BL])
    labels_BP = rng.integers(0, VOCABULARY, (3, 4))
    labels_BL = np.full(tokens_BL.shape, -100)
    np.put_along_axis(labels_BL, positions_BP, labels_BP, axis=1)

    def mean_loss(model):
        total, _ = model.loss(
            tokens_BL, segment_ids_BL, jnp.asarray(positions_BP), jnp.asarray(labels_BP),
            jnp.ones((3, 4)), token_type_ids_BL=types_BL,
        )  # fmt: skip
        return total / 12

    expected, gradients = nnx.jit(nnx.value_and_grad(mean_loss))(model)
    loss = torch_model(
        ids(tokens_BL), ids(segment_ids_BL), ids(types_BL), labels=ids(labels_BL)
    ).loss
    loss.backward()
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-6)
    found = {name: value.grad for name, value in torch_model.named_parameters()}
    for path, value in nnx.to_flat_state(gradients):
        (name,) = tensor_names(path, model.config)
        ours = value[...].T if path[-1] == "kernel" else value[...]
        largest = np.abs(ours).max()
        np.testing.assert_allclose(found.pop(name), ours, atol=1e-5 * largest, err_msg=name)
    assert not found


@pytest.fixture(params=NAMES)
def case(request):
    return Case(request.param)


def test_golden_masked_lm(case, tmp_path):
    here = BertForMaskedLM.from_pretrained(case.write_folder(tmp_path / "original"))
    here.save_pretrained(tmp_path / "exported")
    there, _ = load("AutoModelForMaskedLM", tmp_path / "exported")
    labels_BL = case.tensors["mlm_labels"]
    outputs = there(
        *map(ids, (case.tokens_BL, case.segment_ids_BL, case.token_type_ids_BL)),
        # The original did not count labels of 0.
        labels=ids(np.where(labels_BL > 0, labels_BL, -100)),
        output_hidden_states=True,
    )
    real_BL = case.tensors["attention_mask"] > 0
    expected = {
        index + 1: case.tensors[f"layer_{index}_output"]
        for index in range(there.config.num_hidden_layers)
        if f"layer_{index}_output" in case.tensors
    }
    expected |= {0: case.tensors["embedding_output"]} if "embedding_output" in case.tensors else {}
    expected |= {-1: case.tensors["encoder_output"]}
    for index, hidden_BLE in expected.items():
        np.testing.assert_allclose(
            outputs.hidden_states[index].detach()[real_BL], hidden_BLE[real_BL], atol=1e-5
        )
    np.testing.assert_allclose(
        outputs.logits.detach()[real_BL], case.tensors["mlm_logits_full"][real_BL], atol=1e-5
    )
    np.testing.assert_allclose(outputs.loss.item(), case.tensors["mlm_loss"], rtol=1e-6)
    outputs.loss.backward()
    check_golden_gradients(there, case, "g_mlm.")


def test_golden_classifier(case, tmp_path):
    if "cls_logits" not in case.tensors:
        assert case.name.startswith("d_")  # the one case without a classifier
        return
    labels = case.tensors["cls_logits"].shape[1]
    here = BertForSequenceClassification.from_pretrained(
        case.write_folder(tmp_path / "original", classifier=True), num_labels=labels
    )
    here.save_pretrained(tmp_path / "exported")
    there, report = load("AutoModelForSequenceClassification", tmp_path / "exported")
    assert report == EMPTY_REPORT
    assert there.config.num_labels == labels
    labels_B = torch.from_numpy(case.tensors["cls_labels"])
    outputs = there(
        *map(ids, (case.tokens_BL, case.segment_ids_BL, case.token_type_ids_BL)), labels=labels_B
    )
    np.testing.assert_allclose(outputs.logits.detach(), case.tensors["cls_logits"], atol=1e-5)
    np.testing.assert_allclose(outputs.loss.item(), case.tensors["cls_loss"], rtol=1e-5)
    outputs.loss.backward()
    check_golden_gradients(there, case, "g_cls.")
    assert BertForSequenceClassification.from_pretrained(tmp_path / "exported").num_labels == labels


def check_golden_gradients(model, case, prefix):
    for name, parameter in model.named_parameters():
        expected = case.tensors[prefix + name]
        error = np.abs(parameter.grad.numpy() - expected).max()
        assert error < 1e-5 * np.abs(expected).max(), name


def test_token_classification(model, tmp_path):
    classifier = random_model(BertForTokenClassification, model.config, num_labels=5)
    classifier.save_pretrained(tmp_path / "exported")
    there, report = load("AutoModelForTokenClassification", tmp_path / "exported")
    assert report == EMPTY_REPORT
    tokens_BL = np.random.default_rng(5).integers(5, VOCABULARY, (2, 9)).astype(np.int32)
    with torch.no_grad():
        logits_BLC = there(ids(tokens_BL)).logits
    np.testing.assert_allclose(logits_BLC, call(classifier, tokens_BL), atol=1e-5)
