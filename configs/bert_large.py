"""The BERT-Large baseline on C4: what MosaicBERT-Large is compared with.

Command:   python train.py --config=configs/bert_large.py --workdir=runs/bert_large \\
               --config.data.path=DIR
           DIR: C4 (English) prepared with bert-base-uncased's vocabulary, 128 tokens a sequence.
Hardware:  8 A100 (80 GB) or more.
Quoted:    the original PyTorch implementation on 8 A100-80GB: mean GLUE dev score 83.2 after
           23.35 h.
Measured:  not yet.
"""

from mosaicbert_jax import BertConfig
from mosaicbert_jax.pretraining.configuration import pretraining


def get_config():
    """configs/bert_base.py with a larger model and smaller microbatches."""
    config = pretraining(BertConfig.bert_large())
    config.model.vocab_size = 30522  # as published: not padded to a multiple of 64
    config.data.packing = False
    config.data.row_length = 128
    config.data.masking_rate = 0.15
    config.train.microbatch_tokens = 32_768
    config.hardware = "gpu"
    return config
