"""Random bits as a function of a key and a counter, cheap enough to compute where they are used.

Dropout needs many bits of modest quality that must not depend on how the work is cut up. A cipher
such as Threefry gives far better bits than that at several times the cost, so it only makes the
keys; the elements get an integer hash of (key, counter).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt32


def random_bits(
    key_words: UInt32[Array, "*k 2"], counters: UInt32[Array, "*c"]
) -> UInt32[Array, "*kc"]:
    """Hashes (key, counter) to 32 bits.

    The mixer is the 32-bit "lowbias32" of C. Wellons, "Prospecting for Hash Functions" (2018):
    two rounds of xor-shift and multiply. The first key word enters before the first round and the
    second between the rounds, so that two keys do not give shifted copies of one stream.

    Args:
      key_words: two words a key; the leading axes broadcast against `counters`.
      counters: the element's index.
    """
    return mixed_bits(key_words[..., 0], key_words[..., 1], counters)


def mixed_bits(
    first_word: UInt32[Array, "*k"], second_word: UInt32[Array, "*k"], counters: UInt32[Array, "*c"]
) -> UInt32[Array, "*kc"]:
    """`random_bits` with the key's words apart, as a kernel has them."""
    bits = counters * np.uint32(0x9E3779B9) + first_word
    bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) + second_word
    bits = bits * np.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def words_of(keys: Key[Array, "*k"]) -> UInt32[Array, "*k 2"]:
    """What `random_bits` takes of typed JAX keys."""
    return jax.random.key_data(keys)[..., -2:]


def drop_threshold(rate: float) -> np.uint32:
    """An element is dropped if its bits are less than this."""
    return np.uint32(round(rate * 2**32))


def dropout_scale(rate: float) -> np.float32:
    """What an element that survives is multiplied by, so that its mean stays."""
    return np.float32(1.0 / (1.0 - rate))


def keep_mask(
    keys: Key[Array, "*k"], counters: UInt32[Array, "*c"], rate: float
) -> Bool[Array, "*kc"]:
    """True where an element survives dropout, which it does with probability 1 - rate.

    Args:
      keys: typed JAX keys; their shape broadcasts against that of `counters`.
      counters: the element's index, one counter space a key.
      rate: the probability that an element is dropped, in [0, 1).
    """
    return random_bits(words_of(keys), counters) >= drop_threshold(rate)


def drop_elements(
    x_BLE: Float[Array, "B L E"], keys_B: Key[Array, "B"], rate: float
) -> Float[Array, "B L E"]:
    """Dropout: drops elements with probability `rate` and scales the rest by 1 / (1 - rate).

    The scale is float32 and the result rounded once to x's dtype: a scale in bfloat16 would be
    0.17% off at a rate of 0.1. An element's counter is its place within its row.
    """
    _, length, width = x_BLE.shape
    counters_LE = (
        jax.lax.broadcasted_iota(jnp.uint32, (length, width), 0) * jnp.uint32(width)
        + jax.lax.broadcasted_iota(jnp.uint32, (length, width), 1)
    )  # fmt: skip
    keep_BLE = keep_mask(keys_B[:, None, None], counters_LE, rate)
    scaled_BLE = x_BLE.astype(jnp.float32) * dropout_scale(rate)
    return jnp.where(keep_BLE, scaled_BLE, 0.0).astype(x_BLE.dtype)
