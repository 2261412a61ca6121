"""A small MosaicBERT on the embedded corpus, in minutes on a CPU: what `make quickstart` runs.

Command:   python train.py --config=configs/quickstart.py --workdir=runs/quickstart \\
               --config.data.path=DIR
           DIR: the embedded corpus, vocabulary 4,096, long documents split (the Makefile has the
           line).
Hardware:  2 CPU cores.
Result:    see the README.
Time:      six minutes of training, whatever the machine; the schedule follows the clock.
"""

from mosaicbert_jax import BertConfig
from mosaicbert_jax.training.configuration import pretraining


def get_config():
    """2 layers of 128 with 8 heads, steps of 4 rows of 128 tokens."""
    model = BertConfig(
        num_hidden_layers=2,
        hidden_size=128,
        num_attention_heads=8,  # ALiBi's steep slopes: with 2 heads attention is learned far later
        intermediate_size=256,
        hidden_dropout_prob=0.0,
    )
    config = pretraining(model)
    config.data.row_length = 128
    config.optimizer.learning_rate = 2e-3
    config.train.duration = "6m"
    config.train.batch_tokens = 512
    config.train.microbatch_tokens = 512
    config.eval.every = "2m"
    config.checkpoint.every = "30s"
    config.log.every = 50
    return config
