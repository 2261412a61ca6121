"""ALiBi's slopes."""

import math

import numpy as np
from jaxtyping import Float


def alibi_slopes(num_heads: int) -> Float[np.ndarray, "H"]:
    """The slope of each head's linear bias, as in ALiBi (Press et al., 2022, arXiv:2108.12409).

    For a power of two: 2^(-8 (h + 1) / H). Otherwise the slopes of the largest power of two p
    below H, followed by every second slope of 2 p until there are H.

    Returns:
      float32[H]. A numpy array: a constant of the program, never traced.
    """
    power = 2 ** math.floor(math.log2(num_heads))

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (h + 1) / n) for h in range(n)]

    slopes = geometric(power) + geometric(2 * power)[0::2][: num_heads - power]
    return np.array(slopes, dtype=np.float32)
