"""Random bits as a function of a key and a counter, cheap enough to compute where they are used.

Dropout needs many bits of modest quality that must not depend on how the work is cut up. A cipher
such as Threefry gives far better bits than that at several times the cost, so it only makes the
keys; the elements get an integer hash of (key, counter).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key, UInt32


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
    bits = counters * jnp.uint32(0x9E3779B9) + key_words[..., 0]
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) + key_words[..., 1]
    bits = bits * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def keep_mask(
    keys: Key[Array, "*k"], counters: UInt32[Array, "*c"], rate: float
) -> Bool[Array, "*kc"]:
    """True where an element survives dropout, which it does with probability 1 - rate.

    Args:
      keys: typed JAX keys; their shape broadcasts against that of `counters`.
      counters: the element's index, one counter space a key.
      rate: the probability that an element is dropped, in [0, 1).
    """
    threshold = jnp.uint32(round(rate * 2**32))
    return random_bits(jax.random.key_data(keys)[..., -2:], counters) >= threshold
