"""What every model class can do with files."""

import os
from typing import Any, Self


class PretrainedMixin:
    """Reading from folders in the layout of Hugging Face."""

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **options: Any) -> Self:
        """A model of this class from config.json and model.safetensors in `folder`.

        Args:
          folder: with the tensors of MosaicBERT or of BERT, by their published names.
          **options: num_labels for a classifier; dtype and other fields of BertConfig.

        Raises:
          UserError: a missing file, and a missing, unknown or misshapen tensor, listed by name.
        """
        # Here and not above: modeling does not depend on interop, these two methods do.
        from mosaicbert_jax.interop.huggingface import load_model

        return load_model(cls, folder, **options)
