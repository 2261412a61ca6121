"""A run's folder: what it was started with, and whether it may go on with what it is given now."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import write_atomically
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.training.configuration import FREE_GROUPS

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"


def record(config: ConfigDict, model: BertConfig, dataset: DatasetMetadata) -> dict[str, Any]:
    """What config.json holds: settings, the model as built, and the data set's identity."""
    return {
        "config": json.loads(config.to_json()),
        "model": {name: getattr(model, name) for name in model.__dataclass_fields__},
        "dataset": {"digest": dataset.digest, "max_seq_len": dataset.max_seq_len},
    }


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The leaves in which two JSON records differ, as `key: old, now new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys()):
            found += differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if old == new else [f"{key}: {old!r}, now {new!r}"]


def _fixed(stored: dict[str, Any]) -> dict[str, Any]:
    """The part of a record that must stay; where the data set lies may change, what it is not."""
    config = {k: v for k, v in stored["config"].items() if k not in FREE_GROUPS}
    data = {k: v for k, v in config["data"].items() if k != "path"}
    return {**config, "data": data, "model": stored["model"], "dataset": stored["dataset"]}


def claim(workdir: pathlib.Path, stored: dict[str, Any], dataset: DatasetMetadata) -> None:
    """Makes the folder this run's, or checks that it is.

    A run that has not saved anything yet has nothing to lose, and takes the new settings.

    Raises:
      UserError: a run with another config, model or data set has begun there.
    """
    path = workdir / CONFIG_FILE
    temporary_name = f".{CONFIG_FILE}."
    if path.exists():
        changed = differences(_fixed(read(workdir)), _fixed(stored))
        if changed and any((workdir / CHECKPOINTS).glob("[0-9]*")):
            raise UserError(
                f"{workdir} holds a run with other settings: {'; '.join(changed)}. "
                "Give these settings again, or another --workdir"
            )
    elif workdir.exists() and not all(p.name.startswith(temporary_name) for p in workdir.iterdir()):
        raise UserError(f"{workdir} is neither empty nor a run; give another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    # First, so that a run killed in the next line is known as a run.
    write_atomically(path, json.dumps(stored, indent=2) + "\n")
    tokenizer = workdir / TOKENIZER
    tokenizer.mkdir(exist_ok=True)
    for source in (dataset.tokenizer_path, dataset.tokenizer_path.parent / "vocab.txt"):
        write_atomically(tokenizer / source.name, source.read_text(encoding="utf-8"))
    for left in (*workdir.glob(f"{temporary_name}*"), *tokenizer.glob(".*")):
        left.unlink()


def read(workdir: pathlib.Path) -> dict[str, Any]:
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
