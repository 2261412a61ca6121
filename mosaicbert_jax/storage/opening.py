"""Opens the model at a path, whichever way it is stored: as a run or in Hugging Face's layout."""

import abc
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util
from tokenizers import Tokenizer

from mosaicbert_jax.buckets import BucketPath
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import how_to_download, is_hub_name
from mosaicbert_jax.interop.reading import folder_contents, read_model
from mosaicbert_jax.modeling.config import BertConfig, resolved_dtype
from mosaicbert_jax.modeling.heads import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from mosaicbert_jax.storage import checkpoint_files, workdir
from mosaicbert_jax.storage.target import CLASSIFICATION, TOKEN_CLASSIFICATION, Target
from mosaicbert_jax.storage.working_copy import read_copy
from mosaicbert_jax.text.tokenizer import check_vocabulary, load_tokenizer, tokenizer_settings

_NO_LIMIT = 10**9  # transformers writes 10**30 for it


@dataclasses.dataclass(frozen=True)
class StoredModel(abc.ABC):
    """A model on disk, described but not yet read.

    Attributes:
      place: a run's folder, or one in Hugging Face's layout.
      config: of the encoder.
      target: what its classifier predicts; None without one.
      heads: which of the classifier's parts besides the encoder it has; see `heads_of`.
      settings: the config of the run that trained it; empty if that isn't known.
    """

    place: pathlib.Path
    config: BertConfig
    target: Target | None
    heads: tuple[str, ...]
    settings: dict[str, Any]

    @abc.abstractmethod
    def load(self) -> nnx.Module:
        """The model with its weights.

        A classifier if there is one, else a BertForMaskedLM; see `model_class`.

        Raises:
          UserError: damaged, missing or unknown weights.
        """

    @abc.abstractmethod
    def params(self, abstract: dict[str, Any]) -> dict[str, Any]:
        """The parts of the parameters that are named in `abstract`, such as "bert".

        Args:
          abstract: by part, a tree of ShapeDtypeStruct with shardings.
        """

    @property
    @abc.abstractmethod
    def max_seq_len(self) -> int | None:
        """Tokens that a classifier reads at most, special ones included; None: it isn't known."""

    @property
    @abc.abstractmethod
    def _tokenizer_place(self) -> pathlib.Path: ...

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with.

        Raises:
          UserError: there is none, or it has more entries than the model.
        """
        tokenizer = load_tokenizer(self._tokenizer_place)
        check_vocabulary(tokenizer, self.config.vocab_size, self.place)
        return tokenizer


def open_model(place: os.PathLike | str | BucketPath, step: int | None = None) -> StoredModel:
    """Describes the model at a path.

    Args:
      place: a run's folder, or one in Hugging Face's layout, which may be in a bucket.
      step: of a run's checkpoint; None is the last one.

    Raises:
      UserError: there is no model, or `step` is given for a Hugging Face folder.
    """
    place = read_copy(place, step)
    if workdir.is_run(place):
        record = workdir.read_record(place)
        found = record.get(workdir.CLASSIFIER)
        target = None if found is None else Target.from_dict(found)
        config = BertConfig.from_fields(record["model"])
        heads = heads_of(target, config)
        if target is None and config.classifier_head != "prediction":
            heads = ()
        return _Run(place, config, target, heads, record["config"], step)
    if not (place / workdir.CONFIG_FILE).exists():
        if not place.exists() and is_hub_name(str(place)):
            raise UserError(f"{place}: no such folder. {how_to_download(str(place))}")
        raise UserError(f"{place} is neither a run nor a Hugging Face folder: no config.json in it")
    if step is not None:
        raise UserError(f"step {step} is given, but {place} has no checkpoints")
    stored = folder_contents(place)
    target = None
    if "classifier" in stored.heads:
        try:
            target = Target.of_names(
                stored.labels, of_tokens=stored.of_tokens, problem_type=stored.problem_type
            )
        except UserError as error:
            raise UserError(f"{place / workdir.CONFIG_FILE}: {error} is not supported") from None
    heads = tuple(head for head in ("pooler", "head", "classifier") if head in stored.heads)
    return _Folder(place, stored.config, target, heads, {})


def load_run(place: os.PathLike | str | BucketPath, step: int | None = None) -> nnx.Module:
    """The model of a run, or of a folder in Hugging Face's layout; see `open_model`."""
    return open_model(place, step).load()


@dataclasses.dataclass(frozen=True)
class _Run(StoredModel):
    step: int | None

    @property
    def max_seq_len(self) -> int | None:
        return self.settings.get("data", {}).get("max_seq_len")

    @property
    def _tokenizer_place(self) -> pathlib.Path:
        return self.place / workdir.TOKENIZER

    def _empty(self) -> nnx.Module:
        return nnx.eval_shape(lambda: build_model(self.config, self.target, 0))

    def load(self) -> nnx.Module:
        graph, _ = nnx.split(self._empty())
        return nnx.merge(graph, self._read({}))

    def params(self, abstract: dict[str, Any]) -> dict[str, Any]:
        return _part_of(self._read(abstract), abstract)

    def _read(self, abstract: dict[str, Any]) -> dict[str, Any]:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        own = traverse_util.flatten_dict(abstract_params(self._empty(), here))
        wanted = traverse_util.unflatten_dict(own | traverse_util.flatten_dict(abstract))
        return checkpoint_files.read_params(self.place, wanted, self.step)


@dataclasses.dataclass(frozen=True)
class _Folder(StoredModel):
    @property
    def max_seq_len(self) -> int | None:
        longest = tokenizer_settings(self.place).get("model_max_length")
        limits = [longest] if isinstance(longest, int) and longest < _NO_LIMIT else []
        if self.config.position_embedding == "learned":
            limits.append(self.config.max_position_embeddings)
        return min(limits, default=None)

    @property
    def _tokenizer_place(self) -> pathlib.Path:
        return self.place

    def load(self) -> nnx.Module:
        dtype = resolved_dtype("auto")
        if self.target is None:
            return read_model(BertForMaskedLM, self.place, dtype=dtype)
        wanted = heads_of(self.target, self.config)
        missing = tuple(head for head in wanted if head not in self.heads)
        return read_model(
            model_class(self.target),
            self.place,
            renew=missing,
            num_labels=self.target.outputs,
            dtype=dtype,
        )

    def params(self, abstract: dict[str, Any]) -> dict[str, Any]:
        if "bias" in abstract.get("head", {}):  # the decoder's
            model = read_model(BertForMaskedLM, self.place)
        else:
            target = self.target or Target(CLASSIFICATION, ("0", "1"))
            wanted = heads_of(target, self.config)
            random = tuple(part for part in wanted if part not in abstract)
            outputs = target.outputs
            model = read_model(model_class(target), self.place, renew=random, num_labels=outputs)
        found = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        return jax.tree.map(
            lambda like, x: jax.device_put(np.asarray(x), like.sharding),
            abstract,
            _part_of(found, abstract),
        )


def _part_of(params: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Those parameters that a tree of the same names has; a classifier's head has no decoder."""
    found = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({p: found[p] for p in traverse_util.flatten_dict(like)})


def heads_of(target: Target | None, config: BertConfig) -> tuple[str, ...]:
    """The parts of a model besides its encoder."""
    if target is None:
        return ("head",)
    if config.classifier_head == "prediction":
        return ("head", "classifier")
    return ("classifier",) if target.kind == TOKEN_CLASSIFICATION else ("pooler", "classifier")


def model_class(target: Target | None) -> type[nnx.Module]:
    """What predicts `target`; None: masked tokens."""
    if target is None:
        return BertForMaskedLM
    if target.kind == TOKEN_CLASSIFICATION:
        return BertForTokenClassification
    return BertForSequenceClassification


def build_model(config: BertConfig, target: Target | None, seed: int | jax.Array) -> nnx.Module:
    """The model that predicts `target`, with random weights.

    Args:
      seed: an integer or a key.
    """
    outputs = {} if target is None else {"num_labels": target.outputs}
    return model_class(target)(config, rngs=nnx.Rngs(seed), **outputs)


def abstract_params(model: nnx.Module, sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """The parameters of a model, or of one from `nnx.eval_shape`, as a tree of ShapeDtypeStruct."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nnx.to_pure_dict(nnx.state(model, nnx.Param)),
    )


def initial_params(
    build: Callable[[jax.Array], nnx.Module],
    abstract: dict[str, Any],
    seed: int,
    *,
    origin: StoredModel | None = None,
    kept: Sequence[str] = (),
) -> dict[str, Any]:
    """Parameters to start training from: some parts of a stored model, the others random.

    Args:
      build: makes the model with random weights from a key.
      abstract: all parts, with shardings.
      kept: the parts to take from `origin`.
    """
    found = {}
    if origin is not None:
        found = origin.params({part: abstract[part] for part in kept if part in abstract})
    new = [part for part in abstract if part not in found]

    def draw(key: jax.Array) -> dict[str, Any]:
        params = nnx.to_pure_dict(nnx.state(build(key), nnx.Param))
        return {part: params[part] for part in new}

    shardings = {part: jax.tree.map(lambda x: x.sharding, abstract[part]) for part in new}
    return found | jax.jit(draw, out_shardings=shardings)(jax.random.key(seed))
