"""Dropout whose bits depend on what an element is, never on how the work is divided.

The bits are a function of (seed, step, layer, site, global row, column). The caller folds seed and
step into a key and that into one key a row (`row_keys`); here the layer and site are folded in and
the column counted. So no mesh, host count or microbatch changes which elements are dropped.
"""

import dataclasses
import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from pallas_kernels import drop_elements


class Site(enum.IntEnum):
    """Where in a layer dropout stands."""

    HIDDEN = 0
    ATTENTION_WEIGHTS = 1
    FEED_FORWARD = 2
    CLASSIFIER = 3


def row_keys(dropout_key: Key[Array, "..."], rows: int) -> Key[Array, "B"]:
    """One key a row: the key folded with the row's index, unless it is one a row already."""
    if dropout_key.shape == (rows,):
        return dropout_key
    if dropout_key.shape != ():
        raise ValueError(
            f"dropout_key must be one typed key, or one for each of {rows} rows, "
            f"not {dropout_key.shape}"
        )
    return jax.vmap(lambda row: jax.random.fold_in(dropout_key, row))(jnp.arange(rows))


def site_keys(keys_B: Key[Array, "B"], layer: int, site: Site) -> Key[Array, "B"]:
    """The rows' keys for one place in the network; the embeddings are layer -1."""
    place = (layer + 1) * len(Site) + site
    return jax.vmap(lambda key: jax.random.fold_in(key, place))(keys_B)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dropout:
    """Dropout at one site of one layer: a rate and a key for each row; by default none."""

    rate: float = dataclasses.field(default=0.0, metadata={"static": True})
    keys_B: Key[Array, "B"] | None = None

    @classmethod
    def at(
        cls, keys_B: Key[Array, "B"] | None, rate: float, *, layer: int, site: Site
    ) -> "Dropout":
        """From the rows' keys; no dropout if these are None or the rate is 0."""
        if keys_B is None or not rate:
            return NO_DROPOUT
        return cls(rate, site_keys(keys_B, layer, site))

    def __call__(self, x_BLE: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        """Drops elements with probability `rate` and scales the rest."""
        return drop_elements(x_BLE, self.keys_B, self.rate) if self.rate else x_BLE


NO_DROPOUT = Dropout()


def dropout(
    x_BLE: Float[Array, "B L E"],
    rate: float,
    keys_B: Key[Array, "B"] | None,
    *,
    layer: int,
    site: Site,
) -> Float[Array, "B L E"]:
    """Drops elements with probability `rate` and scales the rest; keys_B=None drops nothing."""
    return Dropout.at(keys_B, rate, layer=layer, site=site)(x_BLE)
