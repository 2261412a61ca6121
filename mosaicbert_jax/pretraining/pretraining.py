"""Pretraining as a masked language model: its data, its start and its evaluation."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.integrity import Findings, seen_text
from mosaicbert_jax.data.mixture import Mixture
from mosaicbert_jax.data.packing import RowPlanner, packing_efficiency
from mosaicbert_jax.data.pipeline import Batch, Position, batches
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.pretraining import configuration, microbatch
from mosaicbert_jax.pretraining.evaluation import MaskedLMScores, evaluate
from mosaicbert_jax.pretraining.opening import (
    SEEN_FILE,
    describe_data,
    examine_data,
    identity,
    open_data,
)
from mosaicbert_jax.storage import workdir
from mosaicbert_jax.storage.opening import StoredModel, initial_params, open_model
from mosaicbert_jax.text.tokenizer import is_lowercase, load_tokenizer
from mosaicbert_jax.training import flops, sharding
from mosaicbert_jax.training.durations import Duration, Progress
from mosaicbert_jax.training.optimizer import optimizer_of
from mosaicbert_jax.training.run import Run
from mosaicbert_jax.training.step import evaluation_step, masked_lm

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining(Run):
    """A run on prepared text.

    Attributes:
      dataset, validation: the splits; validation is None if nothing is held out.
      shape: of a step's batch.
      findings: what reading the data's files has shown.
    """

    dataset: TokenDataset | Mixture
    validation: TokenDataset | Mixture | None
    shape: configuration.BatchShape
    findings: Findings

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
        return cls(
            config=config,
            folder=folder,
            mesh=mesh,
            optimizer=optimizer_of(config.optimizer),
            duration=Duration.parse(config.train.duration, key="train.duration"),
            record=workdir.make_record(config, model, identity(dataset)),
            objective=masked_lm(activation_checkpointing=config.train.activation_checkpointing),
            microbatches=shape.microbatches,
            flops_per_token=flops.model_flops_per_token(
                model,
                sequence_length=metadata.max_seq_len,
                masking_rate=config.data.masking_rate,
            ),
            dataset=dataset,
            validation=validation,
            shape=shape,
            findings=findings,
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
            microbatches = self.shape.rows // sharding.row_shards(self.mesh) // rows
            shape = dataclasses.replace(self.shape, microbatches=microbatches)
            return dataclasses.replace(self, shape=shape, microbatches=microbatches)

        rows = microbatch.search(
            lambda rows: with_microbatches_of(rows).train_step,
            self.abstract_state(),
            self.mesh,
            rows=self.shape.rows,
            row_length=self.config.data.row_length,
            masking_rate=self.config.data.masking_rate,
            say=say,
        )
        return with_microbatches_of(rows)

    @property
    def sequences_per_epoch(self) -> int:
        """Of the data set, or of all in a mixture, without those that are skipped."""
        return len(self.dataset) - self.dataset.missing

    def describe(self) -> str:
        """Model, data, batch and length."""
        config, shape = self.config, self.shape
        planner = RowPlanner(
            self.dataset,
            config.data.row_length,
            config.seed,
            config.data.packing,
            config.data.window_size,
        )
        windows = (planner.plan(0, window) for window in range(planner.num_windows))
        window = next(window for window in windows if window.num_rows)
        per_step = shape.rows * len(window.sequences_S) / window.num_rows
        mean = window.lengths_S.mean()
        full = packing_efficiency(window.lengths_S, window.num_rows, config.data.row_length)
        step = Progress(step=1, sequences=per_step, tokens=per_step * mean)
        steps = "" if self.duration.is_time else f", about {1 / self.share(step):,.0f} steps"
        if not self.duration.is_time and self.share(step) > 1:
            steps = ", which is less than one step; one is made"
        return (
            f"{self.parameters:,} parameters, {self.model.dtype}, on {jax.device_count()} x "
            f"{jax.devices()[0].device_kind}\n"
            f"{describe_data(self.dataset, self.findings)} of {mean:.0f} tokens on average\n"
            f"a step: {shape.rows} rows of {config.data.row_length} tokens in {shape.microbatches} "
            f"microbatch(es), about {per_step:,.0f} sequences, {full:.1%} full\n"
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
            _check_same_model(origin, self.model)
            _check_same_tokenizer(origin, self.dataset.metadata.tokenizer_path)
        return initial_params(
            self.build,
            abstract,
            self.config.seed,
            origin=origin,
            kept=tuple(abstract),
        )

    def batches(self, position: Position) -> Iterator[Batch]:
        """Packed and masked rows."""
        return batches(
            self.dataset,
            position=position,
            workers=self.config.data.workers,
            rows_per_batch=self.shape.rows,
            masking_rate=self.config.data.masking_rate,
            whole_words=self.config.data.whole_words,
            **self._stream_settings(),
        )

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
            rows_per_batch=self.shape.rows // self.shape.microbatches,
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


def _check_same_tokenizer(origin: StoredModel, path: pathlib.Path) -> None:
    """Raises UserError if a model was trained with another tokenizer than the one at `path`."""
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
            f"init_from={origin.place} was trained with another tokenizer than {path}: {why}; "
            "prepare the text with --tokenizer and that of the model"
        )


def _check_same_model(origin: StoredModel, wanted: BertConfig) -> None:
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
