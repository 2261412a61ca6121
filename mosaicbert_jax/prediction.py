"""Masked token prediction with a trained model."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.heads import BertForMaskedLM
from mosaicbert_jax.storage.opening import open_model
from mosaicbert_jax.text.tokenizer import (
    check_vocabulary,
    encode_texts,
    is_wordpiece,
    of_plain_text,
    shown_token,
    special_token_ids,
    vocab_size,
)

MASK = "[MASK]"


@dataclasses.dataclass(frozen=True)
class Guess:
    """A token for a mask, with the probability that the model gives it."""

    token: str
    probability: float


class FillMask:
    """Guesses what stands behind [MASK].

    Args:
      model: in any dtype.
      tokenizer: the one that it was trained with.
    """

    def __init__(self, model: BertForMaskedLM, tokenizer: Tokenizer):
        self._model = model
        self.tokenizer = tokenizer
        self.special_ids = special_token_ids(tokenizer)
        self._plain = of_plain_text(tokenizer)
        self._entries = vocab_size(tokenizer)
        check_vocabulary(tokenizer, model.config.vocab_size, "fill-mask")
        self._logits = jax.jit(lambda tokens, segments: model(tokens, segments))

    @classmethod
    def open(cls, place: pathlib.Path) -> "FillMask":
        """From the last checkpoint of a run, or from a folder in Hugging Face's layout.

        Raises:
          UserError: there is no masked language model at that path.
        """
        stored = open_model(place)
        if stored.target is not None:
            raise UserError(
                f"{place} holds a finetuned model, which predicts no masked tokens; label texts "
                f"with `mosaicbert predict {place} FILE`"
            )
        return cls(stored.load(), stored.tokenizer)

    def __call__(self, text: str, *, top: int = 5) -> list[list[Guess]]:
        """The `top` likeliest tokens for each [MASK] of the text, in its order.

        Special tokens are not guessed.

        Raises:
          UserError: the text has no [MASK].
        """
        own = self.tokenizer.id_to_token(self.special_ids.mask)
        parts = text.replace(own, MASK).split(MASK)
        if len(parts) == 1:
            raise UserError(f"{text!r} has no {MASK}; put one where a word is to be predicted")
        if not is_wordpiece(self.tokenizer):
            # The space before a mask is the mask's, as in training.
            parts = [*(part.rstrip() for part in parts[:-1]), parts[-1]]
        tokens = [self.special_ids.cls]
        for index, part in enumerate(encode_texts(self._plain, parts)):
            tokens += ([self.special_ids.mask] if index else []) + part.tolist()
        tokens.append(self.special_ids.sep)
        config = self._model.config
        if config.position_embedding == "learned" and len(tokens) > config.max_position_embeddings:
            raise UserError(
                f"a text of {len(tokens)} tokens is longer than the model's "
                f"{config.max_position_embeddings} positions; shorten it"
            )
        # Whole blocks of 32, so that texts of like length share one compiled program.
        padded = np.full((1, -(-len(tokens) // 32) * 32), self.special_ids.pad, np.int32)
        padded[0, : len(tokens)] = tokens
        segments = np.zeros_like(padded)
        segments[0, : len(tokens)] = 1
        logits_LV = self._logits(jnp.asarray(padded), jnp.asarray(segments))[0]
        mask_columns_M = np.flatnonzero(padded[0] == self.special_ids.mask)
        logits_MV = np.array(logits_LV[mask_columns_M, : self._entries], np.float32)
        logits_MV[:, list(dataclasses.astuple(self.special_ids))] = -np.inf
        exp_MV = np.exp(logits_MV - logits_MV.max(axis=1, keepdims=True))
        probabilities_MV = exp_MV / exp_MV.sum(axis=1, keepdims=True)
        return [
            [
                Guess(shown_token(self.tokenizer, int(index)), float(row_V[index]))
                for index in np.argsort(-row_V, kind="stable")[:top]
                if row_V[index] > 0
            ]
            for row_V in probabilities_MV
        ]
