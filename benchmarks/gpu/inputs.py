"""Inputs of real shapes, and the compiled training step."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mosaicbert_jax import BertConfig, BertForMaskedLM
from mosaicbert_jax.data.masking import predictions_per_row
from mosaicbert_jax.training.optimizer import make_optimizer
from mosaicbert_jax.training.step import TrainState, compiler_options, train_step

MASKING_RATE = 0.3
SMALL = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 512,
}


def config_of(name: str, *, rehearse: bool) -> BertConfig:
    """ "mosaicbert_base" or "bert_base" as trained on GPUs, or a small one of the same kind."""
    fields = {"dtype": "float32", **SMALL} if rehearse else {"dtype": "bfloat16"}
    return getattr(BertConfig, name)(**fields)


def packed_ids(rng: np.random.Generator, rows: int, length: int, longest: int = 128) -> np.ndarray:
    """int32[rows, length]: documents one after another, cut where the row ends.

    Their lengths are log-normal, 110 tokens on average, at most `longest`.
    """
    ids_BL = np.zeros((rows, length), np.int32)
    for ids_L in ids_BL:
        lengths = np.clip(rng.lognormal(4.5, 0.6, length), 2, min(longest, length)).astype(int)
        ends = np.cumsum(lengths)
        ends = ends[ends <= length]
        ids_L[: ends[-1]] = np.repeat(np.arange(1, len(ends) + 1), lengths[: len(ends)])
    return ids_BL


def batch_of(
    config: BertConfig, rows: int, length: int, kind: str
) -> tuple[dict[str, jax.Array], int]:
    """A masked batch and how many real tokens it has.

    Args:
      kind: "full", rows of one segment without padding, or "packed".
    """
    rng = np.random.default_rng(0)
    slots = predictions_per_row(length, MASKING_RATE)
    ids_BL = np.ones((rows, length), np.int32)
    if kind == "packed":
        ids_BL = packed_ids(rng, rows, length)
    positions_BP = np.zeros((rows, slots), np.int32)
    weights_BP = np.zeros((rows, slots), np.float32)
    tokens_BL = rng.integers(5, config.vocab_size - 5, (rows, length)) * (ids_BL > 0)
    for row in range(rows):
        chosen = np.flatnonzero((rng.random(length) < MASKING_RATE) & (ids_BL[row] > 0))[:slots]
        positions_BP[row, : len(chosen)], weights_BP[row, : len(chosen)] = chosen, 1
        # As in real text: most of what is predicted is one token, [MASK].
        tokens_BL[row, chosen[rng.random(len(chosen)) < 0.8]] = 4
    arrays = {
        "tokens_BL": tokens_BL.astype(np.int32),
        "segment_ids_BL": ids_BL,
        "positions_BP": positions_BP,
        "labels_BP": rng.integers(5, config.vocab_size - 5, (rows, slots)).astype(np.int32),
        "weights_BP": weights_BP,
    }
    return {name: jnp.asarray(array) for name, array in arrays.items()}, int((ids_BL > 0).sum())


@dataclasses.dataclass
class Step:
    """A compiled training step with its state."""

    program: jax.stages.Compiled
    state: TrainState
    batch: dict[str, jax.Array]

    @classmethod
    def compile(
        cls,
        config: BertConfig,
        batch: dict[str, jax.Array],
        *,
        deterministic: bool = True,
        options: dict[str, Any] | None = None,
    ) -> "Step":
        """Of a model with fresh weights.

        Args:
          deterministic: see `compiler_options`.
          options: more of the compiler's.
        """
        model = nnx.jit(lambda: BertForMaskedLM(config, rngs=nnx.Rngs(0)))()
        graph, params = nnx.split(model, nnx.Param)
        params = nnx.to_pure_dict(params)
        adam = make_optimizer(peak_learning_rate=5e-4, b1=0.9, b2=0.98, eps=1e-6, weight_decay=1e-5)
        state = TrainState(params, jax.jit(adam.init)(params), jnp.zeros((), jnp.int32))
        function = functools.partial(train_step, graph=graph, optimizer=adam)
        platform = jax.default_backend()
        told = compiler_options(deterministic=deterministic, platform=platform)
        jitted = jax.jit(function, donate_argnums=0)
        lowered = jitted.lower(state, batch, *cls._scalars())
        program = lowered.compile(compiler_options={**told, **(options or {})})
        return cls(program, state, batch)

    @staticmethod
    def _scalars() -> tuple[jax.Array, jax.Array]:
        return jnp.float32(1e-4), jax.random.key(0)

    def run(self, steps: int) -> dict[str, jax.Array]:
        """So many steps, enqueued; the metrics of the last one."""
        rate, key = self._scalars()
        for _ in range(steps):
            self.state, metrics = self.program(self.state, self.batch, rate, key)
        return metrics
