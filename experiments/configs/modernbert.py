"""What each of ModernBERT's changes to MosaicBERT is worth: each made alone, at equal time.

Command:   python -m experiments.modernbert --config=experiments/configs/modernbert.py \\
               --workdir=runs/modernbert --config.data.path=DIR
           DIR: text prepared by `prepare`. The same command resumes; started twice,
           two processes share the runs.
Hardware:  2 CPU cores.
Time:      3 seeds of 10 variants of 60 s, and of 5 with one of MosaicBERT's choices.
Result:    steps a second, held-out loss and accuracy of each.
Measured:  experiments/results/modernbert.md; the 5 not yet.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configs.pareto import mini_variant

# A window in proportion: 64 tokens on each side for ModernBERT's 1,024, and here rows of 128.
_WINDOW = {"model.sliding_window": 8, "model.global_attention_every": 2}
_NO_BIAS = {"model.use_bias": False, "model.norm_bias": False, "model.head_bias": False}
_NO_DROPOUT = {"model.hidden_dropout_prob": 0.0}
_PRE = {"model.norm_position": "pre"}
_ROPE = {"model.position_embedding": "rope"}
# What differs from MosaicBERT, by name.
CHANGES = {
    "MosaicBERT": {},
    "pre-norm": _PRE,
    "RMSNorm": {"model.normalization": "rmsnorm", "model.norm_bias": False},
    "no biases": _NO_BIAS,
    "RoPE for ALiBi": _ROPE,
    "window": _WINDOW,
    "SwiGLU": {"model.feed_forward": "swiglu"},
    "no dropout": _NO_DROPOUT,
    "no token types": {"model.type_vocab_size": 0},
    "ModernBERT": {
        **_PRE,
        **_NO_BIAS,
        **_ROPE,
        **_WINDOW,
        **_NO_DROPOUT,
        "model.type_vocab_size": 0,
        "model.layer_norm_eps": 1e-5,
        "model.head_norm_eps": 1e-5,
    },
}
# And ModernBERT with one of MosaicBERT's choices, at ModernBERT's number of steps.
WITHOUT = {
    "post-norm": {"model.norm_position": "post"},
    "biases": {"model.use_bias": True, "model.norm_bias": True, "model.head_bias": True},
    "ALiBi for RoPE": {"model.position_embedding": "alibi"},
    "no window": {"model.sliding_window": None, "model.global_attention_every": 1},
    "dropout": {"model.hidden_dropout_prob": 0.1},
}


def get_config():
    """The mini size of pareto.py with each change made alone, and with all of ModernBERT's."""
    return ConfigDict(
        {
            "variants": {name: mini_variant(changes) for name, changes in CHANGES.items()},
            "without": {
                name: mini_variant(CHANGES["ModernBERT"] | changes)
                for name, changes in WITHOUT.items()
            },
            "budgets": ("60s",),
            "seeds": (17, 18, 19),
            "data": {"path": placeholder(str)},
        }
    ).lock()
