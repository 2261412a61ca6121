"""ModernBERT-base from 1,024 to 8,192 tokens: the extension of its context.

Of this config, with the phase "decay" after it, is answerdotai/ModernBERT-base as published.

Command:   python train.py --config=configs/modernbert_base_8192.py --workdir=runs/extended \\
               --config.init_from=runs/modernbert_base --config.data.path=DIR
           and then
           python train.py --config=configs/modernbert_base_8192.py:decay --workdir=runs/decayed \\
               --config.init_from=runs/extended --config.data.path=DIR
           DIR: text prepared with --max-seq-len 8192 and the tokenizer of the first phase.
Hardware:  8 H100 (80 GB) or more.
Quoted:    Warner et al., 2024 (arXiv:2412.13663), table 3: 250 billion tokens at a constant 3e-4 in
           39.9 h, then 50 billion with a decay of the form 1 - sqrt in 11.5 h, on 8 H100; 72
           sequences of 8,192 tokens, global RoPE theta 160,000.
Differs:   As configs/modernbert_base.py.
Measured:  not yet.
"""

from mosaicbert_jax import BertConfig
from mosaicbert_jax.pretraining.configuration import pretraining


def get_config(phase: str = "extension"):
    """250 billion tokens at a constant rate, or the 50 billion of the phase "decay".

    The decay continues with the optimizer state of the extension.
    """
    config = pretraining(BertConfig.modernbert_base())
    config.data.row_length = 8192
    config.optimizer.name = "stable_adamw"
    config.optimizer.learning_rate = 3e-4
    config.optimizer.schedule = {"extension": "constant", "decay": "decay"}[phase]
    config.optimizer.warmup = config.optimizer.final_fraction = 0.0
    config.train.duration = {"extension": "250e9tok", "decay": "50e9tok"}[phase]
    config.train.batch_tokens = 72 * 8192
    config.train.microbatch_tokens = 9 * 8192
    config.hardware = "gpu"
    return config
