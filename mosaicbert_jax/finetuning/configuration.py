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
            "kind": "finetuning",  # which kind of run `train` starts; can't be changed
            "seed": 19,  # seed of new heads, order and dropout
            "init_from": placeholder(str),  # a workdir or Hugging Face folder to start from
            "init_from_step": placeholder(int),  # checkpoint of that workdir; None is its last
            "renew_classifier": False,  # train the classifier of a finetuned model from scratch
            "task": "classification",  # "classification", "regression" or "token_classification"
            "model": {
                "dtype": "auto",  # of the computation; "auto" is bfloat16 on GPUs, else float32
            },
            "data": {
                "path": placeholder(str),  # .csv, .tsv or .jsonl file, also compressed (.gz, .zst)
                "dev_path": placeholder(str),  # the file to evaluate on
                "dev_fraction": 0.1,  # share of the examples to hold out, if dev_path is not set
                "text": "text",  # column or key of the text
                "second_text": placeholder(str),  # column or key of the other text of a pair
                "label": "label",  # column or key of the label
                "label_range": (),  # (lowest, highest) label of a regression; others are refused
                "max_seq_len": 256,  # tokens of an example, [CLS] and [SEP] included
            },
            "optimizer": configuration.optimizer_settings(
                3e-5, weight_decay=3e-6, final_fraction=0.0
            )
            | {
                "learning_rate": placeholder(float),  # at the peak; None: by the model's size
            },
            "train": {
                "duration": "3ep",  # how long the run is, as a duration
                "batch_size": 16,  # examples of a step
                "deterministic": True,  # on GPUs, compile without autotuning; see pretraining
                "price_per_gpu_hour": placeholder(float),  # dollars; metrics have what was spent
            },
            "eval": {
                "every": "1ep",  # duration between evaluations; the last one is at the end
                "batch_size": 64,  # examples evaluated together
            },
            "checkpoint": {
                "every": "1ep",  # duration between checkpoints; the last one is at the end
                "keep": 1,  # how many of the last checkpoints to keep
            },
            "mesh": configuration.mesh_settings(),
            "recovery": recovery.recovery_settings(max_rollbacks=0, spike=0.0),
            "log": configuration.log_settings(),
        }
    )


# The published rate is of MosaicBERT-Base; smaller models need higher ones.
_RATE_OF_BASE, _HIGHEST_RATE, _BASE_PARAMETERS = 3e-5, 1e-3, 137_400_384


def scaled_learning_rate(parameters: int) -> float:
    """What a model of this size is finetuned with unless the config says.

    In inverse proportion to the parameters: 3e-5 from MosaicBERT-Base's size on, at most 1e-3. See
    experiments/results/finetuning_rate.md.
    """
    return min(_RATE_OF_BASE * max(1.0, _BASE_PARAMETERS / parameters), _HIGHEST_RATE)


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
    if config.optimizer.schedule == "decay":
        raise UserError('optimizer.schedule="decay" is for pretraining, from a run\'s checkpoint')
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
    if config.data.second_text and origin.type_vocab_size == 1:
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
      starts_from: the task whose finetuned model it starts from; "": init_from.
    """
    return ConfigDict(
        {
            "epochs": epochs,  # how often the examples are read
            "learning_rate": learning_rate,  # at the peak
            "weight_decay": weight_decay,  # share of a parameter that a step at the peak removes
            "batch_size": batch_size,  # examples of a step
            "seeds": _SEEDS[:seeds],  # a run for each; the score is their mean
            "dtype": dtype,  # of the computation
            "starts_from": starts_from,  # task whose finetuned model to start from; "": init_from
        }
    )


def glue() -> ConfigDict:
    """MosaicBERT's recipe for each task of GLUE, unlocked, and what they share."""
    shared = finetuning()
    return ConfigDict(
        {
            "kind": "glue",  # which kind of run `train` starts; can't be changed
            "init_from": placeholder(str),  # a workdir or Hugging Face folder to start from
            "init_from_step": placeholder(int),  # checkpoint of that workdir; None is its last
            "init_from_steps": (),  # run the suite for each of these steps, in folders of their own
            "tasks": "mnli,qqp,qnli,sst2,cola,rte,mrpc,stsb",  # tasks to run
            "processes": 1,  # runs side by side, each in a process with a GPU of its own
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
                "max_seq_len": shared.data.max_seq_len,  # tokens of an example
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
