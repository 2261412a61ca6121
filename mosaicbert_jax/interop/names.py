"""Names of our parameters in published checkpoints."""

import re

from mosaicbert_jax.modeling.config import BertConfig

WORDS = "bert.embeddings.word_embeddings.weight"
# The decoder is the word embeddings, which MosaicBERT's checkpoints hold under both names.
TIED_DECODER = "cls.predictions.decoder.weight"
# Stock BERT stores the decoder's bias under a name of its own.
DECODER_BIAS, BERT_DECODER_BIAS = "cls.predictions.decoder.bias", "cls.predictions.bias"
# What a class without that head, or without that buffer of old checkpoints, may leave behind.
_OF_OTHER_CLASSES = re.compile(
    r"(cls\.predictions\.(transform\.(dense|LayerNorm)|decoder)|cls\.seq_relationship|classifier"
    r"|bert\.pooler\.dense)\.(weight|bias)|bert\.embeddings\.position_ids"
)

# Our path after the layer's number -> the checkpoint's; the baseline's projections are apart.
_MOSAIC_LAYER = {
    "attention.qkv": ("attention.self.Wqkv",),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feed_forward.input": ("mlp.gated_layers",),
    "feed_forward.output": ("mlp.wo",),
    "feed_forward_norm": ("mlp.layernorm",),
}
_BERT_LAYER = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feed_forward.input": ("intermediate.dense",),
    "feed_forward.output": ("output.dense",),
    "feed_forward_norm": ("output.LayerNorm",),
}
_OUTSIDE_LAYERS = {
    "bert.embeddings.word": "bert.embeddings.word_embeddings",
    "bert.embeddings.token_type": "bert.embeddings.token_type_embeddings",
    "bert.embeddings.position": "bert.embeddings.position_embeddings",
    "bert.embeddings.norm": "bert.embeddings.LayerNorm",
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions.decoder",
    "pooler": "bert.pooler.dense",
    "classifier": "classifier",
}


def tensor_names(path: tuple[str | int, ...], config: BertConfig) -> tuple[str, ...]:
    """The checkpoint's names of one of our parameters; several are joined along the outputs.

    Args:
      path: where the parameter is in a model, such as ("bert", "layers", 0, "attention", "qkv",
        "kernel"); a bare BertModel's paths lack the leading "bert".
    """
    parts = [str(part) for part in path]
    if parts[0] in ("embeddings", "layers"):
        parts.insert(0, "bert")
    module, leaf = ".".join(parts[:-1]), "bias" if parts[-1] == "bias" else "weight"
    if parts[1] == "layers":
        table = _MOSAIC_LAYER if config.feed_forward == "geglu" else _BERT_LAYER
        inner = table[".".join(parts[3:-1])]
        return tuple(f"bert.encoder.layer.{parts[2]}.{name}.{leaf}" for name in inner)
    return (f"{_OUTSIDE_LAYERS[module]}.{leaf}",)


def canonical_name(name: str) -> str:
    """The name that `tensor_names` gives, of one by an older or a stock BERT."""
    # The original BERT's, from before PyTorch.
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return DECODER_BIAS if name == BERT_DECODER_BIAS else name


def is_of_another_class(name: str) -> bool:
    """Whether a tensor belongs to a head that other classes than the one asked for have."""
    return _OF_OTHER_CLASSES.fullmatch(name) is not None
