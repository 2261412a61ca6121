"""Shards, and files that are damaged or lie about themselves."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mosaicbert_jax import BertForMaskedLM, UserError
from mosaicbert_jax.interop.weight_files import read_weights
from mosaicbert_jax.interop.writing import stored_tensors
from tests.golden_cases import Case


@pytest.fixture
def folder(tmp_path):
    return Case("a_h64_l2_a4_default").write_folder(tmp_path / "model")


@pytest.fixture
def sharded(folder):
    """The same weights in three files."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {}
    for number in range(3):
        part = dict(sorted(tensors.items())[number::3])
        file = f"model-{number + 1:05}-of-00003.safetensors"
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    write_index(folder, index)
    return folder


def write_index(folder, index):
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def read_index(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def test_shards_are_one_model(sharded):
    expected = Case("a_h64_l2_a4_default").tensors
    found = stored_tensors(BertForMaskedLM.from_pretrained(sharded))
    for name, tensor in found.items():
        if name != "cls.predictions.decoder.weight":
            np.testing.assert_array_equal(tensor, expected["w." + name])


def test_shards_other_than_their_index_says(sharded):
    index = read_index(sharded)
    name = "bert.embeddings.LayerNorm.bias"
    write_index(sharded, {n: file for n, file in index.items() if n != name})
    with pytest.raises(UserError, match=f"not in both: {name}"):
        read_weights(sharded)
    write_index(sharded, index | {"more": index[name]})
    with pytest.raises(UserError, match="not in both: more"):
        read_weights(sharded)
    for elsewhere in ("../model/model-00001-of-00003.safetensors", "/etc/passwd", ".."):
        write_index(sharded, index | {name: elsewhere})
        with pytest.raises(UserError, match=r"is not the name of a file beside it|cannot be read"):
            read_weights(sharded)
    for index in ({}, [], None):
        write_index(sharded, index)
        with pytest.raises(UserError, match="no weight_map"):
            read_weights(sharded)


def test_a_shard_that_is_missing(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00003"):
        read_weights(sharded)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_safetensors_cut_short(folder, share):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        BertForMaskedLM.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_floating_point(folder, dtype):
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    found = stored_tensors(BertForMaskedLM.from_pretrained(folder))
    for name, tensor in tensors.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], tensor.astype(np.float32))


def test_integers_are_no_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.0.mlp.wo.weight"] = np.zeros((64, 256), np.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"mlp\.wo\.weight is int8, not one of"):
        BertForMaskedLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"hidden_size": 96},
            r"embeddings\.weight is \(128, 64\), the config says \(128, 96\)",
        ),
        ({"intermediate_size": 128}, r"gated_layers\.weight is \(512, 64\), the config says \(256"),
        ({"num_hidden_layers": 1}, r"unknown bert\.encoder\.layer\.1\."),
        ({"num_hidden_layers": 3}, r"missing bert\.encoder\.layer\.2\."),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but the weights beside"),
        ({"hidden_size": 4 * 10**15}, "hidden_size is 4000000000000000, but"),
        ({"vocab_size": 129}, r"word_embeddings\.weight is \(128, 64\), the config says \(129"),
        ({"num_attention_heads": 5}, r"config\.json: model\.hidden_size 64 must be a multiple"),
        ({"hidden_size": -64}, r"config\.json: model\.hidden_size must be a positive integer"),
        ({"hidden_size": "64"}, r"config\.json: model\.hidden_size must be a positive integer"),
        ({"layer_norm_eps": None}, r"config\.json: model\.layer_norm_eps must be a number"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported, only gelu"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
        ({"is_decoder": True}, "is_decoder True is not supported"),
        ({"feed_forward": "gelu"}, r"missing bert\.encoder\.layer\.0\.attention\.self\.query"),
        ({"id2label": "yes"}, "'yes' is neither an id2label nor a num_labels"),
        ({"num_labels": 0}, "0 is neither an id2label"),
    ],
)
def test_a_config_that_is_wrong(folder, change, reason):
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | change))
    with pytest.raises(UserError, match=reason):
        BertForMaskedLM.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\xff", "", "[" * 100_000])
def test_a_config_that_is_no_json_object(folder, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.json: (cannot be read|must hold)"):
        BertForMaskedLM.from_pretrained(folder)


def test_what_a_renewed_part_is_called(folder):
    with pytest.raises(UserError, match=r"the parts of a BertForMaskedLM are \['bert', 'head'\]"):
        BertForMaskedLM.from_pretrained(folder, renew=("pooler",))


def test_only_what_other_heads_are_known_to_have_is_left_out(folder):
    tensors = load_file(folder / "model.safetensors")
    known = {
        "classifier.weight": np.zeros((2, 64), np.float32),
        "bert.pooler.dense.bias": np.zeros(64, np.float32),
        "cls.seq_relationship.bias": np.zeros(2, np.float32),
        "bert.embeddings.position_ids": np.arange(64)[None],
    }
    save_file(tensors | known, folder / "model.safetensors")
    BertForMaskedLM.from_pretrained(folder)
    for name in ("cls.predictions.adapter.weight", "classifier.dense.weight", "bert.pooler.weight"):
        save_file(tensors | {name: known["classifier.weight"]}, folder / "model.safetensors")
        with pytest.raises(UserError, match=f"unknown {name}"):
            BertForMaskedLM.from_pretrained(folder)
