"""What a run may start from: whether a stored model is the run's, and where a decay may begin."""

import dataclasses
import pathlib
from typing import Any

from ml_collections import ConfigDict

from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.storage import checkpoint_files, workdir
from mosaicbert_jax.storage.checkpoint_files import AVERAGE, MODEL, OPTIMIZER
from mosaicbert_jax.storage.opening import StoredModel
from mosaicbert_jax.storage.working_copy import read_copy
from mosaicbert_jax.text.tokenizer import is_lowercase, load_tokenizer

# What may change where a run starts from a model: how it computes, its dropout, and for longer rows
# the rotation.
_FREE_FIELDS = frozenset(
    {
        "dtype",
        "layer_norm_dtype",
        "initializer_range",
        "global_rope_theta",
        "local_rope_theta",
        "classifier_head",
        "classifier_pooling",
    }
)
# What must be alike where a run takes over another's optimizer state.
_OPTIMIZER_KEYS = ("name", "learning_rate", "b1", "b2", "eps", "muon_beta", "weight_decay")
# And for its position in the data.
_DATA_KEYS = ("row_length", "packing", "window_size")


def check_same_tokenizer(key: str, origin: StoredModel, path: pathlib.Path) -> None:
    """Raises UserError if a model was trained with another tokenizer than the one at `path`.

    Args:
      key: the setting that names the model.
    """
    there, here = origin.tokenizer, load_tokenizer(path)
    entry_there = {number: entry for entry, number in there.get_vocab().items()}
    entry_here = {number: entry for entry, number in here.get_vocab().items()}
    why = ""
    for number in sorted(entry_there.keys() | entry_here.keys()):
        if entry_there.get(number) != entry_here.get(number):
            why = f"entry {number} is {entry_there.get(number)!r} there"
            why += f" and {entry_here.get(number)!r} here"
            break
    if not why and is_lowercase(there) != is_lowercase(here):
        why = f"{'that' if is_lowercase(there) else 'this'} one alone lower-cases text"
    if why:
        raise UserError(
            f"{key}={origin.place} was trained with another tokenizer than {path}: {why}; "
            "prepare the text with --tokenizer and that of the model"
        )


def check_same_model(origin: StoredModel, wanted: BertConfig) -> None:
    """Raises UserError if parameters of one do not fit the other."""
    free = _FREE_FIELDS
    if wanted.position_embedding != "learned":
        free = free | {"max_position_embeddings"}
    there, here = vars(origin.config), vars(wanted)
    changed = [
        f"model.{name} is {there[name]!r} there and {here[name]!r} here"
        for name in here
        if there[name] != here[name] and name not in free and "dropout" not in name
    ]
    if changed:
        raise UserError(f"init_from={origin.place} is another model: {'; '.join(changed)}")


@dataclasses.dataclass(frozen=True)
class DecayStart:
    """From where a run with optimizer.schedule="decay" continues another.

    Attributes:
      folder: the other run's.
      step: of its checkpoint.
      position: in the data; the start where this run's data are others.
    """

    folder: pathlib.Path
    step: int
    position: Position


def decay_start(config: ConfigDict, record: dict[str, Any]) -> DecayStart:
    """The checkpoint at which the learning rate of init_from was stable: the last, or the given.

    Args:
      record: of this run; see `workdir.make_record`.

    Raises:
      UserError: init_from has no such checkpoint, or another optimizer.
    """
    folder = read_copy(config.init_from)
    if not workdir.is_run(folder):
        raise UserError(
            f'init_from={folder}: optimizer.schedule="decay" continues a run, with its optimizer '
            "state; give a run's workdir"
        )
    other = workdir.read_record(folder)
    theirs = other["config"].get("optimizer", {})
    changed = [
        f"optimizer.{key} is {theirs[key]} there and {config.optimizer[key]} here"
        for key in _OPTIMIZER_KEYS
        if key in theirs and theirs[key] != config.optimizer[key]
    ]
    if changed:
        raise UserError(
            f"init_from={folder}: the decay starts where that run is: {changed[0]}; "
            "give that run's value"
        )
    stable = checkpoint_files.stable_steps(folder)
    wanted = config.init_from_step
    if not stable or wanted not in (None, *stable):
        asked = "no checkpoint" if wanted is None else f"no checkpoint of step {wanted}"
        there = f"; it has those of {stable}" if stable else ""
        raise UserError(
            f"init_from={folder} has {asked} from which a decay may start, between warmup and "
            f'decay of optimizer.schedule="wsd" or "constant"{there} (checkpoint.keep_stable keeps '
            "them)"
        )
    step = stable[-1] if wanted is None else wanted
    position = Position()
    mine = record["config"]
    same_order = other["config"]["seed"] == mine["seed"] and all(
        other["config"]["data"][key] == mine["data"][key] for key in _DATA_KEYS
    )
    if same_order and other["dataset"] == record["dataset"]:
        found = checkpoint_files.read_records(read_copy(config.init_from, step), step)
        position = Position.from_dict(found["position"])
    whole = read_copy(config.init_from, step, (MODEL, AVERAGE, OPTIMIZER))
    return DecayStart(whole, step, position)
