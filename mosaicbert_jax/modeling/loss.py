"""The masked-language-model loss, which never holds the logits of a whole batch.

Logits of P positions a row over V words are the largest array of the step. Here they exist one
chunk at a time: a chunk's loss and the gradients of its inputs are computed together while its
logits are there, so that nothing is stored and nothing computed twice (the "fused linear
cross-entropy" of Liger Kernel, Hsu et al., 2024, arXiv:2410.10989).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mosaicbert_jax.modeling.on_mesh import on_own_rows
from pallas_kernels import cross_entropy_and_gradient

CHUNK_PREDICTIONS = 2048  # predictions whose logits exist at one time, on one device


@jax.custom_vjp
def masked_lm_loss(
    hidden_BPE: Float[Array, "B P E"],
    embedding_VE: Float[Array, "V E"],
    bias_V: Float[Array, "V"],
    labels_BP: Int[Array, "B P"],
    weights_BP: Float[Array, "B P"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sums cross-entropy and correct guesses over predicted positions.

    Args:
      hidden_BPE: the head's transformed hidden states.
      embedding_VE, bias_V: the decoder, tied to the word embeddings; float32.
      labels_BP: int32 ids. Where weights_BP is 0 the slot counts for nothing.
      weights_BP: float32, 1 for a prediction.

    Returns:
      (sum of weighted cross-entropies, weighted number of correct guesses), float32 scalars.
      Divide by the sum of the weights of the global batch for the means.
    """
    divided, decoder = (hidden_BPE, labels_BP, weights_BP), (embedding_VE, bias_V)
    sums, _ = _on_each_device(divided, decoder, with_gradients=False)
    return sums


def _on_each_device(divided: tuple, decoder: tuple, *, with_gradients: bool):
    """The sums, and the gradients of the hidden states and of the decoder.

    Each device goes through its own rows in chunks. The gradients of the decoder have an axis over
    the devices in front, so that what the devices found is added up once, and not in each chunk.
    """

    def call(hidden_BPE, labels_BP, weights_BP, embedding_VE, bias_V):
        sums, gradients = _chunked(
            hidden_BPE, embedding_VE, bias_V, labels_BP, weights_BP, with_gradients
        )
        if with_gradients:
            d_hidden_BPE, *d_decoder = gradients
            gradients = d_hidden_BPE, *(gradient[None] for gradient in d_decoder)
        return tuple(total[None] for total in sums), gradients

    sums, gradients = on_own_rows(call, divided, decoder)
    return tuple(total.sum(axis=0) for total in sums), gradients


def _chunk_count(rows: int, predictions: int) -> int:
    """The fewest equal chunks of the P axis that stay within the bound."""
    for count in range(1, predictions + 1):
        if predictions % count == 0 and rows * predictions // count <= CHUNK_PREDICTIONS:
            return count
    return max(1, predictions)


def _chunk(hidden_BPE, table_VE, bias_V, labels_BP, weights_BP, with_gradients):
    """One chunk: (loss sum, correct sum), and the gradients of its hidden states and decoder.

    table_VE is the decoder in the dtype of the hidden states; its gradient is float32.
    """
    dtype = hidden_BPE.dtype
    hidden_NE = hidden_BPE.reshape(-1, hidden_BPE.shape[-1])
    labels_N, weights_N = labels_BP.reshape(-1), weights_BP.reshape(-1)
    # In bfloat16, as their gradient is, which halves what moves here. Those of an evaluation are
    # float32, as in bfloat16 two highest logits are often equal.
    logits_dtype = dtype if with_gradients else jnp.float32
    logits_NV = jnp.einsum("ne,ve->nv", hidden_NE, table_VE, preferred_element_type=logits_dtype)
    logits_NV += bias_V.astype(logits_dtype)
    loss_N, is_correct_N, d_logits_NV = cross_entropy_and_gradient(
        logits_NV,
        labels_N,
        weights_N,
        backend="auto" if with_gradients else "xla",  # whose gradient is not computed if unused
    )
    # where, not a product: an unused slot must not turn a NaN or inf of its own into the sum's.
    used_N = weights_N > 0
    sums = (
        jnp.sum(jnp.where(used_N, loss_N * weights_N, 0.0)),
        jnp.sum(jnp.where(used_N & is_correct_N, weights_N, 0.0)),
    )
    if not with_gradients:
        return sums, None
    # The barrier has the gradient written once, as the three products below read it; without it
    # XLA's CPU compiler writes a transposed copy too, and this function takes a fifth longer.
    d_logits_NV = jax.lax.optimization_barrier(d_logits_NV)
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_hidden_NE = einsum("nv,ve->ne", d_logits_NV, table_VE).astype(dtype)
    d_embedding_VE = einsum("nv,ne->ve", d_logits_NV, hidden_NE)
    d_bias_V = jnp.sum(d_logits_NV.astype(jnp.float32), axis=0)
    return sums, (d_hidden_NE.reshape(hidden_BPE.shape), d_embedding_VE, d_bias_V)


def _chunked(hidden_BPE, embedding_VE, bias_V, labels_BP, weights_BP, with_gradients):
    rows, predictions = labels_BP.shape
    count = _chunk_count(rows, predictions)
    # The barrier has it converted once, and not in each chunk.
    table_VE = jax.lax.optimization_barrier(embedding_VE.astype(hidden_BPE.dtype))
    if count == 1:
        return _chunk(hidden_BPE, table_VE, bias_V, labels_BP, weights_BP, with_gradients)

    def split(x):
        return jnp.moveaxis(x.reshape(rows, count, predictions // count, *x.shape[2:]), 1, 0)

    def step(totals, chunk):
        sums, gradients = _chunk(chunk[0], table_VE, bias_V, chunk[1], chunk[2], with_gradients)
        if not with_gradients:
            return jax.tree.map(jnp.add, totals, (sums, None)), None
        d_hidden_BPE, *d_decoder = gradients
        return jax.tree.map(jnp.add, totals, (sums, d_decoder)), d_hidden_BPE

    zero = jnp.zeros((), jnp.float32)
    d_decoder = [jnp.zeros_like(embedding_VE), jnp.zeros_like(bias_V)] if with_gradients else None
    (sums, d_decoder), stacked = jax.lax.scan(
        step, ((zero, zero), d_decoder), (split(hidden_BPE), split(labels_BP), split(weights_BP))
    )
    if not with_gradients:
        return sums, None
    d_hidden_BPE = jnp.moveaxis(stacked, 0, 1).reshape(hidden_BPE.shape)
    return sums, (d_hidden_BPE, *d_decoder)


def _forward(hidden_BPE, embedding_VE, bias_V, labels_BP, weights_BP):
    divided, decoder = (hidden_BPE, labels_BP, weights_BP), (embedding_VE, bias_V)
    return _on_each_device(divided, decoder, with_gradients=True)


def _backward(gradients, cotangents):
    d_loss, _ = cotangents  # the number of correct guesses has no gradient
    d_hidden_BPE, *d_decoder = gradients
    d_embedding_VE, d_bias_V = (gradient.sum(axis=0) for gradient in d_decoder)
    return (
        (d_hidden_BPE * d_loss).astype(d_hidden_BPE.dtype),
        d_embedding_VE * d_loss,
        d_bias_V * d_loss,
        None,
        None,
    )


masked_lm_loss.defvjp(_forward, _backward)
