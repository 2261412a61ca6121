"""`from_pretrained` and `save_pretrained` of every model class."""

import os
from typing import Any, Self


class PretrainedMixin:
    """Folders in the layout of Hugging Face, read and written."""

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **options: Any) -> Self:
        """A model of this class from config.json and weights in `folder`.

        Args:
          folder: with the tensors of MosaicBERT or of BERT, by their published names, in
            model.safetensors, in the shards of model.safetensors.index.json, or in
            pytorch_model.bin, which is read without executing it.
          **options: renew, the parts that start from random weights, such as ("pooler",
            "classifier"); num_labels for a classifier; dtype and other fields of BertConfig.

        Raises:
          UserError: a missing or damaged file, and a missing, unknown or misshapen tensor, listed
            by name. Tensors of heads that this class doesn't have are ignored.
        """
        # Here and not above: modeling does not depend on interop, these two methods do.
        from mosaicbert_jax.interop.reading import read_model

        return read_model(cls, folder, **options)

    def save_pretrained(
        self, folder: str | os.PathLike, tokenizer: str | os.PathLike | None = None
    ) -> None:
        """Writes a folder that `from_pretrained` and Hugging Face's libraries load.

        A MosaicBERT brings its PyTorch code with it; a BERT is stock BERT. The weights are float32,
        bit for bit.

        Args:
          folder: written atomically.
          tokenizer: to save beside it: a vocab.txt, a tokenizer.json, or a folder with one of them.

        Raises:
          UserError: something is at `folder` already, a tokenizer that cannot be read or does not
            fit, or a mixture of MosaicBERT and BERT, which no PyTorch code computes.
        """
        from mosaicbert_jax.interop.writing import save_model

        save_model(self, folder, tokenizer=tokenizer)
