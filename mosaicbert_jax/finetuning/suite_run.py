"""One run of a suite, in this process or in one of its own.

Such a process gets its run, pickled, through standard input from the one that started it, and
stops, as after SIGTERM, when that end is closed, however that came about.
"""

import dataclasses
import os
import pathlib
import pickle
import shutil
import signal
import sys
import threading

import jax
from ml_collections import ConfigDict

from mosaicbert_jax import launch
from mosaicbert_jax.errors import explained
from mosaicbert_jax.files import write_atomically
from mosaicbert_jax.finetuning import glue
from mosaicbert_jax.finetuning.classifier import Classifier
from mosaicbert_jax.finetuning.finetuning import Finetuning, write_results
from mosaicbert_jax.finetuning.glue import TASKS
from mosaicbert_jax.storage import workdir
from mosaicbert_jax.training import loop


@dataclasses.dataclass(frozen=True)
class SuiteRun:
    """A task with one seed.

    Attributes:
      task: its name.
      seed: of the run.
      config: its settings.
      folder: its workdir.
      after: the workdir of the run whose model it starts from; None: it waits for none.
      keep: whether others start from its model.
    """

    task: str
    seed: int
    config: ConfigDict
    folder: pathlib.Path
    after: pathlib.Path | None
    keep: bool

    def __str__(self) -> str:
        return f"{self.task}, seed {self.seed}, from {self.config.init_from}"

    @property
    def is_done(self) -> bool:
        """Whether its results are there."""
        return (self.folder / workdir.RESULTS_FILE).exists()

    @property
    def is_ready(self) -> bool:
        """Whether what it starts from is there."""
        return self.after is None or (self.after / workdir.RESULTS_FILE).exists()

    def finish(self, like: Finetuning | None = None) -> Finetuning:
        """Trains to the end, labels the test set, and writes the results last.

        Args:
          like: the run of the same task with another seed, whose compiled steps are used again.

        Raises:
          UserError: as `Finetuning.prepare`.
        """
        place = self.config.data.path
        task = glue.read_glue_task(self.task, place)
        run = Finetuning.prepare(self.config, self.folder, task, like=like)
        scores = loop.train(run)
        for part in TASKS[self.task].dev:
            indices, examples = glue.read_test_set(self.task, place, part)
            if examples:
                classifier = Classifier(self.folder, run.logits_step)
                labels = [found.label for found in classifier(examples)]
                text = glue.submission_text(self.task, indices, labels)
                write_atomically(self.folder / glue.submission_name(self.task, part), text)
        write_results(self.folder, {"scores": scores.values, "examples": scores.examples})
        if not self.keep:
            shutil.rmtree(self.folder / workdir.CHECKPOINTS)  # of Base, 1.6 GB a run
        return run


def main() -> None:
    """What the process does; see `explained` for what ends it otherwise."""
    launch.quiet_orbax()
    with explained("interrupted"):
        run = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
        if jax.default_backend() == "cpu":
            launch.keep_freed_memory()
        run.finish()


def _stop_at_end_of_input() -> None:
    # Not through sys.stdin, whose lock a thread that waits would keep beyond the process's end.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
