"""BERT's architecture and recipe at the same size: learned positions, GELU, padding."""

from configs import bert_base
from experiments.configs.pareto import mini


def get_config():
    """No gate and a table of 128 positions: as many parameters as the baseline, at most."""
    config = mini(bert_base.get_config())
    config.model.intermediate_size, config.model.max_position_embeddings = 320, 128
    config.train.duration = "1e6tok"
    return config
