"""Names of our parameters in published checkpoints, by architecture."""

import dataclasses
import re
from collections.abc import Iterable

from mosaicbert_jax.modeling.config import BertConfig

BERT_DECODER_BIAS = "cls.predictions.bias"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How checkpoints of one architecture name their tensors.

    Attributes:
      encoder: the first part of an encoder's names, which a bare encoder's lack.
      layers: what stands before a layer's number.
      layer: our path behind the layer's number -> theirs; several are joined along the outputs.
      outside: our path outside of the layers -> theirs.
      other_classes: what a class without that head, or without that buffer of old checkpoints, may
        leave behind.
    """

    encoder: str
    layers: str
    layer: dict[str, tuple[str, ...]]
    outside: dict[str, str]
    other_classes: re.Pattern[str]

    @property
    def words(self) -> str:
        """The word embeddings."""
        return f"{self.outside['bert.embeddings.word']}.weight"

    @property
    def tied_decoder(self) -> str:
        """The decoder, which is the word embeddings; some checkpoints have both names."""
        return f"{self.outside['head']}.weight"

    @property
    def decoder_bias(self) -> str:
        """The decoder's bias."""
        return f"{self.outside['head']}.bias"

    def of_part(self, part: str) -> str:
        """The kernel of one of our parts beside the encoder, such as "pooler" or "head.dense"."""
        return f"{self.outside[part]}.weight"

    def names(self, path: tuple[str | int, ...]) -> tuple[str, ...]:
        """Theirs of one of our parameters; several are joined along the outputs.

        Args:
          path: where the parameter is in a model, such as ("bert", "layers", 0, "attention", "qkv",
            "kernel"); a bare BertModel's paths lack the leading "bert".
        """
        parts = [str(part) for part in path]
        if parts[0] in ("embeddings", "layers", "final_norm"):
            parts.insert(0, "bert")
        module, leaf = ".".join(parts[:-1]), "bias" if parts[-1] == "bias" else "weight"
        if parts[1] == "layers":
            inner = self.layer[".".join(parts[3:-1])]
            return tuple(f"{self.layers}.{parts[2]}.{name}.{leaf}" for name in inner)
        return (f"{self.outside[module]}.{leaf}",)


_OF_BERT = {
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
_OTHERS_OF_BERT = re.compile(
    r"(cls\.predictions\.(transform\.(dense|LayerNorm)|decoder)|cls\.seq_relationship|classifier"
    r"|bert\.pooler\.dense)\.(weight|bias)|bert\.embeddings\.position_ids"
)
LAYOUTS = {
    "mosaicbert": Layout(
        encoder="bert",
        layers="bert.encoder.layer",
        layer={
            "attention.qkv": ("attention.self.Wqkv",),
            "attention.output": ("attention.output.dense",),
            "attention_norm": ("attention.output.LayerNorm",),
            "feed_forward.input": ("mlp.gated_layers",),
            "feed_forward.output": ("mlp.wo",),
            "feed_forward_norm": ("mlp.layernorm",),
        },
        outside=_OF_BERT,
        other_classes=_OTHERS_OF_BERT,
    ),
    "bert": Layout(
        encoder="bert",
        layers="bert.encoder.layer",
        layer={
            "attention.qkv": tuple(f"attention.self.{name}" for name in ("query", "key", "value")),
            "attention.output": ("attention.output.dense",),
            "attention_norm": ("attention.output.LayerNorm",),
            "feed_forward.input": ("intermediate.dense",),
            "feed_forward.output": ("output.dense",),
            "feed_forward_norm": ("output.LayerNorm",),
        },
        outside=_OF_BERT,
        other_classes=_OTHERS_OF_BERT,
    ),
    "modernbert": Layout(
        encoder="model",
        layers="model.layers",
        layer={
            "attention.qkv": ("attn.Wqkv",),
            "attention.output": ("attn.Wo",),
            "attention_norm": ("attn_norm",),
            "feed_forward.input": ("mlp.Wi",),
            "feed_forward.output": ("mlp.Wo",),
            "feed_forward_norm": ("mlp_norm",),
        },
        outside={
            "bert.embeddings.word": "model.embeddings.tok_embeddings",
            "bert.embeddings.norm": "model.embeddings.norm",
            "bert.final_norm": "model.final_norm",
            "head.dense": "head.dense",
            "head.norm": "head.norm",
            "head": "decoder",
            "classifier": "classifier",
        },
        other_classes=re.compile(r"(head\.(dense|norm)|decoder|classifier)\.(weight|bias)"),
    ),
}


def kind_of_config(config: BertConfig) -> str:
    """The layout, a key of LAYOUTS, in which a model of this architecture is stored."""
    if config.norm_position == "pre":
        return "modernbert"
    return "mosaicbert" if config.is_gated else "bert"


def kind_of_tensors(names: Iterable[str]) -> str:
    """The layout, a key of LAYOUTS, of a checkpoint with tensors of these names."""
    text = "\n".join(names)
    if "tok_embeddings" in text:
        return "modernbert"
    return "mosaicbert" if "Wqkv" in text else "bert"


def tensor_names(path: tuple[str | int, ...], config: BertConfig) -> tuple[str, ...]:
    """`Layout.names` of the layout in which a model of this architecture is stored."""
    return LAYOUTS[kind_of_config(config)].names(path)


def canonical_name(name: str, layout: Layout) -> str:
    """The name that `Layout.names` gives, of one by an older or a stock BERT."""
    # The original BERT's, from before PyTorch.
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    # Stock BERT stores the decoder's bias under a name of its own.
    return layout.decoder_bias if name == BERT_DECODER_BIAS else name
