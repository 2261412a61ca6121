"""What each of MosaicBERT's changes is worth: each turned off alone, at equal time.

Command:   python -m experiments.ablation --config=experiments/configs/ablation.py \\
               --workdir=runs/ablation --config.data.path=DIR
           DIR: text prepared by `prepare`. The same command resumes; started twice,
           two processes share the runs.
Hardware:  2 CPU cores.
Time:      3 seeds of 6 variants of 80 s and of 3 variants in bfloat16, which a CPU emulates.
Result:    steps a second, loss at equal time, and losses on texts longer than trained.
Measured:  experiments/results/ablation.md.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import mosaicbert_base
from experiments.configs.pareto import mini

# What differs from the recipe, by the name of what is turned off.
WHOLE_LAST_LAYER = "masked-only last layer"  # by another objective, in experiments/ablation.py
OFF = {
    "nothing": {},
    "ALiBi": {"model.position_embedding": "learned"},
    "GeGLU": {"model.feed_forward": "gelu"},
    "30% masking": {"data.masking_rate": 0.15},
    "packing": {"data.packing": False},
    WHOLE_LAST_LAYER: {},
}
# Low precision LayerNorm is one only where the rest is of low precision.
NUMERICS = {
    "float32": {},
    "bfloat16": {"model.dtype": "bfloat16"},
    "bfloat16, LayerNorm in float32": {
        "model.dtype": "bfloat16",
        "model.layer_norm_dtype": "float32",
    },
}


def get_config():
    """The mini size of pareto.py with each change turned off; numerics for equal steps."""
    return ConfigDict(
        {
            "variants": {name: _variant(off) for name, off in OFF.items()},
            "budgets": ("80s",),
            "numerics": {name: _variant(changes) for name, changes in NUMERICS.items()},
            "numerics_steps": 300,
            "seeds": (17, 18, 19),
            "data": {"path": placeholder(str)},
        }
    ).lock()


def _variant(changes: dict) -> ConfigDict:
    config = mini(mosaicbert_base.get_config())
    # A table of positions long enough for texts longer than those trained on.
    config.model.max_position_embeddings = 1024
    config.update_from_flattened_dict(changes)
    return config
