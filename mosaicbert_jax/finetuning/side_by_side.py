"""Runs of a suite side by side, each in a process that sees one GPU."""

import contextlib
import glob
import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from time import sleep

import mosaicbert_jax
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.finetuning.suite_run import SuiteRun

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_ROOT = pathlib.Path(mosaicbert_jax.__file__).parent.parent
_POLL_SECONDS = 0.2


def side_by_side(runs: Sequence[SuiteRun], processes: int) -> Iterator[SuiteRun]:
    """Finishes the runs, so many at a time, and yields each when it is done.

    They are started in the order given, each as soon as what it starts from is there. What a run
    prints is in SEED.log beside its folder. If one fails, or the caller stops, the others are
    stopped with their checkpoints.

    Raises:
      UserError: fewer GPUs than processes, or what a run failed with.
    """
    free = gpus(processes, os.environ.get(_VISIBLE), len(glob.glob("/dev/nvidia[0-9]*")))
    left, children = list(runs), []
    try:
        while left or children:
            while free and (run := _next(left, is_idle=not children)) is not None:
                left.remove(run)
                children.append(_Child(run, free.pop(0)))
                print(f"\n{run}: {children[-1].log} has its output", flush=True)
            ended = [child for child in children if child.process.poll() is not None]
            for child in ended:
                children.remove(child)
                child.check()
                free.append(child.gpu)
                print(f"\n{child.run}: done", flush=True)
                yield child.run
            if not ended:
                sleep(_POLL_SECONDS)
    finally:
        for child in children:
            child.process.stdin.close()
        for child in children:
            child.process.wait()


def gpus(processes: int, visible: str | None, here: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES for each process; None leaves it as it is, on a machine without GPUs.

    Args:
      visible: CUDA_VISIBLE_DEVICES of this process.
      here: how many GPUs the machine has.

    Raises:
      UserError: fewer GPUs than processes.
    """
    names = [str(i) for i in range(here)]
    if visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip()]
    if not names:
        return [None] * processes
    if len(names) < processes:
        raise UserError(
            f"processes={processes}, each of which wants a GPU, and there are {len(names)}"
        )
    return [*names[:processes]]


def _next(left: Sequence[SuiteRun], *, is_idle: bool) -> SuiteRun | None:
    """The first that can start; while none is running, the first, which then says what it lacks."""
    ready = next((run for run in left if run.is_ready), None)
    return left[0] if ready is None and is_idle and left else ready


class _Child:
    """A process that finishes a run.

    Attributes:
      run: what it finishes.
      gpu: the one that it sees.
      log: the file that has its output.
    """

    def __init__(self, run: SuiteRun, gpu: str | None):
        self.run, self.gpu = run, gpu
        self.log = run.folder.with_name(f"{run.folder.name}.log")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(_ROOT), os.environ.get("PYTHONPATH")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        if gpu is not None:
            environment[_VISIBLE] = gpu
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mosaicbert_jax.finetuning.suite_run"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it through its standard input alone
            )
        with contextlib.suppress(BrokenPipeError):  # it has died; `check` says how
            pickle.dump(run, self.process.stdin)
            self.process.stdin.flush()

    def check(self) -> None:
        """Raises UserError if the run failed."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        if self.process.returncode == 0:
            return
        last = self.log.read_text(errors="replace").rstrip().rpartition("\n")[2]
        raise UserError(
            f"{self.run.task}, seed {self.run.seed}: {last.removeprefix('error: ')} "
            f"(status {self.process.returncode}; {self.log} has its output)"
        )
