"""save_pretrained without PyTorch: names, bits, refusals, and output that is whole or not there."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from mosaicbert_jax import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    UserError,
)
from mosaicbert_jax.interop import writing
from mosaicbert_jax.interop.config_file import stored_config
from mosaicbert_jax.text.tokenizer_training import train_tokenizer
from tests.golden_cases import FOLDER
from tests.interop.model_cases import SMALL, assert_same_parameters, random_model

CLASSES = (BertModel, BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification)


def build(cls, architecture="mosaicbert_base", **options):
    return random_model(cls, getattr(BertConfig, architecture)(**SMALL), **options)


@pytest.mark.parametrize("architecture", ["mosaicbert_base", "bert_base"])
@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_written_is_read_bit_for_bit(cls, architecture, tmp_path):
    options = {"num_labels": 5} if "Classification" in cls.__name__ else {}
    model = build(cls, architecture, **options)
    model.save_pretrained(tmp_path / "once")
    again = cls.from_pretrained(tmp_path / "once")
    config = model.config
    if architecture == "mosaicbert_base":  # ALiBi has no limit, and none is stored
        config = dataclasses.replace(config, max_position_embeddings=512)
    assert again.config == config
    assert_same_parameters(model, again)
    if options:
        assert again.num_labels == 5
    again.save_pretrained(tmp_path / "twice")
    for file in (tmp_path / "once").iterdir():
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize(
    ("head", "cls"), [("mlm", BertForMaskedLM), ("seqcls2", BertForSequenceClassification)]
)
def test_names_and_shapes_are_the_originals(size, head, cls, monkeypatch):
    facts = json.loads((FOLDER / f"mosaic_{size}_{head}.json").read_text())
    config = getattr(BertConfig, f"mosaicbert_{size}")()
    model = nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0)))
    # A single number, seen as an array of any shape: 1.7 GB less.
    graph, state = nnx.split(model)
    state = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), state)
    monkeypatch.setattr(np, "ascontiguousarray", lambda x: x)
    found = writing.stored_tensors(nnx.merge(graph, state))
    assert {name: list(x.shape) for name, x in found.items()} == facts["state_dict"]


def test_the_tied_decoder_is_written_out():
    found = writing.stored_tensors(build(BertForMaskedLM))
    np.testing.assert_array_equal(
        found["cls.predictions.decoder.weight"], found["bert.embeddings.word_embeddings.weight"]
    )


def test_config_of_mosaicbert():
    config = BertConfig(layer_norm_eps=0, layer_norm_dtype="float32", dtype="bfloat16")
    stored = stored_config(config, "BertForMaskedLM", labels=(), pad_token_id=3, problem_type=None)
    assert stored["model_type"] == "mosaicbert"
    assert stored["tie_word_embeddings"] is True
    assert stored["architectures"] == ["MosaicBertForMaskedLM"]
    assert stored["auto_map"]["AutoModel"] == "modeling_mosaicbert.MosaicBertModel"
    assert (stored["position_embedding"], stored["feed_forward"]) == ("alibi", "geglu")
    assert stored["layer_norm_dtype"] == "float32"
    assert stored["dtype"] == "float32"  # of the weights
    assert type(stored["layer_norm_eps"]) is float
    assert stored["pad_token_id"] == 3
    assert "id2label" not in stored


def test_the_baseline_needs_no_code_of_ours(tmp_path):
    build(BertForMaskedLM, "bert_base").save_pretrained(tmp_path / "bert")
    names = {path.name for path in (tmp_path / "bert").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    stored = json.loads((tmp_path / "bert" / "config.json").read_text())
    assert stored["model_type"] == "bert"
    assert stored["architectures"] == ["BertForMaskedLM"]
    assert "auto_map" not in stored
    names = load_file(tmp_path / "bert" / "model.safetensors").keys()
    assert "cls.predictions.bias" in names
    assert not {name for name in names if "decoder" in name}


def test_a_mixture_of_the_two_cannot_leave(tmp_path):
    config = BertConfig(**SMALL, feed_forward="gelu")
    model = random_model(BertForMaskedLM, config)
    with pytest.raises(UserError, match=r"model.position_embedding is 'alibi'.* BERT .*'learned'"):
        model.save_pretrained(tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_who_may_read_one_file_may_read_all(tmp_path):
    build(BertModel).save_pretrained(tmp_path / "model")
    assert len({path.stat().st_mode for path in (tmp_path / "model").iterdir()}) == 1


def test_nothing_is_overwritten(tmp_path):
    model = build(BertModel)
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "link", "empty"):
        with pytest.raises(UserError, match="already exists"):
            model.save_pretrained(tmp_path / name)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("error", [OSError("disk full"), MemoryError()])
def test_output_is_whole_or_not_there(tmp_path, monkeypatch, error):
    def fail(tensors, path, **_):
        assert not (tmp_path / "deep" / "out").exists()  # nor if the process were killed here
        pathlib.Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(writing, "save_file", fail)
    with pytest.raises(type(error)):
        build(BertModel).save_pretrained(tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_tokenizers_that_do_not_fit(tmp_path):
    model = build(BertModel)
    train_tokenizer(["abcdefghijklmnopqrstuvwxyz0123456789"], 128).save(str(tmp_path / "big.json"))
    with pytest.raises(
        UserError,
        match=r"entries and the model 64; use the tokenizer that the model was trained with",
    ):
        model.save_pretrained(tmp_path / "out", tokenizer=tmp_path / "big.json")
    with pytest.raises(UserError, match="no such file"):
        model.save_pretrained(tmp_path / "out", tokenizer=tmp_path / "vocab.txt")
    assert not (tmp_path / "out").exists()


def test_a_card_without_a_run_claims_nothing(tmp_path):
    build(BertForMaskedLM).save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: fill-mask\n")
    assert "Nothing about it" in card
    assert "AutoTokenizer" not in card
    assert "trust_remote_code=True" in card
