"""ModernBERT both ways: transformers' own comes in, computes the same here, and goes out."""

import json

import jax
import jax.numpy as jnp
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
)
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.interop.names import LAYOUTS
from tests.interop.model_cases import assert_same_parameters, random_model
from tests.interop.torch_cases import EMPTY_REPORT, batch, ids, torch, transformers

# The last two lengths are beyond the window of 8 tokens on each side, and beyond several of them.
LENGTHS, ROW_LENGTH, WORDS = (5, 1, 40, 150), 150, 96
SIZES = {
    "small": {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 48, "local_attention": 16,
    },
    "narrow window, wide heads": {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1,
        "intermediate_size": 24, "local_attention": 2, "global_attn_every_n_layers": 2,
    },
    "all global, with biases": {
        "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "global_attn_every_n_layers": 1, "norm_bias": True,
        "classifier_bias": True, "classifier_pooling": "mean",
    },
}  # fmt: skip
CLASSES = {
    "ModernBertModel": BertModel,
    "ModernBertForMaskedLM": BertForMaskedLM,
    "ModernBertForSequenceClassification": BertForSequenceClassification,
    "ModernBertForTokenClassification": BertForTokenClassification,
}
IDS = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}


def stock(name, folder, size="small", **options):
    """transformers' model with random weights, saved."""
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(
        vocab_size=WORDS, **SIZES[size], **IDS, bos_token_id=1, eos_token_id=2,
        initializer_range=0.1, attn_implementation="eager", **{"num_labels": 3} | options,
    )  # fmt: skip
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("name", "size", "side"),
    [
        *[("ModernBertForMaskedLM", size, side) for size in SIZES for side in ("right", "left")],
        *[(name, "small", "right") for name in CLASSES if "MaskedLM" not in name],
        ("ModernBertForSequenceClassification", "all global, with biases", "right"),
    ],
)
def test_outputs_and_gradients_are_transformers(name, size, side, tmp_path):
    there = stock(name, tmp_path / "stock", size)
    here = CLASSES[name].from_pretrained(tmp_path / "stock")
    tokens_BL, mask_BL, _ = batch(
        np.random.default_rng(0), LENGTHS, row_length=ROW_LENGTH, side=side, vocab_size=WORDS
    )
    output = there(ids(tokens_BL), attention_mask=ids(mask_BL), return_dict=False)[0]
    real = slice(None) if "Sequence" in name else mask_BL > 0
    pull = np.random.default_rng(1).normal(size=output.shape).astype(np.float32)
    if "Sequence" not in name:
        pull *= (mask_BL > 0)[:, :, None]
    (output * torch.from_numpy(pull)).sum().backward()

    @nnx.jit
    def run(model):
        def total(model):
            output = model(jnp.asarray(tokens_BL), jnp.asarray(mask_BL))
            return (jnp.where(pull == 0, 0.0, output * pull)).sum(), output

        return nnx.grad(total, has_aux=True)(model)

    gradients, found = run(here)
    expected = output.detach().numpy()
    largest = np.abs(expected[real]).max()
    np.testing.assert_allclose(np.asarray(found)[real], expected[real], atol=1e-5 * largest)
    theirs = {name: p.grad for name, p in there.named_parameters()}
    layout = LAYOUTS["modernbert"]
    for path, gradient in nnx.to_flat_state(gradients):
        (tensor,) = layout.names(path)
        if name == "ModernBertModel":
            tensor = tensor.removeprefix("model.")
        true = theirs[tensor].numpy()
        ours = np.asarray(gradient[...])
        ours = ours.T if path[-1] == "kernel" else ours
        np.testing.assert_allclose(ours, true, atol=1e-5 * np.abs(true).max(), err_msg=tensor)


@pytest.mark.parametrize("name", CLASSES)
def test_it_goes_out_as_it_came(name, tmp_path):
    stock(name, tmp_path / "stock", "small", id2label={0: "a", 1: "b", 2: "c"})
    here = CLASSES[name].from_pretrained(tmp_path / "stock")
    here.save_pretrained(tmp_path / "back")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("stock", "back"))
    after.pop("decoder.weight", None)  # tied; transformers leaves it out
    before.pop("decoder.weight", None)
    assert before.keys() == after.keys()
    for tensor, value in before.items():
        np.testing.assert_array_equal(value, after[tensor], err_msg=tensor)
    assert_same_parameters(here, CLASSES[name].from_pretrained(tmp_path / "back"))
    stored = json.loads((tmp_path / "back" / "config.json").read_text())
    assert stored["model_type"] == "modernbert"
    assert stored["architectures"] == [name]
    assert "auto_map" not in stored
    assert not list((tmp_path / "back").glob("*.py"))


def test_autoclasses_load_it_without_our_code(tmp_path):
    model = random_model(
        BertForMaskedLM,
        BertConfig.modernbert_base(
            vocab_size=WORDS, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
            intermediate_size=48, sliding_window=8, max_position_embeddings=64,
        ),
    )  # fmt: skip
    model.save_pretrained(tmp_path / "ours")
    there, report = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert {k: v for k, v in report.items() if k in EMPTY_REPORT} == EMPTY_REPORT
    assert type(there) is transformers.ModernBertForMaskedLM
    config = there.config
    assert config.layer_types == ["full_attention", *["sliding_attention"] * 2, "full_attention"]
    assert config.rope_parameters["full_attention"]["rope_theta"] == 160_000.0
    tokens = ids(np.arange(60)[None] % WORDS)
    with torch.no_grad():
        expected = there.eval()(tokens).logits.numpy()
    found = np.asarray(jax.jit(lambda t: model(t))(jnp.asarray(tokens.numpy(), jnp.int32)))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


PUBLISHED = {
    # What decides numbers in their config.json files.
    "ModernBERT-base": {
        "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_attention": 128,
        "local_rope_theta": 10000.0, "layer_norm_eps": 1e-05, "norm_eps": 1e-05,
        "position_embedding_type": "absolute", "hidden_size": 768, "intermediate_size": 1152,
        "num_attention_heads": 12, "num_hidden_layers": 22, "vocab_size": 50368,
    },
    "ettin-encoder-17m": {
        "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_attention": 128,
        "local_rope_theta": 160000.0, "norm_eps": 1e-05, "hidden_size": 256,
        "intermediate_size": 384, "num_attention_heads": 4, "num_hidden_layers": 7,
        "vocab_size": 50368, "causal_mask": False,
    },
    "mmBERT-base": {
        "global_attn_every_n_layers": 3, "global_rope_theta": 160000, "local_attention": 128,
        "local_rope_theta": 160000, "hidden_size": 768, "intermediate_size": 1152,
        "num_attention_heads": 12, "num_hidden_layers": 22, "vocab_size": 256000,
        "position_embedding_type": "sans_pos",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_of_the_family_are_read(name):
    from mosaicbert_jax.interop.modernbert_config import read_fields

    stored = PUBLISHED[name]
    config = BertConfig.from_fields(read_fields(stored))
    assert config.global_attention_every == 3
    assert config.sliding_window == 64
    assert config.local_rope_theta == stored["local_rope_theta"]
    assert config.hidden_size == stored["hidden_size"]
    sizes = (
        "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
        "vocab_size", "local_rope_theta",
    )  # fmt: skip
    base = BertConfig.modernbert_base(
        **{key: stored[key] for key in sizes},
        embedding_dropout_prob=0.0,
        feed_forward_dropout_prob=0.0,
        classifier_dropout=0.0,
    )
    assert config == base


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_bias": True}, "mlp_bias True is not supported"),
        ({"hidden_activation": "relu"}, "hidden_activation 'relu' is not supported"),
        ({"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, "layer_types"),
        ({"layer_types": 3}, "layer_types"),
        ({"local_attention": "wide"}, "local_attention 'wide'"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_type 'yarn' is not supported",
        ),
        ({"model_type": "bert"}, "model_type 'bert' does not go with the names"),
        ({"norm_eps": "small"}, "model.layer_norm_eps must be a number"),
    ],
)
def test_another_architecture_is_refused(changes, message, tmp_path):
    stock("ModernBertForMaskedLM", tmp_path / "stock")
    path = tmp_path / "stock" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        BertForMaskedLM.from_pretrained(tmp_path / "stock")


@pytest.mark.parametrize(
    "changes",
    [
        {"normalization": "rmsnorm"},
        {"feed_forward": "swiglu"},
        {"position_embedding": "alibi"},
        {"use_bias": True},
        {"head_norm_eps": 1e-12},
        {"hidden_dropout_prob": 0.1},
    ],
)
def test_what_no_torch_code_computes_is_not_saved(changes, tmp_path):
    config = BertConfig.modernbert_base(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, **changes,
    )  # fmt: skip
    with pytest.raises(UserError, match=rf"{next(iter(changes))}.*"):
        random_model(BertForMaskedLM, config).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("preset", "parameters"), [("modernbert_base", 149_655_232), ("modernbert_large", 395_881_664)]
)
def test_sizes_are_the_published_ones(preset, parameters):
    config = getattr(BertConfig, preset)()
    model = nnx.eval_shape(lambda: BertForMaskedLM(config, rngs=nnx.Rngs(0)))
    found = sum(x.size for _, x in nnx.to_flat_state(nnx.state(model, nnx.Param)))
    assert found == parameters
