"""ModernBERT's architecture with Muon on its dense layers: the recipe of configs/quickstart.py."""

from configs import quickstart


def get_config():
    """The baseline's learning rate and schedule; Muon's updates are as long as AdamW's."""
    config = quickstart.get_config("modernbert")
    config.train.duration = "1.5e6tok"
    return config
