"""The settings of pretraining: one tree of defaults that configs start from, and their checks."""

import dataclasses
import math
from typing import Any

import jax
from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.data.integrity import SKIP, STOP
from mosaicbert_jax.data.masking import UNITS
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig, field_type, resolved_dtype
from mosaicbert_jax.pretraining.microbatch import AUTO
from mosaicbert_jax.training import configuration, recovery
from mosaicbert_jax.training.step import equal_parts


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
                # Share of the tokens that are predicted in training; (first, last) changes linearly
                # over the run.
                "masking_rate": FieldReference(0.3, field_type=object),
                "masking_unit": "token",  # what is chosen together: "token", "word" or "span"
                "window_size": 8192,  # sequences packed together
                # Shards whose sequences are shuffled together, of which those of a bucket are
                # fetched before the first step; 0: all.
                "shuffle_shards": 16,
                "cache": 16.0,  # GB of shards from buckets that the local disk holds
                "cache_folder": placeholder(str),  # where; None is ~/.cache/mosaicbert/shards
                "workers": 0,  # processes that make batches; with 0 a thread does
                "on_error": STOP,  # at damaged shards: stop, or skip their sequences
            },
            "optimizer": configuration.optimizer_settings(
                5e-4, weight_decay=1e-5, final_fraction=0.02
            ),
            "train": {
                "duration": "286720000sp",  # how long the run is, as a duration
                "batch_tokens": 524_288,  # slots of a step, on all devices together
                # Slots of the first steps, from which the batch grows in multiples of them; None:
                # batch_tokens from the start.
                "first_batch_tokens": placeholder(int),
                "batch_warmup": 0.0,  # share of the run in which the batch grows
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
                # And of the last from which a decay may start: behind the warmup, at the peak.
                "keep_stable": 0,
            },
            "distill": {
                "teacher": placeholder(str),  # a workdir or Hugging Face folder to learn from
                "teacher_step": placeholder(int),  # checkpoint of that workdir; None is its last
                "weight": 0.5,  # of the teacher in the loss; the labels have the rest
                "temperature": 1.0,  # by which both models' logits are divided for the teacher
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
      microbatch_rows: that a device works on at a time.
      first_rows: of the first steps' batch, by whose multiples it grows to `rows`.
    """

    rows: int
    microbatch_rows: int
    first_rows: int


def batch_shape(config: ConfigDict, row_shards: int) -> BatchShape:
    """Rows from the token counts; with "auto", microbatches of one row.

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
    first_rows = _first_rows(config, rows, row_shards)
    if config.train.microbatch_tokens == AUTO:
        return BatchShape(rows, 1, first_rows)
    most = config.train.microbatch_tokens // row_length
    if not most:
        raise UserError(
            f"train.microbatch_tokens={config.train.microbatch_tokens} is less than one row of "
            f"data.row_length={row_length}"
        )
    rows_here = rows // row_shards
    return BatchShape(rows, rows_here // equal_parts(rows_here, most), first_rows)


def _first_rows(config: ConfigDict, rows: int, row_shards: int) -> int:
    first, row_length = config.train.first_batch_tokens, config.data.row_length
    if (first is not None) != (config.train.batch_warmup > 0):
        raise UserError(
            f"train.first_batch_tokens={first} and train.batch_warmup={config.train.batch_warmup}: "
            "set both, so that the batch grows, or none"
        )
    if first is None:
        return rows
    first_rows, rest = divmod(first, row_length)
    if rest or not first_rows or rows % first_rows or first_rows % row_shards:
        raise UserError(
            f"train.first_batch_tokens={first} must be rows of {row_length} that {row_shards} "
            f"devices share equally, and train.batch_tokens={config.train.batch_tokens} a multiple"
        )
    return first_rows


def masking_rates(config: ConfigDict) -> tuple[float, float]:
    """The share of the tokens that is predicted at the start and at the end.

    Raises:
      UserError: data.masking_rate is neither a share nor a pair of them.
    """
    given = config.data.masking_rate
    pair = given if isinstance(given, (tuple, list)) else (given, given)
    numbers = [rate for rate in pair if type(rate) in (int, float) and 0 < rate < 1]
    if len(pair) != 2 or len(numbers) != 2:
        raise UserError(
            f"data.masking_rate={given!r} must be above 0 and below 1, or a pair of such shares "
            "for the start and the end"
        )
    return tuple(pair)


_RANGES = {
    **configuration.SHARED_RANGES,
    "data.row_length": (1, math.inf, True),
    "data.window_size": (1, math.inf, True),
    "data.workers": (0, math.inf, True),
    "data.shuffle_shards": (0, math.inf, True),
    "data.cache": (0, math.inf, False),
    "train.batch_tokens": (1, math.inf, True),
    "train.microbatch_tokens": (1, math.inf, True),
    "eval.masking_rate": (0, 1, False),
    "train.batch_warmup": (0, 1, True),
    "eval.max_tokens": (1, math.inf, True),
    "checkpoint.keep_stable": (0, math.inf, True),
    "distill.temperature": (0, math.inf, False),
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
    masking_rates(config)
    if config.data.masking_unit not in UNITS:
        choices = ", ".join(UNITS)
        raise UserError(f"data.masking_unit={config.data.masking_unit!r}: choose {choices}")
    if not 0 <= config.distill.weight <= 1:
        raise UserError(f"distill.weight={config.distill.weight} must be at least 0 and at most 1")
    if config.optimizer.schedule == "decay" and not config.init_from:
        raise UserError(
            'optimizer.schedule="decay" is the end of another run: give it with --config.init_from'
        )


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
