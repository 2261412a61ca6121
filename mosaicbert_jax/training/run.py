"""What a run is made of, checked before anything is computed or written."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.mixture import Mixture
from mosaicbert_jax.data.packing import RowPlanner, packing_efficiency
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.heads import BertForMaskedLM
from mosaicbert_jax.training import checkpoints, configuration, sharding, workdir
from mosaicbert_jax.training.durations import Duration, Progress
from mosaicbert_jax.training.optimizer import make_optimizer
from mosaicbert_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last.

    Attributes:
      config: as given.
      folder: the workdir.
      dataset, validation: the splits; validation is None if nothing is held out.
      model: the config of the model as built.
      graph: of that model, without its parameters.
      mesh: all devices.
      optimizer: see `make_optimizer`.
      shape: of a step's batch.
      duration: of the run.
      record: what config.json and every checkpoint hold.
    """

    config: ConfigDict
    folder: pathlib.Path
    dataset: TokenDataset | Mixture
    validation: TokenDataset | Mixture | None
    model: BertConfig
    graph: nnx.GraphDef
    mesh: Mesh
    optimizer: optax.GradientTransformation
    shape: configuration.BatchShape
    duration: Duration
    record: dict[str, Any]

    @classmethod
    def prepare(cls, config: ConfigDict, folder: pathlib.Path) -> "Run":
        """Checks everything that can be checked before anything is computed or written."""
        configuration.check(config)
        dataset, validation = _open(config.data)
        metadata = dataset.metadata
        model = configuration.model_config(config, metadata)
        mesh = sharding.make_mesh(**config.mesh)
        shape = configuration.batch_shape(config, sharding.row_shards(mesh))
        record = workdir.record(config, model, dataset)
        if config.data.row_length < metadata.max_seq_len:
            raise UserError(
                f"data.row_length={config.data.row_length} is shorter than the data set's longest "
                f"sequences; use at least {metadata.max_seq_len}"
            )
        graph, _ = nnx.split(nnx.eval_shape(lambda: BertForMaskedLM(model, rngs=nnx.Rngs(0))))
        return cls(
            config=config,
            folder=folder,
            dataset=dataset,
            validation=validation,
            model=model,
            graph=graph,
            mesh=mesh,
            optimizer=make_optimizer(
                peak_learning_rate=config.optimizer.learning_rate,
                b1=config.optimizer.b1,
                b2=config.optimizer.b2,
                eps=config.optimizer.eps,
                weight_decay=config.optimizer.weight_decay,
            ),
            shape=shape,
            duration=Duration.parse(config.train.duration, key="train.duration"),
            record=record,
        )

    def describe(self) -> str:
        """The run in a few lines, for the terminal."""
        config, shape = self.config, self.shape
        planner = RowPlanner(
            self.dataset,
            config.data.row_length,
            config.seed,
            config.data.packing,
            config.data.window_size,
        )
        window = planner.plan(0, 0)
        per_step = shape.rows * len(window.sequences_S) / window.num_rows
        mean = window.lengths_S.mean()
        full = packing_efficiency(window.lengths_S, window.num_rows, config.data.row_length)
        step = Progress(step=1, sequences=per_step, tokens=per_step * mean)
        steps = "" if self.duration.is_time else f", about {1 / self.share(step):,.0f} steps"
        return (
            f"{self.parameters:,} parameters, {self.model.dtype}, on {jax.device_count()} x "
            f"{jax.devices()[0].device_kind}\n"
            f"{_described(self.dataset)} of {mean:.0f} tokens on average\n"
            f"a step: {shape.rows} rows of {config.data.row_length} tokens in {shape.microbatches} "
            f"microbatch(es), about {per_step:,.0f} sequences, {full:.1%} full\n"
            f"the run: {config.train.duration}{steps}"
        )

    @property
    def parameters(self) -> int:
        """How many the model has."""
        return sum(x.size for x in jax.tree.leaves(self.abstract_state().params))

    def share(self, progress: Progress) -> float:
        """How much of the run is completed; 1.0 ends it."""
        return self.duration.count(progress, len(self.dataset))

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, with nothing allocated."""
        params = checkpoints.abstract_params(self.model, sharding.replicated(self.mesh))
        optimizer_state = jax.eval_shape(self.optimizer.init, params)
        state = TrainState(params, optimizer_state, jax.ShapeDtypeStruct((), jnp.int32))
        return sharding.stored(self.mesh, state)


def _open(
    data: ConfigDict,
) -> tuple[TokenDataset | Mixture, TokenDataset | Mixture | None]:
    """What is trained on, and what is held out of it, if anything."""
    if data.mixture:
        mixture = Mixture.open(data.mixture)
        return mixture, mixture.held_out()
    dataset = TokenDataset(data.path)
    if "validation" not in dataset.metadata.splits:
        return dataset, None
    return dataset, TokenDataset(data.path, "validation")


def _described(dataset: TokenDataset | Mixture) -> str:
    """The number of sequences; before it a line for each data set of a mixture."""
    lines = []
    if isinstance(dataset, Mixture):
        lines = [
            f"{weight:.1%} of {part.metadata.folder}, read {places / len(part):.2f} times an epoch"
            for part, weight, places in zip(
                dataset.datasets, dataset.weights, dataset.places, strict=True
            )
        ]
    return "\n".join([*lines, f"{len(dataset):,} sequences"])
