"""A run's folder: what it was started with, and whether it may resume with new settings."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import try_lock, write_atomically
from mosaicbert_jax.modeling.config import BertConfig

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"  # checkpoints that were set aside
TOKENIZER = "tokenizer"
LOCK_FILE = ".lock"
RESULTS_FILE = "results.json"  # the scores of a finetuning run or a GLUE suite
SUITE_FILE = "suite.json"  # a GLUE suite's settings
CLASSIFIER = "classifier"  # in the record of a finetuned model
CONVERTED_FROM = "converted_from"  # in the record of a workdir that `convert` made

# A run may resume with other values of these: they change no result, or rounding alone.
# Folders may move, as data sets are identified by their digests.
FREE_KEYS = (
    "checkpoint",
    "data.cache",
    "data.cache_folder",
    "data.mixture",
    "data.on_error",
    "data.path",
    "data.shuffle_shards",  # where it changes the order, it is in the data's identity
    "data.workers",
    "hardware",
    "kind",  # which older runs don't have
    "log",
    "mesh",
    "recovery",
    "train.activation_checkpointing",
    "train.deterministic",
    "train.microbatch_tokens",
    "train.price_per_gpu_hour",
)
# With --extend, it may resume with other values of these too.
EXTENDABLE = ("optimizer.", "train.duration:", "eval.")
_BOUND = ("optimizer.name:", "optimizer.ema_decay:")  # to what a checkpoint holds
# What runs that were started before these settings existed have.
_BEFORE = {
    "optimizer": {
        "name": "adamw",
        "muon_beta": 0.95,
        "schedule": "linear",
        "decay": 0.1,
        "decay_form": "1-sqrt",
    },
    "train": {"batch_warmup": 0.0},
    "data": {"masking_unit": "token"},
    "distill": {"weight": 0.5, "temperature": 1.0},
}
HISTORY = "history"  # in the record: how the run was extended, and from which step


class InUseError(UserError):
    """Another process has the folder."""


def is_run(folder: pathlib.Path) -> bool:
    """Whether a folder has our checkpoints: a run's, or those that `convert` wrote."""
    return (folder / CHECKPOINTS).is_dir()


def write_converted(workdir: pathlib.Path, model: BertConfig, *, source: str) -> None:
    """The config.json of a workdir that holds a converted model, and no run."""
    stored = {"config": {}, "model": dataclasses.asdict(model), "dataset": {}}
    stored[CONVERTED_FROM] = source
    write_atomically(workdir / CONFIG_FILE, json.dumps(stored, indent=2) + "\n")


def make_record(
    config: ConfigDict,
    model: BertConfig,
    dataset: dict[str, Any],
    classifier: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What config.json holds.

    Args:
      config: the settings.
      model: as built.
      dataset: the data's identity.
      classifier: what the model tells apart, if that is no masked language model; see
        `Target.to_dict`.
    """
    stored = {
        "config": json.loads(config.to_json()),
        "model": dataclasses.asdict(model),
        "dataset": dataset,
    }
    return stored if classifier is None else {**stored, CLASSIFIER: classifier}


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The leaves in which two JSON records differ, as `key: old, now new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys()):
            found += differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if old == new else [f"{key}: {old!r}, now {new!r}"]


def _fixed(stored: dict[str, Any]) -> dict[str, Any]:
    """The part of a record that must stay, without FREE_KEYS."""
    config = {k: dict(v) if isinstance(v, dict) else v for k, v in stored["config"].items()}
    if isinstance(config.get("data"), dict) and config["data"].pop("whole_words", False):
        config["data"]["masking_unit"] = "word"  # as it was called before
    for group, settings in _BEFORE.items():
        if isinstance(config.get(group, {}), dict):
            config[group] = settings | config.get(group, {})
    for key in FREE_KEYS:
        group, _, name = key.partition(".")
        if name:
            config.get(group, {}).pop(name, None)
        else:
            config.pop(group, None)
    model = dataclasses.asdict(BertConfig()) | stored["model"]  # older runs lack newer fields
    kept = ("dataset", CLASSIFIER)
    return {**config, "model": model, **{name: stored[name] for name in kept if name in stored}}


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps a second process out of a run; the lock goes with its process, however that ends.

    Raises:
      InUseError: another process has it.
      UserError: the folder holds something else than a run.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    ours = (workdir / CONFIG_FILE).exists() or (workdir / LOCK_FILE).exists()
    if not ours and any(workdir.iterdir()):
        raise UserError(f"{workdir} is neither empty nor a run; give another --workdir")
    with (workdir / LOCK_FILE).open("a") as file:
        if not try_lock(file):
            raise InUseError(f"{workdir} is in use: another process trains there")
        yield


def is_locked(workdir: pathlib.Path) -> bool:
    """Whether a process is training there; it is not disturbed."""
    try:
        with (workdir / LOCK_FILE).open() as file:
            return not try_lock(file, shared=True)
    except FileNotFoundError:
        return False


def claim(
    workdir: pathlib.Path,
    stored: dict[str, Any],
    tokenizer_files: dict[str, str],
    *,
    extend: bool = False,
) -> list[str]:
    """Makes a folder that is `locked` this run's, or checks that it is.

    A run that has not saved anything yet has nothing to lose, and takes the new settings.

    Args:
      stored: see `make_record`.
      tokenizer_files: the text of each, by name.
      extend: whether a run that has saved takes new settings of EXTENDABLE too.

    Returns:
      How the run was extended: `key: old, now new`.

    Raises:
      UserError: a run with another config, model or data set has begun there.
    """
    path = workdir / CONFIG_FILE
    changed: list[str] = []
    if path.exists():
        found = read_record(workdir)
        stored = stored | {name: found[name] for name in (HISTORY,) if name in found}
        if CONVERTED_FROM in found:
            raise UserError(
                f"{workdir} holds a converted model, and no run to resume; start one from it "
                f"with --config.init_from={workdir} and another --workdir"
            )
        changed = differences(_fixed(found), _fixed(stored))
        places = (workdir / CHECKPOINTS).glob("*")  # an unfinished one has a suffix
        saved = [int(place.name) for place in places if place.name.isdecimal()]
        kept = [
            line for line in changed if not line.startswith(EXTENDABLE) or line.startswith(_BOUND)
        ]
        if saved and changed and (kept or not extend):
            how = (
                "" if kept else f", or --extend to resume from step {max(saved)} with the new ones"
            )
            raise UserError(
                f"{workdir} holds a run with other settings: {'; '.join(kept or changed)}. "
                f"Give these settings again, or another --workdir{how}"
            )
        if saved and changed:
            extended = {"step": max(saved), "changed": changed}
            stored = stored | {HISTORY: [*found.get(HISTORY, ()), extended]}
        elif not saved:
            changed = []
    # First, so that a run killed in the next line is known as a run.
    write_atomically(path, json.dumps(stored, indent=2) + "\n")
    tokenizer = workdir / TOKENIZER
    tokenizer.mkdir(exist_ok=True)
    for name, text in tokenizer_files.items():
        write_atomically(tokenizer / name, text)
    for left in (*workdir.glob(".*.[0-9]*"), *tokenizer.glob(".*")):
        left.unlink()  # half-written files of a run that was killed
    return changed


def read_record(workdir: pathlib.Path) -> dict[str, Any]:
    """The record in config.json.

    Raises:
      UserError: none is there, or it cannot be read.
    """
    path = workdir / CONFIG_FILE
    try:
        stored = json.loads(path.read_text())
        _fixed(stored)
    except FileNotFoundError as error:
        raise UserError(f"{workdir} is not a run: it has no config.json") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a run's record ({error!r})") from error
    return stored
