"""A model of seconds, on which the tests walk the real path; also a first look at a log.

Command:   python train.py --config=configs/tiny.py --workdir=runs/tiny --config.data.path=DIR
Hardware:  any CPU. DIR is a prepared data set of any size.
Time:      about 20 s, most of it compilation.
Result:    the loss begins to fall; nothing more.
"""

from mosaicbert_jax import BertConfig
from mosaicbert_jax.pretraining.configuration import pretraining


def get_config():
    """30 steps of 1,024 tokens."""
    model = BertConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64
    )
    config = pretraining(model)
    config.data.row_length = 128
    config.data.window_size = 256
    config.optimizer.learning_rate = 3e-3
    config.train.duration = "30ba"
    config.train.batch_tokens = 1024
    config.train.microbatch_tokens = 1024
    config.eval.every = "15ba"
    config.checkpoint.every = "10ba"
    config.log.every = 1
    return config
