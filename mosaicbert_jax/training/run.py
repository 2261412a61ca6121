"""The interface of a run, which pretraining and finetuning implement for the training loop."""

import abc
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mosaicbert_jax.data.pipeline import Batch, Position
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.storage.opening import abstract_params, build_model
from mosaicbert_jax.storage.target import Target
from mosaicbert_jax.training import sharding
from mosaicbert_jax.training.durations import Duration, Progress
from mosaicbert_jax.training.schedule import Schedule
from mosaicbert_jax.training.step import Objective, TrainState, compiler_options, train_step


class Evaluation(Protocol):
    """What an evaluation found; str() is a line for the terminal."""

    def row(self) -> dict[str, Any]:
        """As the row of metrics.jsonl."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(abc.ABC):
    """What stays the same from the first step to the last.

    Attributes:
      config: as given.
      folder: the workdir.
      mesh: all devices.
      optimizer: see `make_optimizer`.
      duration: of the run.
      record: what config.json and every checkpoint hold.
      objective: what a step learns from a batch.
      microbatch_rows: of a batch, that a device works on at a time; None: all of its rows.
      flops_per_token: see `model_flops_per_token`.
      target: what a classifier predicts; None is masked tokens.
      like: a run that differs in seed and data alone, whose compiled steps this one uses.
    """

    config: ConfigDict
    folder: pathlib.Path
    mesh: Mesh
    optimizer: optax.GradientTransformation
    duration: Duration
    record: dict[str, Any]
    objective: Objective
    microbatch_rows: int | None
    flops_per_token: float
    target: Target | None = None
    like: Self | None = None

    @property
    @abc.abstractmethod
    def sequences_per_epoch(self) -> int:
        """How many an epoch has."""

    @abc.abstractmethod
    def describe(self, position: Position) -> str:
        """The run in a few lines, for the terminal.

        Args:
          position: in the data, from where it trains.
        """

    @abc.abstractmethod
    def tokenizer_files(self) -> dict[str, str]:
        """The tokenizer: the text of each file, by name."""

    @abc.abstractmethod
    def initial_params(self, abstract: Any) -> Any:
        """The parameters before the first step, laid out as `abstract` says."""

    def inherited(self, abstract: TrainState) -> tuple[optax.OptState, Position] | None:
        """Another run's optimizer state, and position in the data, to start with; None: new ones.

        Args:
          abstract: how the state is laid out.
        """
        return None

    @abc.abstractmethod
    def batches(self, position: Position, rows: int | None = None) -> Iterator[Batch]:
        """What is trained on from there, without end; has a method close().

        Args:
          rows: of each, see `batch_rows`; None: the whole batch.
        """

    @abc.abstractmethod
    def evaluate(self, params: Any) -> Evaluation | None:
        """Evaluates on what is held out, if anything is."""

    def files(self) -> dict[str, str]:
        """Other files to keep in its folder: the text of each, by name."""
        return {}

    def details(self) -> dict[str, str | int]:
        """Details for the event that records its start, by name."""
        return {}

    def batch_rows(self, share: float) -> int | None:
        """Rows of a step's batch at that share of the run; None: the whole batch."""
        return None

    def arrays(self, batch: Batch, share: float) -> dict[str, np.ndarray]:
        """What a step at that share of the run is given of a batch."""
        return batch.arrays

    @property
    def frozen(self) -> tuple[Any, ...]:
        """What the objective reads besides model and batch, on the mesh; see `Objective`."""
        return ()

    def settled(self, say: Callable[[str], None]) -> Self:
        """With all that depends on the devices' memory decided; under the run's mesh.

        Args:
          say: takes a line for the terminal.
        """
        return self

    @functools.cached_property
    def train_step(self) -> jax.stages.Wrapped:
        """`step.train_step` on the run's mesh, jitted; the state is donated."""
        if self.like is not None:
            return self.like.train_step
        step = functools.partial(
            train_step,
            graph=self.graph,
            optimizer=self.optimizer,
            objective=self.objective,
            microbatch_rows=self.microbatch_rows,
            ema_decay=self.config.optimizer.ema_decay,
        )
        options = compiler_options(
            deterministic=self.config.train.deterministic, platform=jax.default_backend()
        )
        return jax.jit(step, donate_argnums=0, compiler_options=options)

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The learning rate over the run."""
        return Schedule.of(self.config.optimizer)

    @property
    def model(self) -> BertConfig:
        """The config of the model as built."""
        return BertConfig.from_fields(self.record["model"])

    def build(self, seed: int | jax.Array) -> nnx.Module:
        """The model with random weights from a seed or a key."""
        return build_model(self.model, self.target, seed)

    @functools.cached_property
    def _abstract_model(self) -> nnx.Module:
        return nnx.eval_shape(lambda: self.build(0))

    @functools.cached_property
    def graph(self) -> nnx.GraphDef:
        """Of the model, without its parameters."""
        return nnx.split(self._abstract_model)[0]

    @functools.cached_property
    def parameters(self) -> int:
        """How many the model has."""
        return sum(x.size for x in jax.tree.leaves(self.abstract_state().params))

    def share(self, progress: Progress) -> float:
        """How much of the run is completed; 1.0 ends it."""
        return self.duration.count(progress, self.sequences_per_epoch)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, with nothing allocated."""
        everywhere = sharding.replicated(self.mesh)
        params = abstract_params(self._abstract_model, everywhere)
        optimizer_state = jax.eval_shape(self.optimizer.init, params)
        average = None if self.config.optimizer.ema_decay is None else params
        state = TrainState(params, optimizer_state, jax.ShapeDtypeStruct((), jnp.int32), average)
        return sharding.stored(self.mesh, state)
