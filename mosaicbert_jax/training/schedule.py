"""The learning rate as a function of the share of the run that is completed."""


def learning_rate(share: float, *, peak: float, warmup: float, final_fraction: float) -> float:
    """Linear warmup to the peak, then linear decay.

    Args:
      share: of the run completed before this step, in [0, 1]; the first step has 0.
      peak: the highest learning rate.
      warmup: the share of the run in which the rate rises from 0 to the peak.
      final_fraction: of the peak, reached at share 1.
    """
    if share < warmup:
        return peak * share / warmup
    decayed = (share - warmup) / (1.0 - warmup)
    return peak * (1.0 - (1.0 - final_fraction) * min(decayed, 1.0))
