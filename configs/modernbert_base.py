"""ModernBERT-base from nothing: the first phase of its pretraining, at 1,024 tokens.

Of this config is the state of answerdotai/ModernBERT-base before its context was extended; configs/
modernbert_base_8192.py continues from it.

Command:   python train.py --config=configs/modernbert_base.py --workdir=runs/modernbert_base \\
               --config.data.path=DIR
           DIR: text prepared with --max-seq-len 1024 and ModernBERT's tokenizer, or one of your own
           (--tokenizer-model bpe).
Hardware:  8 H100 (80 GB) or more. microbatch_tokens is what one GPU holds at a time.
Quoted:    Warner et al., 2024 (arXiv:2412.13663), table 3: 1.719 trillion tokens in 194.2 h on 8
           H100; 30% masking, StableAdamW, 4,608 sequences of 1,024 tokens to which the batch grows
           from 768 over the first 50 billion tokens, warmup over 3 billion tokens to 8e-4 and
           constant from there, weight decay 1e-5, betas 0.9 and 0.98, global RoPE theta 10,000.
Differs:   All parameters decay, there all but norms.
Measured:  not yet.
"""

from mosaicbert_jax import BertConfig
from mosaicbert_jax.pretraining.configuration import pretraining


def get_config():
    """1.719 trillion tokens at 4,608 x 1,024 a step."""
    config = pretraining(BertConfig.modernbert_base(global_rope_theta=10_000.0))
    config.data.row_length = 1024
    config.optimizer.name = "stable_adamw"
    config.optimizer.learning_rate = 8e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup = 3 / 1719
    config.train.duration = "1719e9tok"
    config.train.batch_tokens = 4608 * 1024
    config.train.first_batch_tokens = 768 * 1024
    config.train.batch_warmup = 50 / 1719
    config.train.microbatch_tokens = 96 * 1024
    config.hardware = "gpu"
    return config
