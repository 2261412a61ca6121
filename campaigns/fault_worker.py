"""One start of train.py that meets a fault; see campaigns/faults.py."""

import dataclasses
import functools
import json
import os
import pathlib
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from mosaicbert_jax.commands import train as command
from mosaicbert_jax.pretraining import pretraining
from mosaicbert_jax.training import checkpoints, loop
from mosaicbert_jax.training.step import masked_lm

ROOT = pathlib.Path(__file__).parent.parent
HUNG = -1000  # instead of an exit status
FILLER = "filler"
_SMALL_BYTES = 2**14  # more than what the run says, less than a checkpoint's arrays
# About how long each phase lasts; the moment is drawn within it.
_SECONDS = {"start": 4.0, "restore": 0.5, "step": 0.1, "save": 0.4, "evaluation": 0.3}


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to a start, and when.

    Attributes:
      phase: start, restore, step, save or evaluation; "": nothing happens.
      number: of the calls of that phase, from 1.
      moment: share of the phase's usual length after which it happens, 0 to 1.
      signal: sent to the process itself.
      fill: a folder whose file system is filled.
      hold: seconds for which it stays full.
      note: a file for the sums of the tokens of each step's batch, by which batches are known.
    """

    phase: str = ""
    number: int = 1
    moment: float = 0.0
    signal: int = 0
    fill: str = ""
    hold: float = 0.0
    note: str = ""


def train(
    words: Sequence[str], fault: Fault, poisoned: Sequence[int], cache: str, log: str
) -> None:
    """Runs train.py's main with these words, in this process.

    Args:
      poisoned: sums of the tokens of batches whose loss becomes not a number.
      cache: folder of compiled programs.
      log: file for all that is said.
    """
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    sums: list[int] = []
    _arm(fault)
    loop.sharding.place_batch = _noting(loop.sharding.place_batch, sums)
    sys.argv = list(words)
    with mock.patch.object(pretraining, "masked_lm", functools.partial(_poisoned, poisoned)):
        command.main()
    if fault.note:
        pathlib.Path(fault.note).write_text(json.dumps(sums))


def _arm(fault: Fault) -> None:
    """Makes it happen."""
    phases = {
        "restore": (checkpoints.Checkpoints, "restore"),
        "step": (loop.sharding, "place_batch"),
        "save": (checkpoints.Checkpoints, "save"),
        "evaluation": (pretraining.Pretraining, "evaluate"),
    }
    if not fault.phase:
        return
    happen = functools.partial(_happen, fault)
    delay = fault.moment * _SECONDS[fault.phase]
    if fault.phase == "start":
        _after(delay, happen)
        return
    owner, name = phases[fault.phase]
    function, calls = getattr(owner, name), 0

    def called(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == fault.number:
            _after(delay, happen)
        return function(*arguments, **options)

    setattr(owner, name, called)


def _after(delay: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(delay, action)
    timer.daemon = True
    timer.start()


def _happen(fault: Fault) -> None:
    if fault.signal:
        os.kill(os.getpid(), fault.signal)
    if fault.fill:
        _fill(pathlib.Path(fault.fill), fault.hold)


def _fill(folder: pathlib.Path, seconds: float) -> None:
    """Leaves no byte free in a small file system for a while; else forbids files to grow."""
    usage = os.statvfs(folder)
    if usage.f_blocks * usage.f_frsize > 2**30:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_SMALL_BYTES, hard))
        time.sleep(seconds)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return
    path = folder / FILLER
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.write(descriptor, bytes(2**16))
        except OSError:  # full; whatever is freed is taken again
            time.sleep(0.002)
    os.close(descriptor)
    path.unlink()


def _noting(place: Callable[..., Any], sums: list[int]) -> Callable[..., Any]:
    def placed(mesh, arrays):
        sums.append(int(arrays["tokens_BL"].sum()))
        return place(mesh, arrays)

    return placed


def _poisoned(poisoned: Sequence[int], *, activation_checkpointing: bool):
    objective = masked_lm(activation_checkpointing=activation_checkpointing)
    if not poisoned:
        return objective

    def sums(model, batch, dropout_key):
        loss, score = objective.sums(model, batch, dropout_key)
        is_bad = jnp.isin(jnp.sum(batch["tokens_BL"]), jnp.asarray(poisoned))
        return jnp.where(is_bad, jnp.nan, loss), score

    return dataclasses.replace(objective, sums=sums)
