"""ModernBERT's architecture with MosaicBERT's recipe: pre-norm, RoPE, a window, no biases."""

from configs import quickstart


def get_config():
    """Everything but the architecture is the baseline's."""
    config = quickstart.get_config("modernbert")
    config.optimizer.name = "adamw"
    config.train.duration = "2e6tok"
    return config
