"""Published measurements: the original PyTorch implementations, of MosaicBERT on A100s.

Hours and prices as published with it (MosaicBERT, Portes et al., 2023, arXiv:2312.17482, and its
repository). Its training speed follows from the whole run of MosaicBERT-Base: 286,720,000 sequences
of 128 slots in 9.65 hours on 8 A100-80GB.
"""

import dataclasses

from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.planning.gpus import GPUS
from mosaicbert_jax.training.flops import model_flops_per_token

_SEQUENCES, _SLOTS, _HOURS, _GPUS = 286_720_000, 128, 9.65, 8
SLOTS_A_SECOND = _SEQUENCES * _SLOTS / (_HOURS * 3600)
# Padding counted as tokens, as everywhere in a plan: 31.2%.
MFU = (
    SLOTS_A_SECOND
    * model_flops_per_token(BertConfig.mosaicbert_base(), sequence_length=_SLOTS, masking_rate=0.3)
    / (_GPUS * GPUS["a100-80gb"].peak_flops)
)
# The 40 GB model, of less bandwidth, took 1.28 h where the 80 GB one took 1.13 h. Nothing is
# published for other GPUs.
MFU_BY_GPU = {"a100-80gb": MFU, "a100-40gb": MFU * 1.13 / 1.28}


@dataclasses.dataclass(frozen=True)
class Point:
    """One published run.

    Attributes:
      model: "base" or "large" of MosaicBERT, or "modernbert-base" or "modernbert-large".
      gpu, gpus: a name of GPUS, and how many.
      result: as published.
      hours: of pretraining.
      sequences: read in that time, where published or so at the speed of the whole run; else None.
    """

    model: str
    gpu: str
    gpus: int
    result: str
    hours: float
    sequences: float | None = None


def _read_in(hours: float) -> float:
    return _SEQUENCES * hours / _HOURS


POINTS = (
    Point("base", "a100-80gb", 8, "GLUE 79.6", 1.13, _read_in(1.13)),
    Point("base", "a100-40gb", 8, "GLUE 79.6", 1.28, _read_in(1.13)),
    Point("base", "a100-80gb", 8, "GLUE 83.2", 4.6, _read_in(4.6)),
    Point("base", "a100-80gb", 8, "GLUE 84.3, all 70,000 batches", 9.65, _SEQUENCES),
    Point("base", "a100-80gb", 512, "GLUE 79.6", 0.25, _read_in(1.13)),
    Point("large", "a100-80gb", 8, "GLUE 83.2", 15.85),
    Point("large", "a100-80gb", 8, "GLUE 85.5", 60.0),
    # ModernBERT's first phase, without its evaluations: table 3 of arXiv:2412.13663.
    Point("modernbert-base", "h100", 8, "1.719T tokens of 1,024 a row", 191.1, 1.719e12 / 1024),
    Point("modernbert-large", "h100", 8, "1.719T tokens of 1,024 a row", 420.4, 1.719e12 / 1024),
)


def model_name(model: BertConfig) -> str | None:
    """Which of the published models a config is, whatever its vocabulary and dtype."""
    shape = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
             "position_embedding", "feed_forward")  # fmt: skip
    known = {
        "base": BertConfig.mosaicbert_base(),
        "large": BertConfig.mosaicbert_large(),
        "modernbert-base": BertConfig.modernbert_base(),
        "modernbert-large": BertConfig.modernbert_large(),
    }
    for name, config in known.items():
        if all(getattr(model, field) == getattr(config, field) for field in shape):
            return name
    return None
