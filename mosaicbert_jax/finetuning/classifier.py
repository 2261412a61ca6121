"""Predictions of a finetuned model."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.finetuning.encoded import EncodedExamples
from mosaicbert_jax.finetuning.examples import Columns
from mosaicbert_jax.finetuning.kinds import KINDS
from mosaicbert_jax.finetuning.objective import jitted_logits, logits_of
from mosaicbert_jax.storage.opening import open_model
from mosaicbert_jax.training import sharding

_BATCH = 64
_MAX_SEQ_LEN = 256


class Classifier:
    """Labels texts.

    Args:
      folder: of a finetuning run, or of a classifier in Hugging Face's layout.
      step: of a run of the same model, to compile it once; see `jitted_logits`.

    Raises:
      UserError: a folder without a finetuned model.
    """

    def __init__(self, folder: pathlib.Path, step: jax.stages.Wrapped | None = None):
        origin = open_model(folder)
        if origin.target is None:
            raise UserError(
                f"{folder} has no classifier; finetune it with "
                f"`mosaicbert train --config finetune --config.init_from={folder}`"
            )
        self.target, self.kind = origin.target, KINDS[origin.target.kind]
        self._tokenizer = origin.tokenizer
        self._data = origin.settings.get("data", {})
        positions = origin.config.max_position_embeddings
        limit = positions if origin.config.position_embedding == "learned" else _MAX_SEQ_LEN
        self._max_seq_len = self._data.get("max_seq_len", min(limit, _MAX_SEQ_LEN))
        graph, params = nnx.split(origin.load())
        self._step = step or jitted_logits(graph)
        self._mesh = sharding.make_mesh(-1)
        everywhere = sharding.replicated(self._mesh)
        self._params = jax.device_put(nnx.to_pure_dict(params), everywhere)

    @property
    def columns(self) -> Columns:
        """Of the texts in the files that the model was finetuned on, as far as is known."""
        return Columns(self._data.get("text", "text"), self._data.get("second_text"))

    def logits(self, examples: Sequence[Any]) -> Float[np.ndarray, "S C"]:
        """What the model gives for each example, or word; their labels are not looked at."""
        return self._logits(self._encoded(examples))

    def __call__(self, examples: Sequence[Any]) -> list[Any]:
        """A `Prediction` for each example; of a model that labels words, a list of classes."""
        encoded = self._encoded(examples)
        return self.kind.predictions(self._logits(encoded), encoded, self.target)

    def _encoded(self, examples: Sequence[Any]) -> EncodedExamples:
        blank = [self.kind.unlabeled(example) for example in examples]
        return self.kind.encode(blank, self._tokenizer, self.target, self._max_seq_len)

    def _logits(self, encoded: EncodedExamples) -> np.ndarray:
        return logits_of(
            self._step,
            self._params,
            encoded,
            self._mesh,
            size=_BATCH,
            row_length=self._max_seq_len,
        )
