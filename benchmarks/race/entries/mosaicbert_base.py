"""MosaicBERT-Base in one hour on one GPU: the baseline of the track gpu."""

from configs import mosaicbert_base


def get_config():
    """The recipe with its whole schedule in an hour."""
    config = mosaicbert_base.get_config()
    config.train.duration = "1h"
    return config
