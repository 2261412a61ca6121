"""MosaicBERT-Large on C4.

Command:   python train.py --config=configs/mosaicbert_large.py --workdir=runs/mosaicbert_large \\
               --config.data.path=DIR
           DIR: C4 (English) prepared with bert-base-uncased's vocabulary, 128 tokens a sequence.
Hardware:  8 A100 (80 GB) or more.
Quoted:    the original PyTorch implementation on 8 A100-80GB: mean GLUE dev score 83.2 after
           15.85 h, 85.5 after about 60 h.
Measured:  not yet.
"""

from mosaicbert_jax import BertConfig
from mosaicbert_jax.pretraining.configuration import pretraining


def get_config():
    """The recipe of MosaicBERT-Base with a larger model and smaller microbatches."""
    config = pretraining(BertConfig.mosaicbert_large())
    config.train.microbatch_tokens = 32_768
    config.hardware = "gpu"
    return config
