"""Some columns of each row, taken and put back, with gradients that add in no varying order."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def gather_columns(
    x_BLE: Float[Array, "B L E"], columns_BP: Int[Array, "B P"]
) -> Float[Array, "B P E"]:
    """x_BLE[b, columns_BP[b, p]]: within the row, so a sharded batch needs no communication.

    The gradient is a product with ones at (p, column) and zeros elsewhere: a scatter would add
    atomically on GPUs, in any order. The product is exact where a column is taken once.
    """
    return jnp.take_along_axis(x_BLE, columns_BP[:, :, None], axis=1)


def _gather_columns_forward(x_BLE, columns_BP):
    return gather_columns(x_BLE, columns_BP), (columns_BP, jnp.arange(x_BLE.shape[1]))


def _gather_columns_backward(saved, d_BPE):
    columns_BP, column_L = saved
    is_taken_BPL = (columns_BP[:, :, None] == column_L).astype(d_BPE.dtype)
    d_x_BLE = jnp.einsum(
        "bpl,bpe->ble",
        is_taken_BPL,
        d_BPE,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=d_BPE.dtype,
    )
    return d_x_BLE, None


gather_columns.defvjp(_gather_columns_forward, _gather_columns_backward)


@jax.custom_vjp
def spread_columns(
    x_BPE: Float[Array, "B P *E"], columns_BP: Int[Array, "B P"], column_L: Int[Array, "L"]
) -> Float[Array, "B L *E"]:
    """The inverse of `gather_columns`: slot p at columns_BP[b, p], and 0 where no slot stands.

    Of slots with one column the first is taken. `column_L` counts the columns.
    """
    return _spread_columns_forward(x_BPE, columns_BP, column_L)[0]


def _along(x_BPE, index_BL):
    return jnp.take_along_axis(x_BPE, _with_axes_of(index_BL, x_BPE), axis=1)


def _with_axes_of(index_BL, x_BPE):
    return index_BL.reshape(*index_BL.shape, *(1,) * (x_BPE.ndim - 2))


def _spread_columns_forward(x_BPE, columns_BP, column_L):
    is_at_BPL = columns_BP[:, :, None] == column_L
    slot_BL = jnp.argmax(is_at_BPL, axis=1)
    is_taken_BL = jnp.any(is_at_BPL, axis=1)
    is_first_BP = jnp.take_along_axis(slot_BL, columns_BP, axis=1) == jnp.arange(x_BPE.shape[1])
    spread_BLE = _masked(_along(x_BPE, slot_BL), is_taken_BL)
    return spread_BLE, (columns_BP, is_first_BP)


def _spread_columns_backward(saved, d_BLE):
    columns_BP, is_first_BP = saved
    return _masked(_along(d_BLE, columns_BP), is_first_BP), None, None


def _masked(x_BPE, mask_BP):
    return jnp.where(_with_axes_of(mask_BP, x_BPE), x_BPE, 0)


spread_columns.defvjp(_spread_columns_forward, _spread_columns_backward)
