"""What the settings of pretraining and finetuning share, and how values are checked."""

import math
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.training.durations import Duration
from mosaicbert_jax.training.optimizer import OPTIMIZERS
from mosaicbert_jax.training.schedule import FORMS, SCHEDULES


def optimizer_settings(
    learning_rate: float, *, weight_decay: float, final_fraction: float
) -> dict[str, Any]:
    """The group `optimizer`; what pretraining and finetuning share is as published."""
    return {
        # "adamw", "stable_adamw" (ModernBERT's), or "muon" (on dense layers, adamw on the rest).
        "name": "adamw",
        "learning_rate": learning_rate,  # at the peak of the schedule
        "b1": 0.9,  # Adam's decay of the first moment
        "b2": 0.98,  # Adam's decay of the second moment
        "eps": 1e-6,  # Adam's epsilon
        "muon_beta": 0.95,  # Muon's decay of its momentum
        "weight_decay": weight_decay,  # share of a parameter that a step at the peak removes
        "clip_norm": placeholder(float),  # scale gradients down to this global norm
        # Decay of the weights' moving average, which is evaluated and exported; None: no average.
        "ema_decay": placeholder(float),
        # After the warmup: "linear" or "cosine" decay, "constant", or "wsd", constant with a decay
        # at the end. "decay": that end alone, from another run's checkpoint (init_from).
        "schedule": "linear",
        "warmup": 0.06,  # share of the run in which the learning rate rises to the peak
        "decay": 0.1,  # share of the run in which it falls, with "wsd"
        "decay_form": "1-sqrt",  # with "wsd" and "decay": "linear", "cosine" or "1-sqrt"
        "final_fraction": final_fraction,  # learning rate at the end, as a share of the peak
    }


def mesh_settings() -> dict[str, int]:
    """The group `mesh`."""
    return {
        "data": -1,  # devices that divide the rows; -1 is all that are left
        "fsdp": 1,  # devices that divide the rows and the parameters
        "tensor": 1,  # devices that divide attention heads and the feed-forward
    }


def log_settings() -> dict[str, Any]:
    """The group `log`."""
    return {
        "every": 10,  # steps between rows of metrics.jsonl
        "wandb_project": placeholder(str),  # project of Weights & Biases; needs wandb
    }


_DURATIONS = ("train.duration", "eval.every", "checkpoint.every")
# key: (lowest, highest, whether the lowest itself is allowed); the highest never is.
SHARED_RANGES = {
    "seed": (0, 2**32, True),
    "optimizer.learning_rate": (0, math.inf, False),
    "optimizer.b1": (0, 1, True),
    "optimizer.b2": (0, 1, True),
    "optimizer.eps": (0, math.inf, False),
    "optimizer.muon_beta": (0, 1, True),
    "optimizer.clip_norm": (0, math.inf, False),
    "optimizer.ema_decay": (0, 1, False),
    "optimizer.decay": (0, 1, False),
    "optimizer.weight_decay": (0, 1, True),
    "optimizer.warmup": (0, 1, True),
    "optimizer.final_fraction": (0, math.inf, True),
    "checkpoint.keep": (1, math.inf, True),
    "recovery.max_rollbacks": (0, math.inf, True),
    "recovery.spike": (0, math.inf, True),
    "log.every": (1, math.inf, True),
}


# finetuning's learning rate follows the model's size.
_MAY_BE_UNSET = ("optimizer.learning_rate", "optimizer.clip_norm", "optimizer.ema_decay")
_CHOICES = {"name": OPTIMIZERS, "schedule": SCHEDULES, "decay_form": tuple(FORMS)}


def check_values(config: ConfigDict, ranges: dict[str, tuple[float, float, bool]]) -> None:
    """Raises UserError for a duration or a number that cannot be.

    Args:
      ranges: by key, the lowest and highest value and whether the lowest itself is allowed.
    """

    def value(key: str) -> Any:
        group, _, name = key.rpartition(".")
        return config[group][name] if group else config[name]

    for key in _DURATIONS:
        Duration.parse(value(key), key=key)
    for key, (lowest, highest, allowed) in ranges.items():
        number = value(key)
        if number is None and key in _MAY_BE_UNSET:
            continue
        if not (lowest < number < highest or (allowed and number == lowest)):
            bounds = f"{'at least' if allowed else 'above'} {lowest} and below {highest}"
            raise UserError(f"{key}={number} must be {bounds}")
    price = config.train.price_per_gpu_hour
    if price is not None and not 0 < price < math.inf:
        raise UserError(f"train.price_per_gpu_hour={price} must be above 0, in dollars")
    hang = config.recovery.hang_seconds
    if hang is not None and not 0 < hang < math.inf:
        raise UserError(f"recovery.hang_seconds={hang} must be above 0, or not set")
    for key in _DURATIONS:
        if price is None and Duration.parse(value(key), key=key).unit == "usd":
            raise UserError(f"{key}={value(key)} needs train.price_per_gpu_hour, in dollars")
    _check_optimizer(config.optimizer)
    if config.init_from_step is not None and not config.init_from:
        raise UserError("init_from_step is set, but init_from is not: a step of which run?")


def _check_optimizer(settings: ConfigDict) -> None:
    for key, choices in _CHOICES.items():
        if settings[key] not in choices:
            raise UserError(f"optimizer.{key}={settings[key]!r}: choose {', '.join(choices)}")
    if settings.schedule == "wsd" and settings.warmup + settings.decay > 1:
        raise UserError(
            f"optimizer.warmup={settings.warmup} and optimizer.decay={settings.decay} are more "
            "than the whole run together"
        )
