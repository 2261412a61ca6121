"""Reading folders in Hugging Face's layout: names, and refusals."""

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from mosaicbert_jax import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    UserError,
)
from mosaicbert_jax.interop.names import tensor_names
from tests.golden_cases import Case


def names_and_shapes(config):
    model = nnx.eval_shape(lambda: BertForMaskedLM(config, rngs=nnx.Rngs(0)))
    found = {}
    for path, value in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        names = tensor_names(path, config)
        shape = value.shape[::-1] if path[-1] == "kernel" else value.shape
        for name in names:
            found[name] = [shape[0] // len(names), *shape[1:]]
    return found


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mosaicbert_base", 137_400_384),
        ("mosaicbert_large", 435_221_312),
        ("bert_base", 109_514_298),
        ("bert_large", 335_174_458),
    ],
)
def test_parameter_counts(name, parameters):
    config = getattr(BertConfig, name)()
    model = nnx.eval_shape(lambda: BertForMaskedLM(config, rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters


def test_the_baselines_names_are_berts():
    names = names_and_shapes(BertConfig.bert_base(num_hidden_layers=1))
    layer = "bert.encoder.layer.0."
    assert names[layer + "attention.self.query.weight"] == [768, 768]
    assert names[layer + "attention.self.value.bias"] == [768]
    assert names[layer + "intermediate.dense.bias"] == [3072]
    assert names[layer + "output.LayerNorm.weight"] == [768]
    assert names["bert.embeddings.position_embeddings.weight"] == [512, 768]


@pytest.fixture
def folder(tmp_path):
    return Case("a_h64_l2_a4_default").write_folder(tmp_path / "model")


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_unknown_and_misshapen_tensors_are_listed(folder):
    def change(tensors):
        del tensors["bert.encoder.layer.1.mlp.wo.bias"]
        tensors["bert.encoder.layer.7.mlp.wo.bias"] = np.zeros(64, np.float32)
        tensors["bert.embeddings.LayerNorm.bias"] = np.zeros(65, np.float32)

    rewrite(folder, change)
    with pytest.raises(UserError) as caught:
        BertForMaskedLM.from_pretrained(folder)
    message = str(caught.value)
    assert "missing bert.encoder.layer.1.mlp.wo.bias" in message
    assert "unknown bert.encoder.layer.7.mlp.wo.bias" in message
    assert "bert.embeddings.LayerNorm.bias is (65,), the config says (64,)" in message


def test_a_classifier_starts_anew_only_when_asked_for(folder):
    with pytest.raises(UserError, match=r"missing bert\.pooler\.dense\.weight"):
        BertForSequenceClassification.from_pretrained(folder, num_labels=3)
    model = BertForSequenceClassification.from_pretrained(
        folder, num_labels=3, renew=("pooler", "classifier")
    )
    assert model.classifier.kernel.shape == (64, 3)
    assert 0.01 < float(model.pooler.kernel[...].std()) < 0.03
    encoder = BertModel.from_pretrained(folder)
    np.testing.assert_array_equal(
        model.bert.layers[1].feed_forward.output.kernel[...],
        encoder.layers[1].feed_forward.output.kernel[...],
    )


def test_the_tied_decoder_must_be_the_embeddings(folder):
    words = "bert.embeddings.word_embeddings.weight"
    rewrite(folder, lambda t: t.update({"cls.predictions.decoder.weight": t[words]}))
    BertForMaskedLM.from_pretrained(folder)
    rewrite(folder, lambda t: t.update({"cls.predictions.decoder.weight": t[words] + 1}))
    with pytest.raises(UserError, match="tied"):
        BertForMaskedLM.from_pretrained(folder)


def test_names_of_old_and_of_stock_checkpoints(folder):
    """gamma and beta, and the head's bias under the only name that stock BERT stores."""
    expected = BertForMaskedLM.from_pretrained(folder)

    def change(tensors):
        tensors["cls.predictions.bias"] = tensors.pop("cls.predictions.decoder.bias")
        for name in [n for n in tensors if "LayerNorm." in n]:
            new = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            tensors[new.replace("LayerNorm.bias", "LayerNorm.beta")] = tensors.pop(name)

    rewrite(folder, change)
    found = BertForMaskedLM.from_pretrained(folder)
    for a, b in zip(
        jax.tree.leaves(nnx.state(found)), jax.tree.leaves(nnx.state(expected)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_damaged_files(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        BertForMaskedLM.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"model\.safetensors|config\.json"):
        BertForMaskedLM.from_pretrained(folder)
    with pytest.raises(UserError, match="cannot be read"):
        BertForMaskedLM.from_pretrained(folder / "nowhere")
