"""Pretraining as a masked language model: its data, its start and its evaluation."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.integrity import (
    SKIP,
    Findings,
    examine,
    read_seen,
    refuse,
    seen_text,
    shards_of,
    told,
)
from mosaicbert_jax.data.mixture import Mixture
from mosaicbert_jax.data.packing import RowPlanner, packing_efficiency
from mosaicbert_jax.data.pipeline import Batch, Position, batches
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.heads import BertForMaskedLM
from mosaicbert_jax.training import (
    checkpoints,
    configuration,
    flops,
    hosts,
    microbatch,
    sharding,
    workdir,
)
from mosaicbert_jax.training.durations import Duration, Progress
from mosaicbert_jax.training.evaluation import Evaluation, evaluate
from mosaicbert_jax.training.optimizer import optimizer_of
from mosaicbert_jax.training.run import Run
from mosaicbert_jax.training.step import evaluation_step, masked_lm

SEEN_FILE = "data_files.json"  # in a workdir: see `Findings.seen`


@dataclasses.dataclass(frozen=True)
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
        findings = _examined(config.data, folder)
        dataset, validation = _open(config.data, findings)
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
            record=workdir.record(config, model, workdir.identity(dataset)),
            objective=masked_lm(activation_checkpointing=config.train.activation_checkpointing),
            microbatches=shape.microbatches,
            dataset=dataset,
            validation=validation,
            shape=shape,
            findings=findings,
        )

    def files(self) -> dict[str, str]:
        """What is known of the data's files, which are not read again then."""
        return {SEEN_FILE: seen_text(self.findings.seen)}

    def details(self) -> dict[str, str | int]:
        """Damaged shards that are left out."""
        damaged = self.findings.damaged
        if not damaged:
            return {}
        return {
            "left_out_shards": ", ".join(str(shard) for shard in damaged),
            "left_out_sequences": sum(shard.sequences for shard in damaged),
        }

    def settled(self, say: Callable[[str], None]) -> "Pretraining":
        """With the largest microbatch that fits the devices, if the config asks for that."""
        if self.config.train.microbatch_tokens != microbatch.AUTO:
            return self
        length = self.config.data.row_length
        shards = sharding.row_shards(self.mesh)
        here = self.shape.rows // shards
        state = self.abstract_state()
        everywhere = sharding.replicated(self.mesh)
        rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct((), key.dtype, sharding=everywhere)
        batch = microbatch.abstract_batch(
            self.mesh, self.shape.rows, length, self.config.data.masking_rate
        )

        def with_microbatches_of(rows: int) -> Pretraining:
            shape = dataclasses.replace(self.shape, microbatches=here // rows)
            return dataclasses.replace(self, shape=shape, microbatches=shape.microbatches)

        def bytes_of(rows: int) -> int:
            say(f"Choosing the microbatch: compiling for {rows} rows of {length} tokens.")
            step = with_microbatches_of(rows).jitted_step()
            return microbatch.bytes_needed(step.lower(state, batch, rate, key).compile())

        rows, why = microbatch.choose(
            bytes_of, rows=self.shape.rows, row_shards=shards, row_length=length
        )
        say(why)
        return with_microbatches_of(rows)

    @property
    def sequences_per_epoch(self) -> int:
        """Of the data set, or of all in a mixture, without those that are left out."""
        return len(self.dataset) - self.dataset.missing

    @property
    def token_flops(self) -> float:
        """Of a sequence of the longest length."""
        return flops.model_flops_per_token(
            self.model,
            sequence_length=self.dataset.metadata.max_seq_len,
            masking_rate=self.config.data.masking_rate,
        )

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
        return (
            f"{self.parameters:,} parameters, {self.model.dtype}, on {jax.device_count()} x "
            f"{jax.devices()[0].device_kind}\n"
            f"{_described(self.dataset, self.findings)} of {mean:.0f} tokens on average\n"
            f"a step: {shape.rows} rows of {config.data.row_length} tokens in {shape.microbatches} "
            f"microbatch(es), about {per_step:,.0f} sequences, {full:.1%} full\n"
            f"the run: {config.train.duration}{steps}"
        )

    def tokenizer_files(self) -> dict[str, str]:
        """Those of the data set."""
        path = self.dataset.metadata.tokenizer_path
        files = (path, path.parent / "vocab.txt")
        return {file.name: file.read_text(encoding="utf-8") for file in files}

    def initial_params(self, abstract: Any) -> Any:
        """Those of init_from: a run's folder, or one in Hugging Face's layout; else random ones."""
        if not self.config.init_from:
            everywhere = jax.tree.map(lambda x: x.sharding, abstract)

            def init(key):
                model = BertForMaskedLM(self.model, rngs=nnx.Rngs(key))
                return nnx.to_pure_dict(nnx.state(model, nnx.Param))

            return jax.jit(init, out_shardings=everywhere)(jax.random.key(self.config.seed))
        source = pathlib.Path(self.config.init_from)
        if (source / workdir.CHECKPOINTS).is_dir():
            found = BertConfig.from_fields(workdir.read(source)["model"])
            _check_same_model(source, found, self.model)
            return checkpoints.restore_params(source, abstract, self.config.init_from_step)
        model = BertForMaskedLM.from_pretrained(source)
        _check_same_model(source, model.config, self.model)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        return jax.tree.map(
            lambda x, shape: jax.device_put(np.asarray(x), shape.sharding), params, abstract
        )

    def batches(self, position: Position) -> Iterator[Batch]:
        """Packed and masked rows."""
        return batches(
            self.dataset,
            position=position,
            workers=self.config.data.workers,
            rows_per_batch=self.shape.rows,
            masking_rate=self.config.data.masking_rate,
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

    def evaluate(self, params: Any) -> Evaluation | None:
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
        step = _evaluation_step(self.graph)
        with contextlib.closing(stream):
            return evaluate(
                functools.partial(step, params),
                stream,
                self.mesh,
                vocab_size=self.model.vocab_size,
                max_tokens=self.config.eval.max_tokens,
            )


@functools.lru_cache(maxsize=1)
def _evaluation_step(graph):
    return jax.jit(functools.partial(evaluation_step, graph=graph))


def _examined(data: ConfigDict, folder: pathlib.Path) -> Findings:
    """What is wrong with the data's files, on any host.

    Raises:
      UserError: a shard is damaged, and data.on_error does not say to skip it.
    """
    folders = [path for path, _ in data.mixture] if data.mixture else [data.path]
    shards = [shard for path in folders for shard in shards_of(path)]
    found = examine(shards, read_seen(folder / SEEN_FILE))
    # All leave out the same, as the rows of a step are planned by each for all.
    damaged_here = np.array([shard in found.damaged for shard in shards], np.int32)
    damaged = {
        shard: found.damaged.get(shard, "on another host")
        for shard, hosts_with in zip(shards, hosts.summed(damaged_here), strict=True)
        if hosts_with
    }
    if data.on_error != SKIP:
        refuse(damaged, sum(shard.sequences for shard in shards))
    return dataclasses.replace(found, damaged=damaged)


def _open(
    data: ConfigDict, findings: Findings
) -> tuple[TokenDataset | Mixture, TokenDataset | Mixture | None]:
    """What is trained on, and what is held out of it, if anything; both without damaged shards.

    Raises:
      UserError: nothing else is left to train on.
    """
    without: dict[pathlib.Path, list[str]] = {}
    for shard in findings.damaged:
        without.setdefault(shard.folder, []).append(shard.name)
    if data.mixture:
        dataset = Mixture.open(data.mixture, without)
        held_out = dataset.held_out()
    else:
        dataset = TokenDataset(data.path, without=without.get(pathlib.Path(data.path), ()))
        held_out = None
        if "validation" in dataset.metadata.splits:
            held_out = TokenDataset(data.path, "validation", dataset.without)
    if findings.damaged and len(dataset) == dataset.missing:
        raise UserError(f"{told(findings.damaged)}; nothing is left to train on")
    if held_out is not None and len(held_out) == held_out.missing:
        held_out = None
    return dataset, held_out


def _described(dataset: TokenDataset | Mixture, findings: Findings) -> str:
    """The number of sequences; before it what is left out, and each data set of a mixture."""
    lines = []
    if findings.damaged:
        lost = sum(shard.sequences for shard in findings.damaged)
        lines = [f"WITHOUT {lost:,} sequences: {told(findings.damaged)}"]
    if isinstance(dataset, Mixture):
        lines += [
            f"{weight:.1%} of {part.metadata.folder}, read {places / len(part):.2f} times an epoch"
            for part, weight, places in zip(
                dataset.datasets, dataset.weights, dataset.places, strict=True
            )
        ]
    return "\n".join([*lines, f"{len(dataset) - dataset.missing:,} sequences"])


def _check_same_model(source: pathlib.Path, found: BertConfig, wanted: BertConfig) -> None:
    """Raises UserError if parameters of one do not fit the other."""
    shaping = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "type_vocab_size",
        "position_embedding",
        "feed_forward",
    ]
    if wanted.position_embedding == "learned":
        shaping.append("max_position_embeddings")
    changed = [
        f"model.{name} is {getattr(found, name)!r} there and {getattr(wanted, name)!r} here"
        for name in shaping
        if getattr(found, name) != getattr(wanted, name)
    ]
    if changed:
        raise UserError(f"init_from={source} is another model: {'; '.join(changed)}")
