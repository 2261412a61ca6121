"""ModernBERT-large: the first phase of its pretraining, at 1,024 tokens.

Command:   python train.py --config=configs/modernbert_large.py --workdir=runs/modernbert_large \\
               --config.data.path=DIR
           DIR: as for configs/modernbert_base.py.
Hardware:  8 H100 (80 GB) or more.
Quoted:    Warner et al., 2024 (arXiv:2412.13663), table 3: 1.719 trillion tokens in 425.3 h on 8
           H100; 4,928 sequences of 1,024 tokens, to which the batch grows from 448 over 10 billion
           tokens, warmup over 2 billion tokens to 5e-4.
Differs:   As configs/modernbert_base.py; and the published model starts from the base model's
           weights, tiled, and restarts at a rate of 5e-5 after a plateau. Here it starts at random.
Measured:  not yet.
"""

from configs import modernbert_base
from mosaicbert_jax import BertConfig


def get_config():
    """1.719 trillion tokens at 4,928 x 1,024 a step."""
    config, large = modernbert_base.get_config(), BertConfig.modernbert_large()
    for size in (
        "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
    ):  # fmt: skip
        config.model[size] = getattr(large, size)
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup = 2 / 1719
    config.train.batch_tokens = 4928 * 1024
    config.train.first_batch_tokens = 448 * 1024
    config.train.batch_warmup = 10 / 1719
    config.train.microbatch_tokens = 56 * 1024
    return config
