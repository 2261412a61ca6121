"""Pretrain, finetune and share BERTs of your own, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

from mosaicbert_jax.errors import UserError

if TYPE_CHECKING:
    from mosaicbert_jax.modeling.config import BertConfig
    from mosaicbert_jax.modeling.encoder import BertModel
    from mosaicbert_jax.modeling.heads import (
        BertForMaskedLM,
        BertForSequenceClassification,
        BertForTokenClassification,
    )
    from mosaicbert_jax.storage.opening import load_run, open_model

__version__ = "0.1.0"
__all__ = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "UserError",
    "load_run",
    "open_model",
]

_MODULES = {
    "BertConfig": "modeling.config",
    "BertModel": "modeling.encoder",
    "BertForMaskedLM": "modeling.heads",
    "BertForSequenceClassification": "modeling.heads",
    "BertForTokenClassification": "modeling.heads",
    "load_run": "storage.opening",
    "open_model": "storage.opening",
}


def __getattr__(name: str) -> Any:
    # On first use: the processes that prepare text need no JAX, nor its second and 200 MB.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
