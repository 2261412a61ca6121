"""The model that finetuning starts from: a run's folder, or one in Hugging Face's layout."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from tokenizers import Tokenizer

from mosaicbert_jax.data.tokenizer import load_tokenizer, vocab_size
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.finetuning.target import CLASSIFICATION, TOKEN_CLASSIFICATION, Target
from mosaicbert_jax.interop.reading import load_model, stored_model
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.heads import BertForSequenceClassification, BertForTokenClassification
from mosaicbert_jax.training import checkpoints, workdir

_HEADS = ("pooler", "classifier")


@dataclasses.dataclass(frozen=True)
class Origin:
    """A checkpoint, described but not yet read.

    Attributes:
      folder: a run's, or one in Hugging Face's layout.
      step: of a run's checkpoint; None: its last.
      model: of the encoder.
      tokenizer: the one that it was trained with.
      heads: which of pooler and classifier it has.
      target: what its classifier tells; None if it has none.
    """

    folder: pathlib.Path
    step: int | None
    model: BertConfig
    tokenizer: Tokenizer
    heads: tuple[str, ...]
    target: Target | None

    @classmethod
    def open(cls, folder: pathlib.Path, step: int | None = None) -> "Origin":
        """Raises UserError for a folder without a model or with a tokenizer of another one."""
        if _is_run(folder):
            record = workdir.read(folder)
            model = BertConfig.from_fields(record["model"])
            found = record.get(workdir.CLASSIFIER)
            target = None if found is None else Target.from_dict(found)
            heads = () if target is None else _heads(target.kind)
            tokenizer = load_tokenizer(folder / workdir.TOKENIZER)
        else:
            if step is not None:
                raise UserError(f"step {step} is asked for, but {folder} has no checkpoints")
            stored = stored_model(folder)
            model, tokenizer = stored.config, load_tokenizer(folder)
            target = None
            heads = tuple(head for head in _HEADS if head in stored.heads)
            if "classifier" in heads:
                target = Target.of_names(stored.labels, of_tokens=stored.of_tokens)
        if vocab_size(tokenizer) > model.vocab_size:
            raise UserError(
                f"{folder}: its tokenizer has {vocab_size(tokenizer)} entries and the model "
                f"{model.vocab_size}: they do not belong together"
            )
        return cls(folder, step, model, tokenizer, heads, target)

    def load(self, dtype: str) -> nnx.Module:
        """The model with all its weights; heads that are missing are random."""
        if _is_run(self.folder):
            return checkpoints.load_model(self.folder, self.step)
        kind = CLASSIFICATION if self.target is None else self.target.kind
        of_tokens = kind == TOKEN_CLASSIFICATION
        missing = tuple(head for head in _heads(kind) if head not in self.heads)
        outputs = 2 if self.target is None else self.target.outputs
        return load_model(
            BertForTokenClassification if of_tokens else BertForSequenceClassification,
            self.folder,
            renew=missing,
            num_labels=outputs,
            dtype=dtype,
        )

    def params(self) -> dict[str, Any]:
        """The parameters of the encoder ("bert") and of the heads."""
        params = nnx.to_pure_dict(nnx.state(self.load("float32"), nnx.Param))
        return {part: params[part] for part in ("bert", *self.heads) if part in params}


def _heads(kind: str) -> tuple[str, ...]:
    """What stands on the encoder of a model that tells this."""
    return ("classifier",) if kind == TOKEN_CLASSIFICATION else _HEADS


def _is_run(folder: pathlib.Path) -> bool:
    return (folder / workdir.CHECKPOINTS).is_dir()


def initial_params(
    origin: Origin,
    kept: tuple[str, ...],
    build: Callable[[jax.Array], nnx.Module],
    abstract: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    """The origin's encoder and its heads `kept`; the others drawn as `build(key)` draws them.

    Args:
      abstract: how the parameters are laid out.
    """
    wanted = {"bert", *kept} & set(abstract)
    found = {name: part for name, part in origin.params().items() if name in wanted}
    new = [name for name in abstract if name not in found]

    def draw(key: jax.Array) -> dict[str, Any]:
        params = nnx.to_pure_dict(nnx.state(build(key), nnx.Param))
        return {name: params[name] for name in new}

    shardings = {name: jax.tree.map(lambda x: x.sharding, abstract[name]) for name in abstract}
    drawn = jax.jit(draw, out_shardings={name: shardings[name] for name in new})
    placed = {name: jax.device_put(part, shardings[name]) for name, part in found.items()}
    return {**placed, **drawn(jax.random.key(seed))}
