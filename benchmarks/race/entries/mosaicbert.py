"""MosaicBERT's architecture and recipe at the quickstart's size: the baseline of the track mini."""

from configs import quickstart


def get_config():
    """Post-norm, ALiBi, GeGLU, decoupled AdamW, linear warmup and decay, 30% masking."""
    config = quickstart.get_config("mosaicbert")
    config.train.duration = "5e6tok"
    return config
