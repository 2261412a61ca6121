"""MosaicBERT against BERT at equal time: both pretrained for several budgets, then finetuned.

Command:   python -m experiments.pareto --config=experiments/configs/pareto.py \\
               --workdir=runs/pareto --config.data.path=DIR --config.finetune.data.path=FILE
           DIR: text prepared by `prepare`; FILE: labeled texts for configs/finetune.py's recipe.
           experiments/configs/pareto.py:base: the true sizes on GPUs; FILE is GLUE's folder.
           A budget is turned into steps by each model's own step time, which is measured first.
           The same command resumes; started twice, two processes share the runs.
Hardware:  mini: 2 CPU cores. base: 8 A100 or H100.
Time:      mini: 3 seeds x 2 models x 300 s of training, and 96 finetunings of 10 s.
Result:    held-out masked accuracy and a finetuned score for each model, budget and seed.
Measured:  experiments/results/pareto.md (mini). base: not yet.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import bert_base, mosaicbert_base
from mosaicbert_jax.finetuning.configuration import finetuning, glue

RATES = (3e-4, 1e-3, 3e-3)  # of finetuning a small model


def get_config(size: str = "mini"):
    """Both recipes at one size, the budgets, the seeds, and what comes after pretraining."""
    variants = {"mosaicbert": mosaicbert_base.get_config(), "bert": bert_base.get_config()}
    finetune, rates, budgets, seeds = {
        "mini": (
            mini_finetuning(),
            RATES,
            ("20s", "40s", "80s", "160s"),
            (17, 18, 19),
        ),
        "base": (glue(), (), ("1.13h", "2.3h", "4.6h", "11.5h"), (17,)),  # rates as published
    }[size]
    if size == "mini":
        variants = {name: mini(config) for name, config in variants.items()}
    return ConfigDict(
        {
            "variants": variants,
            "budgets": budgets,  # seconds, minutes or hours of training steps
            "seeds": seeds,
            "data": {"path": placeholder(str)},
            "finetune": finetune,
            "finetune_rates": rates,  # to choose from, for each run
        }
    ).lock()


def mini(config: ConfigDict) -> ConfigDict:
    """A recipe at a size for a CPU: 2 layers of 128 with 8 heads, steps of 4 rows of 128 tokens."""
    config.model.num_hidden_layers, config.model.hidden_size = 2, 128
    config.model.num_attention_heads, config.model.intermediate_size = 8, 512
    config.model.vocab_size = None  # the data set's
    config.data.row_length = 128
    config.optimizer.learning_rate = 2e-3
    config.train.batch_tokens = config.train.microbatch_tokens = 512
    config.log.every = 50
    config.hardware = "any"
    return config


def mini_variant(changes: dict[str, Any]) -> ConfigDict:
    """MosaicBERT's recipe at the size mini, with some settings changed."""
    config = mini(mosaicbert_base.get_config())
    config.update_from_flattened_dict(changes)
    return config


def mini_finetuning() -> ConfigDict:
    """configs/finetune.py's recipe for short texts."""
    config = finetuning()
    config.data.max_seq_len = 128
    config.train.duration = config.eval.every = config.checkpoint.every = "3ep"
    return config
