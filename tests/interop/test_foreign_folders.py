"""Folders of others: what they say of themselves is heeded or refused, and never passed over."""

import json

import numpy as np
import pytest

from mosaicbert_jax import BertConfig, BertForMaskedLM, BertForSequenceClassification, UserError
from mosaicbert_jax.interop.config_file import stored_config
from mosaicbert_jax.storage.opening import open_model
from tests.interop.model_cases import SMALL, random_model

STOCK = BertConfig.bert_base(**SMALL)


def folder_with(path, cls=BertForMaskedLM, config=STOCK, **changes):
    """A folder in Hugging Face's layout, with other values in its config.json."""
    options = {"num_labels": 3} if cls is BertForSequenceClassification else {}
    random_model(cls, config, **options).save_pretrained(path)
    stored = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(stored | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"model_type": "roberta"}, "model_type 'roberta'"),
        ({"model_type": "xlm-roberta"}, "model_type 'xlm-roberta'"),
        ({"model_type": "modernbert"}, "model_type 'modernbert'"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_what_computes_something_else_is_refused(tmp_path, changes, fact):
    path = folder_with(tmp_path / "model", **changes)
    with pytest.raises(UserError, match=r"config\.json") as caught:
        BertForMaskedLM.from_pretrained(path)
    assert fact in str(caught.value)


def test_the_heads_epsilon_of_stock_bert_is_the_encoders(tmp_path):
    path = folder_with(tmp_path / "model", layer_norm_eps=1e-3)
    found = BertForMaskedLM.from_pretrained(path)
    assert found.config.layer_norm_eps == found.config.head_norm_eps == 1e-3
    other = BertForMaskedLM.from_pretrained(path, head_norm_eps=1e-12)
    tokens = np.arange(8)[None]
    assert np.abs(np.asarray(found(tokens)) - np.asarray(other(tokens))).max() > 1e-4
    found.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["layer_norm_eps"] == 1e-3
    with pytest.raises(UserError, match="head_norm_eps"):
        other.save_pretrained(tmp_path / "other")


def test_the_heads_epsilon_of_mosaicbert_is_its_own(tmp_path):
    config = BertConfig(**SMALL, layer_norm_eps=1e-3, head_norm_eps=1e-5)
    path = folder_with(tmp_path / "model", config=config)
    assert BertForMaskedLM.from_pretrained(path).config.head_norm_eps == 1e-5


@pytest.mark.parametrize(
    ("labels", "problem_type", "kind"),
    [
        (3, None, "classification"),
        (3, "single_label_classification", "classification"),
        (3, "multi_label_classification", "multi_label_classification"),
        (1, None, "regression"),
        (1, "regression", "regression"),
        (1, "multi_label_classification", "multi_label_classification"),
    ],
)
def test_a_classifier_is_what_its_problem_type_says(tmp_path, labels, problem_type, kind):
    names = {str(i): f"name {i}" for i in range(labels)}
    random_model(BertForSequenceClassification, STOCK, num_labels=labels).save_pretrained(
        tmp_path / "model"
    )
    path = tmp_path / "model" / "config.json"
    stored = json.loads(path.read_text()) | {"id2label": names, "problem_type": problem_type}
    path.write_text(json.dumps(stored))
    target = open_model(tmp_path / "model").target
    assert target.kind == kind
    assert target.labels == (() if kind == "regression" else tuple(names.values()))


@pytest.mark.parametrize("problem_type", ["regression", "ranking"])
def test_several_numbers_and_unknown_types_are_refused(tmp_path, problem_type):
    path = folder_with(tmp_path / "model", BertForSequenceClassification, problem_type=problem_type)
    with pytest.raises(UserError, match=rf"config\.json: problem_type '{problem_type}'"):
        open_model(path)


def test_what_is_not_stored(tmp_path):
    """ALiBi has no limit, for which other libraries would take the size of a table."""

    def fields(config):
        return stored_config(config, "BertModel", labels=(), pad_token_id=0, problem_type=None)

    assert "max_position_embeddings" not in fields(BertConfig())
    assert fields(BertConfig())["head_norm_eps"] == 1e-12
    assert fields(STOCK)["max_position_embeddings"] == 32
    assert "head_norm_eps" not in fields(STOCK)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_weights_are_refused(tmp_path, dtype):
    import ml_dtypes
    from safetensors.numpy import load_file, save_file

    path = folder_with(tmp_path / "model")
    tensors = load_file(path / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    tensors[name] = tensors[name].astype(getattr(ml_dtypes, dtype))
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(UserError, match="float8"):
        BertForMaskedLM.from_pretrained(path)


@pytest.mark.parametrize("cls", [BertForMaskedLM, BertForSequenceClassification])
@pytest.mark.parametrize("name", [*SMALL, "type_vocab_size"])
@pytest.mark.parametrize("base", [BertConfig.mosaicbert_base, BertConfig.bert_base])
def test_every_size_may_be_one(tmp_path, cls, name, base):
    sizes = {**SMALL, name: 1}
    if name == "hidden_size":
        sizes["num_attention_heads"] = 1
    model = random_model(cls, base(**sizes))
    tokens = np.zeros((2, 1 if name == "max_position_embeddings" else 8), np.int32)
    logits = np.asarray(model(tokens, np.ones_like(tokens), np.zeros_like(tokens)))
    assert np.isfinite(logits).all()
    model.save_pretrained(tmp_path / "model")
    again = cls.from_pretrained(tmp_path / "model")
    found = again(tokens, np.ones_like(tokens), np.zeros_like(tokens))
    np.testing.assert_array_equal(np.asarray(found), logits)
