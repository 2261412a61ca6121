"""Predictions of a finetuned model."""

import pathlib
from collections.abc import Iterator, Sequence
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
_MAX_SEQ_LEN = 512  # where neither the run nor the folder says


class Classifier:
    """Labels texts.

    Args:
      folder: of a finetuning run, or of a classifier in Hugging Face's layout.
      step: of a run of the same model, to compile it once; see `jitted_logits`.

    Attributes:
      max_seq_len: tokens of an example that are read, [CLS] and [SEP] included.
      cut: how many of the examples so far were longer.

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
        self.max_seq_len = origin.max_seq_len or _MAX_SEQ_LEN
        self.cut = 0
        graph, params = nnx.split(origin.load())
        self._step = step or jitted_logits(graph)
        self._mesh = sharding.make_mesh(-1)
        everywhere = sharding.replicated(self._mesh)
        self._params = jax.device_put(nnx.to_pure_dict(params), everywhere)

    @property
    def columns(self) -> Columns:
        """Of the texts in the files that the model was finetuned on, as far as is known."""
        return Columns(self._data.get("text", "text"), self._data.get("second_text"))

    def read(self, path: pathlib.Path | None) -> Iterator[list[Any]]:
        """The examples of a file, or of standard input, a few at a time.

        A line of text may hold a pair, unless the model is known to be one of single texts.
        """
        may_be_pairs = not self._data or self.columns.second_text is not None
        return self.kind.read_unlabeled(path, self.columns, may_be_pairs)

    def logits(self, examples: Sequence[Any]) -> Float[np.ndarray, "S C"]:
        """What the model gives for each example, or word; their labels are not looked at."""
        return self._logits(self._encoded(examples))

    def __call__(self, examples: Sequence[Any]) -> list[Any]:
        """A `Prediction` for each example; of a model that labels words, a list of classes."""
        encoded = self._encoded(examples)
        return self.kind.predictions(self._logits(encoded), encoded, self.target)

    def _encoded(self, examples: Sequence[Any]) -> EncodedExamples:
        blank = [self.kind.unlabeled(example) for example in examples]
        found = self.kind.encode(blank, self._tokenizer, self.target, self.max_seq_len)
        self.cut += found.cut
        return found

    def _logits(self, encoded: EncodedExamples) -> np.ndarray:
        return logits_of(
            self._step,
            self._params,
            encoded,
            self._mesh,
            size=_BATCH,
            row_length=self.max_seq_len,
        )
