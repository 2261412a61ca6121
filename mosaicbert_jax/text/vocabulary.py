"""Sizes and special tokens of a vocabulary, without the library that tokenizes."""

import dataclasses

import numpy as np

MAX_VOCAB_SIZE = 2**24  # entries; more is a slip, for which libraries would ask too much memory


# What tokenizers call each special token, by the field of SpecialTokenIds; the first name that a
# vocabulary has counts. BERT's come first, then Gemma's, whose vocabulary has <s> and </s> as HTML
# tags, then those of RoBERTa and XLM-R.
SPECIAL_NAMES = {
    "pad": ("[PAD]", "<pad>", "<|padding|>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<bos>", "<cls>", "<s>"),
    "sep": ("[SEP]", "<eos>", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
}


@dataclasses.dataclass(frozen=True)
class SpecialTokenIds:
    """The ids of [PAD], [UNK], [CLS], [SEP] and [MASK], by whatever name.

    A tokenizer to which nothing is unknown has no [UNK]; then `unk` is `pad`.
    """

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


def token_dtype(padded_vocab_size: int) -> np.dtype:
    """The narrowest dtype of the two that the format knows: uint16 or uint32."""
    return np.dtype(np.uint16 if padded_vocab_size <= 2**16 else np.uint32)
