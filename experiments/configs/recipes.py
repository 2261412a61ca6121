"""What each change of the recipe is worth: each made alone, at equal time.

Command:   python -m experiments.recipes --config=experiments/configs/recipes.py \\
               --workdir=runs/recipes --config.data.path=DIR
           DIR: text prepared by `prepare`. The same command resumes; started twice,
           two processes share the runs.
Hardware:  2 CPU cores.
Time:      3 seeds of 15 variants of 40 s, and 2,000 steps of the teacher; then the variants whose
           steps take another time, at the recipe's number of steps.
Result:    steps a second, held-out loss and accuracy of each.
Measured:  experiments/results/recipes.md; those at equal steps not yet.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configs.pareto import mini_variant

# What differs from MosaicBERT's recipe, by name.
CHANGES = {
    "the recipe": {},
    "cosine": {"optimizer.schedule": "cosine"},
    "wsd": {"optimizer.schedule": "wsd", "optimizer.decay": 0.2},
    "constant": {"optimizer.schedule": "constant"},
    "batch warmup": {"train.first_batch_tokens": 128, "train.batch_warmup": 0.2},
    "masking 30% to 15%": {"data.masking_rate": (0.3, 0.15)},
    "whole words": {"data.masking_unit": "word"},
    "spans": {"data.masking_unit": "span"},
    "StableAdamW": {"optimizer.name": "stable_adamw"},
    "Muon": {"optimizer.name": "muon"},
    "clipping at 1": {"optimizer.clip_norm": 1.0},
    "moving average": {"optimizer.ema_decay": 0.99},
    "constant, moving average": {"optimizer.schedule": "constant", "optimizer.ema_decay": 0.99},
    "narrow from layer 0": {"model.narrow_from_layer": 0},
    "a teacher": {"distill.teacher": "teacher", "distill.weight": 0.5},
}
TEACHER = {"model.hidden_size": 256, "model.intermediate_size": 1024}


def get_config():
    """The mini size of pareto.py with each change made alone."""
    return ConfigDict(
        {
            "variants": {name: mini_variant(changes) for name, changes in CHANGES.items()},
            "teacher": mini_variant(TEACHER),
            "teacher_steps": 2000,
            "budgets": ("40s",),
            "seeds": (17, 18, 19),
            "data": {"path": placeholder(str)},
        }
    ).lock()
