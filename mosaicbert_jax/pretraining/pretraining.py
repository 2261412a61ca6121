"""Pretraining as a masked language model: its data, its start and its evaluation."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.integrity import Findings, seen_text
from mosaicbert_jax.data.masking import thinned
from mosaicbert_jax.data.mixture import Mixture
from mosaicbert_jax.data.packing import RowPlanner, packing_efficiency
from mosaicbert_jax.data.pipeline import Batch, Position, batches
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.pretraining import configuration, microbatch
from mosaicbert_jax.pretraining.evaluation import MaskedLMScores, evaluate
from mosaicbert_jax.pretraining.opening import (
    SEEN_FILE,
    describe_data,
    examine_data,
    identity,
    open_data,
)
from mosaicbert_jax.pretraining.origin import (
    DecayStart,
    check_same_model,
    check_same_tokenizer,
    decay_start,
)
from mosaicbert_jax.pretraining.teacher import Teacher
from mosaicbert_jax.storage import checkpoint_files, workdir
from mosaicbert_jax.storage.checkpoint_files import MODEL, OPTIMIZER
from mosaicbert_jax.storage.opening import initial_params, open_model
from mosaicbert_jax.training import flops, sharding
from mosaicbert_jax.training.durations import Duration, Progress
from mosaicbert_jax.training.optimizer import optimizer_of
from mosaicbert_jax.training.run import Run
from mosaicbert_jax.training.step import TrainState, distilled, evaluation_step, masked_lm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining(Run):
    """A run on prepared text.

    Attributes:
      dataset, validation: the splits; validation is None if nothing is held out.
      shape: of a step's batch.
      masking_rates: at the start and at the end.
      findings: what reading the data's files has shown.
      teacher: what the model learns from besides the text.
    """

    dataset: TokenDataset | Mixture
    validation: TokenDataset | Mixture | None
    shape: configuration.BatchShape
    masking_rates: tuple[float, float]
    findings: Findings
    teacher: Teacher | None

    @classmethod
    def prepare(cls, config: ConfigDict, folder: pathlib.Path) -> "Pretraining":
        """Checks everything that can be checked before anything is computed or written."""
        configuration.check(config)
        findings = examine_data(config.data, folder)
        dataset, validation = open_data(config.data, findings)
        metadata = dataset.metadata
        model = configuration.model_config(config, metadata)
        mesh = sharding.make_mesh(**config.mesh)
        sharding.check_width(model, mesh.shape["tensor"])
        shape = configuration.batch_shape(config, sharding.row_shards(mesh))
        if config.data.row_length < metadata.max_seq_len:
            raise UserError(
                f"data.row_length={config.data.row_length} is shorter than the data set's longest "
                f"sequences; use at least {metadata.max_seq_len}"
            )
        rates = configuration.masking_rates(config)
        teacher, objective = None, masked_lm
        if config.distill.teacher:
            teacher = Teacher.open(config.distill, model, metadata)
            objective = functools.partial(
                distilled,
                teacher.graph,
                weight=config.distill.weight,
                temperature=config.distill.temperature,
            )
        flops_of = functools.partial(
            flops.model_flops_per_token,
            sequence_length=metadata.max_seq_len,
            masking_rate=sum(rates) / 2,
        )
        return cls(
            config=config,
            folder=folder,
            mesh=mesh,
            optimizer=optimizer_of(config.optimizer),
            duration=Duration.parse(config.train.duration, key="train.duration"),
            record=workdir.make_record(config, model, identity(dataset)),
            objective=objective(activation_checkpointing=config.train.activation_checkpointing),
            microbatch_rows=shape.microbatch_rows,
            # Forward, the teacher's part, is a third of forward and backward.
            flops_per_token=flops_of(model) + (flops_of(teacher.config) / 3 if teacher else 0),
            dataset=dataset,
            validation=validation,
            shape=shape,
            masking_rates=rates,
            findings=findings,
            teacher=teacher,
        )

    def files(self) -> dict[str, str]:
        """What is known of the data's files, which are not read again then."""
        return {SEEN_FILE: seen_text(self.findings.seen)}

    def details(self) -> dict[str, str | int]:
        """Damaged shards that are skipped."""
        damaged = self.findings.damaged
        if not damaged:
            return {}
        return {
            "skipped_shards": ", ".join(str(shard) for shard in damaged),
            "skipped_sequences": sum(shard.sequences for shard in damaged),
        }

    def settled(self, say: Callable[[str], None]) -> "Pretraining":
        """With the largest microbatch that fits the devices, if the config asks for that."""
        if self.config.train.microbatch_tokens != microbatch.AUTO:
            return self

        def with_microbatches_of(rows: int) -> Pretraining:
            shape = dataclasses.replace(self.shape, microbatch_rows=rows)
            return dataclasses.replace(self, shape=shape, microbatch_rows=rows)

        rows = microbatch.search(
            lambda rows: with_microbatches_of(rows).train_step,
            self.abstract_state(),
            self.mesh,
            rows=self.shape.rows,
            row_length=self.config.data.row_length,
            masking_rate=max(self.masking_rates),
            masking_unit=self.config.data.masking_unit,
            frozen=() if self.teacher is None else (self.teacher.abstract_params(self.mesh),),
            say=say,
        )
        return with_microbatches_of(rows)

    @property
    def sequences_per_epoch(self) -> int:
        """Of the data set, or of all in a mixture, without those that are skipped."""
        return len(self.dataset) - self.dataset.missing

    def describe(self, position: Position) -> str:
        """Model, data, batch and length."""
        config, shape = self.config, self.shape
        planner = RowPlanner(
            self.dataset,
            config.data.row_length,
            config.seed,
            config.data.packing,
            config.data.window_size,
        )
        # Those at hand: of a bucket, no other shards are fetched for this.
        order = itertools.chain(range(position.window, planner.num_windows), range(position.window))
        windows = (planner.plan(position.epoch, window) for window in order)
        window = next(window for window in windows if window.num_rows)
        per_step = shape.rows * len(window.sequences_S) / window.num_rows
        mean = window.lengths_S.mean()
        full = packing_efficiency(window.lengths_S, window.num_rows, config.data.row_length)
        step = Progress(step=1, sequences=per_step, tokens=per_step * mean)
        steps = "" if self.duration.is_time else f", about {1 / self.share(step):,.0f} steps"
        if not self.duration.is_time and self.share(step) > 1:
            steps = ", which is less than one step; one is made"
        microbatches = shape.rows // sharding.row_shards(self.mesh) // shape.microbatch_rows
        grows = ""
        if shape.first_rows < shape.rows:
            grows = f", growing from {shape.first_rows} rows over {config.train.batch_warmup:.1%}"
        teacher = "" if self.teacher is None else f"learning from {config.distill.teacher}, "
        return (
            f"{self.parameters:,} parameters, {teacher}{self.model.dtype}, on "
            f"{jax.device_count()} x {jax.devices()[0].device_kind}\n"
            f"{describe_data(self.dataset, self.findings)} of {mean:.0f} tokens on average\n"
            f"a step: {shape.rows} rows of {config.data.row_length} tokens in {microbatches} "
            f"microbatch(es), about {per_step:,.0f} sequences, {full:.1%} full{grows}\n"
            f"the run: {config.train.duration}{steps}"
        )

    def tokenizer_files(self) -> dict[str, str]:
        """Those of the data set."""
        path = self.dataset.metadata.tokenizer_path
        files = (path, path.parent / "vocab.txt")  # of WordPiece alone
        return {file.name: file.read_text(encoding="utf-8") for file in files if file.exists()}

    def initial_params(self, abstract: Any) -> Any:
        """Those of init_from: a run's folder, or one in Hugging Face's layout; else random ones."""
        origin = None
        if self.config.init_from:
            origin = open_model(self.config.init_from, self.config.init_from_step)
            check_same_model(origin, self.model)
            check_same_tokenizer("init_from", origin, self.dataset.metadata.tokenizer_path)
        if (decay := self._decay_start) is not None:
            # Those that the other run would train on, not their average.
            return checkpoint_files.read_part(decay.folder, MODEL, abstract, decay.step)
        return initial_params(
            self.build,
            abstract,
            self.config.seed,
            origin=origin,
            kept=tuple(abstract),
        )

    def inherited(self, abstract: TrainState) -> tuple[optax.OptState, Position] | None:
        """Those of the run whose learning rate is to decay."""
        if (decay := self._decay_start) is None:
            return None
        state = checkpoint_files.read_part(
            decay.folder, OPTIMIZER, abstract.optimizer_state, decay.step
        )
        return state, decay.position

    @functools.cached_property
    def _decay_start(self) -> DecayStart | None:
        if self.config.optimizer.schedule != "decay":
            return None
        return decay_start(self.config, self.record)

    def batches(self, position: Position, rows: int | None = None) -> Iterator[Batch]:
        """Packed and masked rows."""
        return batches(
            self.dataset,
            position=position,
            workers=self.config.data.workers,
            rows_per_batch=rows or self.shape.rows,
            masking_rate=max(self.masking_rates),
            masking_unit=self.config.data.masking_unit,
            with_draws=self._rate_changes,
            **self._stream_settings(),
        )

    def batch_rows(self, share: float) -> int:
        """Grows linearly over train.batch_warmup, in multiples of the first batch."""
        shape, warmup = self.shape, self.config.train.batch_warmup
        if share >= warmup:
            return shape.rows
        grown = shape.first_rows + (shape.rows - shape.first_rows) * share / warmup
        return int(grown // shape.first_rows) * shape.first_rows

    @property
    def _rate_changes(self) -> bool:
        first, last = self.masking_rates
        return first != last

    def arrays(self, batch: Batch, share: float) -> dict[str, np.ndarray]:
        """Masked at the rate of that share of the run."""
        if not self._rate_changes:
            return batch.arrays
        first, last = self.masking_rates
        return thinned(batch.arrays, batch.draws_BP, first + (last - first) * min(share, 1.0))

    @functools.cached_property
    def frozen(self) -> tuple[Any, ...]:
        """The teacher's parameters."""
        return () if self.teacher is None else (self.teacher.read_params(self.mesh),)

    def _stream_settings(self) -> dict[str, Any]:
        index, count = sharding.host_part(self.mesh)
        return {
            "row_length": self.config.data.row_length,
            "packing": self.config.data.packing,
            "window_size": self.config.data.window_size,
            "seed": self.config.seed,
            "process_index": index,
            "process_count": count,
        }

    @functools.cached_property
    def _evaluation_step(self) -> jax.stages.Wrapped:
        return jax.jit(functools.partial(evaluation_step, graph=self.graph))

    def evaluate(self, params: Any) -> MaskedLMScores | None:
        """Masked-language-model loss and accuracy on the validation split, if there is one."""
        if self.validation is None:
            return None
        # A thread's: workers would take longer to start than many an evaluation lasts.
        stream = batches(
            self.validation,
            rows_per_batch=self.shape.microbatch_rows * sharding.row_shards(self.mesh),
            masking_rate=self.config.eval.masking_rate,
            epochs=1,
            **self._stream_settings(),
        )
        step = self._evaluation_step
        with contextlib.closing(stream):
            return evaluate(
                functools.partial(step, params),
                stream,
                self.mesh,
                vocab_size=self.model.vocab_size,
                max_tokens=self.config.eval.max_tokens,
            )
