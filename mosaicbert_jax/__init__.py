"""Pretrain, finetune and share BERTs of your own, in JAX."""

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.encoder import BertModel
from mosaicbert_jax.modeling.heads import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)

__version__ = "0.1.0"
__all__ = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "UserError",
]
