"""A finetuning run: its data, its start and its evaluation."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float
from ml_collections import ConfigDict

from mosaicbert_jax import buckets
from mosaicbert_jax.data.pipeline import Batch, Position
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import write_atomically
from mosaicbert_jax.finetuning import configuration
from mosaicbert_jax.finetuning.batching import training_batches
from mosaicbert_jax.finetuning.encoded import EncodedExamples
from mosaicbert_jax.finetuning.kinds import KINDS
from mosaicbert_jax.finetuning.objective import jitted_logits, logits_of
from mosaicbert_jax.finetuning.scores import Scores
from mosaicbert_jax.finetuning.task import Task, read_task
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.storage import workdir
from mosaicbert_jax.storage.opening import (
    StoredModel,
    abstract_params,
    build_model,
    initial_params,
    open_model,
)
from mosaicbert_jax.storage.target import Target
from mosaicbert_jax.text.tokenizer import tokenizer_files
from mosaicbert_jax.training import flops, loop, sharding
from mosaicbert_jax.training.durations import Duration
from mosaicbert_jax.training.optimizer import optimizer_of
from mosaicbert_jax.training.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuning(Run):
    """A run on labeled examples.

    Attributes:
      origin: the model that it starts from.
      metrics: how what is held out is scored.
      train: examples to learn from.
      dev: the held-out sets by name.
      notes: see `Task`.
    """

    origin: StoredModel
    metrics: tuple[str, ...]
    train: EncodedExamples
    dev: Mapping[str, EncodedExamples]
    notes: tuple[str, ...] = ()

    @classmethod
    def prepare(
        cls,
        config: ConfigDict,
        folder: pathlib.Path,
        task: Task | None = None,
        *,
        like: "Finetuning | None" = None,
    ) -> "Finetuning":
        """Checks everything that can be checked before anything is computed or written.

        Args:
          task: None for the one that the config describes.
          like: see `Run`.
        """
        configuration.check(config)
        source = buckets.place(config.init_from)
        origin = open_model(source, config.init_from_step)
        model = configuration.model_config(config, origin.config, source)
        mesh = sharding.make_mesh(**config.mesh)
        sharding.check_width(model, mesh.shape["tensor"])
        task = task or read_task(config)
        notes = list(task.notes)
        if config.optimizer.learning_rate is None:
            config = config.copy_and_resolve_references()
            rate = configuration.scaled_learning_rate(_parameters(model, task.target))
            config.optimizer.learning_rate = float(f"{rate:.2g}")
            notes.append(
                f"optimizer.learning_rate={config.optimizer.learning_rate:g}, by the model's size"
            )
        if "classifier" in origin.heads and not config.renew_classifier:
            _check_same_target(source, origin.target, task.target)

        kind = KINDS[task.target.kind]

        def encoded(examples):
            return kind.encode(examples, origin.tokenizer, task.target, config.data.max_seq_len)

        train, dev = encoded(task.train), {name: encoded(s) for name, s in task.dev.items()}
        digests = "".join(examples.digest for examples in (train, *dev.values()))
        dataset = {"digest": hashlib.sha256(digests.encode()).hexdigest()}
        return cls(
            config=config,
            folder=folder,
            mesh=mesh,
            optimizer=optimizer_of(config.optimizer),
            duration=Duration.parse(config.train.duration, key="train.duration"),
            record=workdir.make_record(config, model, dataset, task.target.to_dict()),
            objective=kind.objective,
            microbatch_rows=None,
            flops_per_token=flops.model_flops_per_token(
                model, sequence_length=config.data.max_seq_len, masking_rate=0.0
            ),
            like=like,
            origin=origin,
            target=task.target,
            metrics=task.metrics,
            train=train,
            dev=dev,
            notes=tuple(notes),
        )

    @property
    def sequences_per_epoch(self) -> int:
        """The examples."""
        return len(self.train)

    def describe(self, position: Position) -> str:
        """Model, data and length."""
        held_out = sum(map(len, self.dev.values()))
        mean = len(self.train.tokens_T) / len(self.train)
        classes = f"{len(self.target.labels)} classes, " if self.target.labels else ""
        notes = [*self.notes]
        if cut := sum(examples.cut for examples in (self.train, *self.dev.values())):
            longest = self.config.data.max_seq_len
            notes.append(f"cut at data.max_seq_len={longest}: {cut:,} of the examples")
        return "".join(f"note: {note}\n" for note in notes) + (
            f"{self.parameters:,} parameters from {self.origin.place}, {self.model.dtype}, on "
            f"{jax.device_count()} x {jax.devices()[0].device_kind}\n"
            f"{self.target.kind}: {classes}{len(self.train):,} examples of {mean:.0f} tokens on "
            f"average, {held_out:,} held out\n"
            f"the run: {self.config.train.duration}, {self.config.train.batch_size} examples a step"
        )

    def tokenizer_files(self) -> dict[str, str]:
        """The origin's."""
        return tokenizer_files(self.origin.tokenizer)

    def initial_params(self, abstract: Any) -> Any:
        """The origin's encoder and heads, and new ones for those that are missing or to renew."""
        renewed = ("classifier",) if self.config.renew_classifier else ()
        kept = tuple(head for head in self.origin.heads if head not in renewed)
        return initial_params(
            self.build, abstract, self.config.seed, origin=self.origin, kept=("bert", *kept)
        )

    def batches(self, position: Position, rows: int | None = None) -> Iterator[Batch]:
        """The recipe's number of examples each, packed."""
        return training_batches(
            self.train,
            position,
            seed=self.config.seed,
            size=self.config.train.batch_size,
            row_length=self.config.data.max_seq_len,
            shards=sharding.row_shards(self.mesh),
        )

    @functools.cached_property
    def logits_step(self) -> jax.stages.Wrapped:
        """See `jitted_logits`."""
        return self.like.logits_step if self.like is not None else jitted_logits(self.graph)

    def logits(self, params: Any, examples: EncodedExamples) -> Float[np.ndarray, "S C"]:
        """See `logits_of`."""
        return logits_of(
            self.logits_step,
            params,
            examples,
            self.mesh,
            size=self.config.eval.batch_size,
            row_length=self.config.data.max_seq_len,
        )

    def evaluate(self, params: Any) -> Scores:
        """The metrics on each held-out set; those of a named set end in its name."""
        values: dict[str, float] = {}
        for name, examples in self.dev.items():
            logits = self.logits(params, examples)
            found = KINDS[self.target.kind].score(logits, examples, self.target, self.metrics)
            ending = f"_{name}" if name else ""
            values |= {f"{metric}{ending}": value for metric, value in found.items()}
        return Scores(values, sum(map(len, self.dev.values())))


def _parameters(model: BertConfig, target: Target) -> int:
    shapes = abstract_params(
        nnx.eval_shape(lambda: build_model(model, target, 0)),
        jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def finetune(config: ConfigDict, folder: pathlib.Path, *, extend: bool = False) -> Scores:
    """Trains the run in `folder` from where it is to its end, and writes results.json.

    Args:
      extend: see `loop.train`.

    Raises:
      UserError: settings or data that cannot be, or a folder that is another run's.
    """
    run = Finetuning.prepare(config, folder)
    scores = loop.train(run, extend=extend)
    assert isinstance(scores, Scores)
    write_results(folder, {"scores": scores.values, "examples": scores.examples})
    width = max(map(len, scores.values))
    print("\n".join(f"{name:{width}}  {value:8.4f}" for name, value in scores.values.items()))
    return scores


def write_results(folder: pathlib.Path, results: dict[str, Any]) -> None:
    """Replaces results.json."""
    write_atomically(folder / workdir.RESULTS_FILE, json.dumps(results, indent=2) + "\n")


def _check_same_target(source: pathlib.Path, found: Target, wanted: Target) -> None:
    """Raises UserError if a classifier tells other things apart than the labels."""
    if (found.kind, found.labels) != (wanted.kind, wanted.labels):
        raise UserError(
            f"the classifier in {source} is for {found}, and the labels here are for {wanted}; "
            "give --config.renew_classifier=True to train it from scratch"
        )
