"""A small encoder on the embedded corpus, in minutes on a CPU: what `make quickstart` runs.

Its architecture is ModernBERT's and its optimizer Muon, which won the race for recipes
(benchmarks/race). With configs/quickstart.py:mosaicbert it is a small MosaicBERT by MosaicBERT's
recipe.

Command:   python train.py --config=configs/quickstart.py --workdir=runs/quickstart \\
               --config.data.path=DIR
           DIR: the embedded corpus, vocabulary 4,096, long documents split (the Makefile has the
           line).
Hardware:  2 CPU cores.
Result:    guesses that fit the grammar; held-out masked accuracy above 0.3, MosaicBERT's above
           0.2 (always guessing the commonest token: 0.05).
Time:      six minutes of training, whatever the machine; the schedule follows the clock.
Measured:  held-out masked accuracy 0.360 after 3.7M tokens (10,580 tokens/s); 2026-11-28,
           experiments/results/quickstart.md. MosaicBERT: 0.271 after 5.0M (14,800 tokens/s); with
           the cores busier 0.254 after 4.2M, and with seed 18 0.234 after 3.0M; 2026-11-22. 2 cores
           of an Intel Xeon, jax 0.10.2.
"""

from mosaicbert_jax import BertConfig
from mosaicbert_jax.pretraining.configuration import pretraining


def get_config(architecture: str = "modernbert"):
    """2 layers of 128 with 8 heads, steps of 4 rows of 128 tokens."""
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        # ALiBi's slopes are steep with 8: 0.207 after 1.5M tokens, where 2 heads reach 0.137.
        "num_attention_heads": 8,
        "intermediate_size": 256,
        "hidden_dropout_prob": 0.0,
    }
    model = {
        "mosaicbert": lambda: BertConfig(**sizes),
        "modernbert": lambda: BertConfig.modernbert_base(
            **sizes, sliding_window=16, global_attention_every=2
        ),
    }[architecture]()
    config = pretraining(model)
    config.data.row_length = 128
    config.optimizer.name = "muon" if architecture == "modernbert" else "adamw"
    config.optimizer.learning_rate = 2e-3
    config.train.duration = "6m"
    config.train.batch_tokens = 512
    config.train.microbatch_tokens = 512
    config.eval.every = "2m"
    config.checkpoint.every = "30s"
    config.log.every = 50
    return config
