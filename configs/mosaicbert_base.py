"""MosaicBERT-Base on C4: the recipe that reaches GLUE 79.6 for about 20 dollars.

Command:   python train.py --config=configs/mosaicbert_base.py --workdir=runs/mosaicbert_base \\
               --config.data.path=DIR
           DIR: C4 (English) prepared with bert-base-uncased's vocabulary, 128 tokens a sequence.
Hardware:  8 A100 (80 GB) or more. microbatch_tokens is what one GPU holds at a time.
Quoted:    the original PyTorch implementation on 8 A100-80GB: mean GLUE dev score 79.6 after
           1.13 h, 83.2 after 4.6 h; 84.28 after the whole run, 9.65 h.
Measured:  not yet on GPUs; on 2 CPU cores see benchmarks/results/training_step.md.
"""

from mosaicbert_jax import BertConfig
from mosaicbert_jax.pretraining.configuration import pretraining


def get_config():
    """286,720,000 sequences at 4,096 x 128 tokens a step."""
    config = pretraining(BertConfig.mosaicbert_base())
    config.hardware = "gpu"
    return config
