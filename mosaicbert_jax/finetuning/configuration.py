"""The settings of a finetuning run: one tree of defaults, and their checks."""

import math
import pathlib

import jax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig, resolved_dtype
from mosaicbert_jax.storage.target import KINDS
from mosaicbert_jax.training import configuration, recovery

_RANGES = {
    **configuration.SHARED_RANGES,
    "data.max_seq_len": (8, math.inf, True),
    "data.dev_fraction": (0, 1, True),
    "train.batch_size": (1, math.inf, True),
    "eval.batch_size": (1, math.inf, True),
}


def finetuning() -> ConfigDict:
    """MosaicBERT's recipe for finetuning, unlocked; each task has its own numbers."""
    return ConfigDict(
        {
            "kind": "finetuning",  # what `train` does with it
            "seed": 19,
            "init_from": placeholder(str),  # a workdir or a Hugging Face folder to start from
            "init_from_step": placeholder(int),  # of that workdir; None: its last checkpoint
            "renew_classifier": False,  # True: a finetuned model's classifier starts anew too
            "task": "classification",  # or regression, or token_classification
            "model": {"dtype": "auto"},  # bfloat16 on GPUs and float32 else
            "data": {
                "path": placeholder(str),  # .csv, .tsv or .jsonl, also with .gz or .zst
                "dev_path": placeholder(str),  # what is evaluated on; None:
                "dev_fraction": 0.1,  # of the examples are held out for that
                "text": "text",  # the column or key of the text
                "second_text": placeholder(str),  # of the other one, in a task of pairs
                "label": "label",
                "label_range": (),  # (lowest, highest) of a regression
                "max_seq_len": 256,  # tokens, [CLS] and [SEP] included
            },
            "optimizer": configuration.optimizer_settings(
                3e-5, weight_decay=3e-6, final_fraction=0.0
            ),
            "train": {
                "duration": "3ep",
                "batch_size": 16,
                "deterministic": True,  # on GPUs: without autotuning, see training/step.py
                "price_per_gpu_hour": placeholder(float),  # dollars; metrics tell what was spent
            },
            "eval": {"every": "1ep", "batch_size": 64},
            "checkpoint": {"every": "1ep", "keep": 1},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "recovery": recovery.settings(max_rollbacks=0, spike=0.0),
            "log": {"every": 10, "wandb_project": placeholder(str)},
        }
    )


def check(config: ConfigDict) -> None:
    """Raises UserError for values that no run can have."""
    configuration.check_values(config, _RANGES)
    if not config.init_from:
        raise UserError(
            "init_from is not set: give a workdir or a Hugging Face folder with "
            "--config.init_from=DIR"
        )
    if not config.data.path:
        raise UserError("data.path is not set: give a file with --config.data.path=FILE")
    if config.task not in KINDS:
        raise UserError(f"task={config.task!r}: choose {', '.join(KINDS)}")
    if config.data.label_range and len(config.data.label_range) != 2:
        raise UserError(f"data.label_range={config.data.label_range}: give (lowest, highest)")
    if jax.process_count() > 1:
        raise UserError("finetuning runs on the devices of one host; start it on one alone")


def model_config(config: ConfigDict, origin: BertConfig, source: pathlib.Path) -> BertConfig:
    """The origin's model, computing in this run's dtype.

    Raises:
      UserError: sequences longer than its table of positions.
    """
    dtype = resolved_dtype(config.model.dtype)
    longest = config.data.max_seq_len
    if origin.position_embedding == "learned" and longest > origin.max_position_embeddings:
        raise UserError(
            f"data.max_seq_len={longest}, but the model in {source} has "
            f"{origin.max_position_embeddings} positions"
        )
    if config.data.second_text and origin.type_vocab_size < 2:
        raise UserError(f"the model in {source} has one token type, and pairs need two")
    return BertConfig.from_fields(vars(origin) | {"dtype": dtype})


# The first so many of these.
_SEEDS = (19, 8364, 717, 10536, 90166)


def _recipe(
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    batch_size: int,
    seeds: int,
    *,
    dtype: str = "auto",
    starts_from: str = "",
) -> ConfigDict:
    """A row of GLUE's table.

    Args:
      starts_from: the task whose finetuned model it goes on from; "": init_from.
    """
    return ConfigDict(
        {
            "epochs": epochs,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "batch_size": batch_size,
            "seeds": _SEEDS[:seeds],
            "dtype": dtype,
            "starts_from": starts_from,
        }
    )


def glue() -> ConfigDict:
    """MosaicBERT's recipe for each task of GLUE, unlocked, and what they share."""
    shared = finetuning()
    return ConfigDict(
        {
            "kind": "glue",  # what `train` does with it
            "init_from": placeholder(str),  # a workdir or a Hugging Face folder to start from
            "init_from_step": placeholder(int),  # of that workdir; None: its last checkpoint
            "init_from_steps": (),  # a suite for each of these, in folders of their own
            "tasks": "mnli,qqp,qnli,sst2,cola,rte,mrpc,stsb",
            "processes": 1,  # more: so many runs side by side, each on a GPU of its own
            "recipes": {
                "mnli": _recipe(3, 5e-5, 5e-6, 48, 1),
                "qqp": _recipe(5, 3e-5, 3e-6, 16, 1),
                "qnli": _recipe(10, 1e-5, 1e-6, 16, 1),
                "sst2": _recipe(3, 3e-5, 3e-6, 16, 3),
                "cola": _recipe(10, 5e-5, 5e-6, 32, 4),
                "rte": _recipe(3, 1e-5, 1e-5, 16, 5, starts_from="mnli"),
                "mrpc": _recipe(10, 8e-5, 8e-6, 32, 5, starts_from="mnli"),
                "stsb": _recipe(10, 3e-5, 3e-6, 32, 5, starts_from="mnli", dtype="float32"),
            },
            "data": {
                "path": placeholder(str),  # GLUE's folder, or tfds:glue
                "max_seq_len": shared.data.max_seq_len,
            },
            "eval": shared.eval,
            "checkpoint": shared.checkpoint,
            "mesh": shared.mesh,
            "recovery": shared.recovery,
            "log": shared.log,
        }
    )


def run_config(
    suite: ConfigDict, task: str, seed: int, init_from: str, step: int | None
) -> ConfigDict:
    """The settings of one of the suite's runs."""
    recipe, config = suite.recipes[task], finetuning()
    config.seed, config.init_from, config.init_from_step = seed, init_from, step
    config.renew_classifier = True
    config.model.dtype = recipe.dtype
    config.data.path, config.data.max_seq_len = suite.data.path, suite.data.max_seq_len
    config.optimizer.learning_rate = recipe.learning_rate
    config.optimizer.weight_decay = recipe.weight_decay
    config.train.duration, config.train.batch_size = f"{recipe.epochs}ep", recipe.batch_size
    for group in ("eval", "checkpoint", "mesh", "recovery", "log"):
        config[group] = suite[group]
    return config.lock()
