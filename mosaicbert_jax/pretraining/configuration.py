"""The settings of pretraining: one tree of defaults that configs start from, and their checks."""

import dataclasses
import math
from typing import Any

import jax
from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.data.integrity import SKIP, STOP
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig, field_type, resolved_dtype
from mosaicbert_jax.pretraining.microbatch import AUTO
from mosaicbert_jax.training import configuration, recovery


def pretraining(model: BertConfig) -> ConfigDict:
    """MosaicBERT's recipe for masked-language-model pretraining, locked.

    Args:
      model: its fields become the group `model`, where two may be left to the run: vocab_size
        None is the data set's padded vocabulary, dtype "auto" bfloat16 on GPUs and float32 else.
    """
    architecture = ConfigDict(dataclasses.asdict(model) | {"dtype": "auto"})
    for field in dataclasses.fields(model):
        kind, may_be_none = field_type(field)
        if may_be_none:
            architecture[field.name] = placeholder(kind)
            architecture[field.name] = getattr(model, field.name)
    architecture.vocab_size = placeholder(int)
    config = ConfigDict(
        {
            "kind": "pretraining",  # which kind of run `train` starts; can't be changed
            "hardware": "any",  # "gpu": a CPU is refused, on which it would take months
            "seed": 17,  # seed of initial weights, order, masks and dropout
            "init_from": placeholder(str),  # a workdir or Hugging Face folder to start from
            "init_from_step": placeholder(int),  # checkpoint of that workdir; None is its last
            "model": architecture,
            "data": {
                "path": placeholder(str),  # a folder written by `prepare`
                # Instead of path: (folder, weight) pairs; weights are shares of the sequences.
                "mixture": (),
                "row_length": 512,  # slots of a row, which several sequences share
                "packing": True,  # False places each sequence in a row of its own, padded
                "masking_rate": 0.3,  # share of the tokens that are predicted in training
                "whole_words": False,  # predict all tokens of a word or none, in training
                "window_size": 8192,  # sequences shuffled and packed together
                "workers": 0,  # processes that make batches; with 0 a thread does
                "on_error": STOP,  # at damaged shards: stop, or skip their sequences
            },
            "optimizer": configuration.optimizer_settings(
                5e-4, weight_decay=1e-5, final_fraction=0.02
            ),
            "train": {
                "duration": "286720000sp",  # how long the run is, as a duration
                "batch_tokens": 524_288,  # slots of a step, on all devices together
                # Slots that one device holds at a time; "auto" takes the most that fit its memory.
                "microbatch_tokens": FieldReference(65_536, field_type=object),
                # Keep what enters each layer and compute the rest again in backward: a third more
                # FLOPs and far less memory.
                "activation_checkpointing": False,
                # On GPUs, compile without autotuning, so that every run of a step gives the same
                # bits. False lets XLA time several programs and take the fastest, which may be
                # another one, with other rounding, when the run is resumed.
                "deterministic": True,
                # Dollars; needed for durations in usd, and metrics then have what was spent.
                "price_per_gpu_hour": placeholder(float),
            },
            "eval": {
                "every": "2000ba",  # duration between evaluations; the last one is at the end
                "masking_rate": 0.15,  # share of the tokens that are predicted
                "max_tokens": 10_000_000,  # most tokens of the validation split to evaluate on
            },
            "checkpoint": {
                "every": "1000ba",  # duration between checkpoints; the last one is at the end
                "keep": 2,  # how many of the last checkpoints to keep
            },
            "mesh": configuration.mesh_settings(),
            "recovery": recovery.recovery_settings(max_rollbacks=3, spike=10.0),
            "log": configuration.log_settings(),
        }
    )
    return config.lock()


def model_config(config: ConfigDict, dataset: DatasetMetadata) -> BertConfig:
    """The model group with what was left to the run filled in.

    Raises:
      UserError: a field out of range, or a vocabulary smaller than the data set's.
    """
    fields: dict[str, Any] = dict(config.model)
    if fields["vocab_size"] is None:
        fields["vocab_size"] = dataset.padded_vocab_size
    fields["dtype"] = resolved_dtype(fields["dtype"])
    model = BertConfig.from_fields(fields)
    if "float16" in (model.dtype, model.layer_norm_dtype):
        raise UserError("float16 would need loss scaling; train in bfloat16 or float32")
    if model.vocab_size < dataset.vocab_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is smaller than the {dataset.vocab_size} entries "
            f"of the data set's tokenizer; leave it unset, or use {dataset.padded_vocab_size}"
        )
    if model.position_embedding == "learned":
        longest = dataset.max_seq_len
        if longest > model.max_position_embeddings:
            raise UserError(
                f"sequences of {longest} tokens do not fit model.max_position_embeddings="
                f"{model.max_position_embeddings}"
            )
    return model


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """How a step's tokens are cut up.

    Attributes:
      rows: of the global batch.
      microbatches: parts that a device works on one after the other.
    """

    rows: int
    microbatches: int


def batch_shape(config: ConfigDict, row_shards: int) -> BatchShape:
    """Rows and microbatches from the token counts; with "auto", as many microbatches as can be.

    Raises:
      UserError: counts that do not divide.
    """
    row_length = config.data.row_length
    rows, rest = divmod(config.train.batch_tokens, row_length)
    if rest or not rows:
        raise UserError(
            f"train.batch_tokens={config.train.batch_tokens} must be a multiple of "
            f"data.row_length={row_length}"
        )
    if rows % row_shards:
        raise UserError(
            f"train.batch_tokens={config.train.batch_tokens} is {rows} rows of {row_length}, "
            f"which {row_shards} devices cannot share equally"
        )
    rows_here = rows // row_shards
    if config.train.microbatch_tokens == AUTO:
        return BatchShape(rows, rows_here)
    most = config.train.microbatch_tokens // row_length
    if not most:
        raise UserError(
            f"train.microbatch_tokens={config.train.microbatch_tokens} is less than one row of "
            f"data.row_length={row_length}"
        )
    microbatches = next(
        n for n in range(1, rows_here + 1) if rows_here % n == 0 and rows_here // n <= most
    )
    return BatchShape(rows, microbatches)


_RANGES = {
    **configuration.SHARED_RANGES,
    "data.row_length": (1, math.inf, True),
    "data.masking_rate": (0, 1, False),
    "data.window_size": (1, math.inf, True),
    "data.workers": (0, math.inf, True),
    "train.batch_tokens": (1, math.inf, True),
    "train.microbatch_tokens": (1, math.inf, True),
    "eval.masking_rate": (0, 1, False),
    "eval.max_tokens": (1, math.inf, True),
}


def check(config: ConfigDict) -> None:
    """Raises UserError for values that no pretraining can have."""
    check_settings(config)
    if config.hardware == "gpu" and jax.default_backend() == "cpu":
        raise UserError(
            "this config is for GPUs, and JAX finds none here. On a CPU train a small model on "
            "the same data, with --config quickstart; or this one, which may take months, with "
            "--config.hardware=any"
        )
    _check_data(config.data.path, config.data.mixture)
    if config.data.on_error not in (STOP, SKIP):
        raise UserError(f"data.on_error={config.data.on_error!r}: choose {STOP!r} or {SKIP!r}")


def check_settings(config: ConfigDict) -> None:
    """The same, but for the data, which a plan does without."""
    if config.hardware not in ("any", "gpu"):
        raise UserError(f"hardware={config.hardware!r}: choose 'any' or 'gpu'")
    ranges = dict(_RANGES)
    microbatch = config.train.microbatch_tokens
    if microbatch == AUTO:
        del ranges["train.microbatch_tokens"]
    elif type(microbatch) is not int:
        raise UserError(f"train.microbatch_tokens={microbatch!r}: a number of tokens, or {AUTO!r}")
    configuration.check_values(config, ranges)


def _check_data(path: str | None, mixture: tuple) -> None:
    if path and mixture:
        raise UserError(
            f"data.path={path} and data.mixture are both set: give one of them (a folder of a "
            "mixture is one of its pairs)"
        )
    if not path and not mixture:
        raise UserError(
            "data.path is not set: prepare a data set with `mosaicbert prepare "
            "--input FILE --output DIR` and give --config.data.path=DIR"
        )
    for pair in mixture:
        match pair:
            case [str(), int() | float() as weight] if not isinstance(weight, bool):
                pass
            case _:
                raise UserError(
                    f"data.mixture={mixture!r}: {pair!r} is not a folder with its weight; write "
                    "--config.data.mixture=\"(('data/a', 0.7), ('data/b', 0.3))\""
                )
