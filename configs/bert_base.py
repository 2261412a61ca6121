"""The BERT-Base baseline on C4: what MosaicBERT is compared with.

Learned positions, a plain GELU feed-forward, dropout in attention too, float32 LayerNorm, 15%
masking, and one sequence a row with its padding.

Command:   python train.py --config=configs/bert_base.py --workdir=runs/bert_base \\
               --config.data.path=DIR
           DIR: C4 (English) prepared with bert-base-uncased's vocabulary, 128 tokens a sequence.
Hardware:  8 A100 (80 GB) or more.
Quoted:    the original PyTorch implementation on 8 A100-80GB: mean GLUE dev score 83.2 after
           11.5 h.
Measured:  not yet.
"""

from mosaicbert_jax import BertConfig
from mosaicbert_jax.pretraining.configuration import pretraining


def get_config():
    """MosaicBERT-Base's schedule and data."""
    config = pretraining(BertConfig.bert_base())
    config.model.vocab_size = 30522  # as published: not padded to a multiple of 64
    config.data.packing = False
    config.data.row_length = 128
    config.data.masking_rate = 0.15
    config.hardware = "gpu"
    return config
