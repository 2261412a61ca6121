"""What a finetuned model says about texts."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float
from scipy import special

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.finetuning.encoded import EncodedExamples, encode, encode_tagged
from mosaicbert_jax.finetuning.examples import Columns, Example, TaggedExample
from mosaicbert_jax.finetuning.objective import jitted_logits, logits_of
from mosaicbert_jax.storage.opening import open_model
from mosaicbert_jax.storage.target import REGRESSION
from mosaicbert_jax.training import sharding

_BATCH = 64
_MAX_SEQ_LEN = 256


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What is said of one example.

    Attributes:
      label: the likeliest class, or the number as text.
      probability: of that class; None for a regression.
    """

    label: str
    probability: float | None


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
                f"{folder} has no classifier; finetune it with train.py --config="
                f"configs/finetune.py --config.init_from={folder}"
            )
        self.target = origin.target
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

    def tag(self, examples: Sequence[TaggedExample]) -> list[list[str]]:
        """The class of each word of each example; of words that are cut off, none."""
        blank = [dataclasses.replace(example, labels=None) for example in examples]
        encoded = encode_tagged(blank, self._tokenizer, self.target, self._max_seq_len)
        names_W = [self.target.labels[i] for i in self._logits(encoded).argmax(axis=1)]
        ends_S = np.cumsum(encoded.words(np.arange(len(encoded))))
        starts_S = [0, *ends_S[:-1]]
        return [names_W[begin:end] for begin, end in zip(starts_S, ends_S, strict=True)]

    @property
    def columns(self) -> Columns:
        """Of the texts in the files that the model was finetuned on, as far as is known."""
        return Columns(self._data.get("text", "text"), self._data.get("second_text"))

    def logits(self, examples: Sequence[Example]) -> Float[np.ndarray, "S C"]:
        """What the model gives for each example; their labels are not looked at."""
        blank = [dataclasses.replace(example, label=None) for example in examples]
        return self._logits(encode(blank, self._tokenizer, self.target, self._max_seq_len))

    def _logits(self, encoded: EncodedExamples) -> np.ndarray:
        return logits_of(
            self._step,
            self._params,
            encoded,
            self._mesh,
            size=_BATCH,
            row_length=self._max_seq_len,
        )

    def __call__(self, examples: Sequence[Example]) -> list[Prediction]:
        """The likeliest class of each with its probability, or the number."""
        logits_SC = self.logits(examples)
        if self.target.kind == REGRESSION:
            return [Prediction(f"{value:.4f}", None) for value in logits_SC[:, 0]]
        probabilities_SC = special.softmax(logits_SC, axis=1)
        return [
            Prediction(self.target.labels[row_C.argmax()], float(row_C.max()))
            for row_C in probabilities_SC
        ]
