"""The masked-language-model loss, which never holds the logits of a whole batch.

Logits of P positions a row over V words are the largest array of the step. Here they exist one
chunk at a time: a chunk's loss and the gradients of its inputs are computed together while its
logits are there, so that nothing is stored and nothing computed twice (the "fused linear
cross-entropy" of Liger Kernel, Hsu et al., 2024, arXiv:2410.10989).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mosaicbert_jax.modeling.on_mesh import on_own_rows
from pallas_kernels import cross_entropy_and_gradient

CHUNK_PREDICTIONS = 2048  # predictions whose logits exist at one time, on one device


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftTargets:
    """What a teacher predicts at the same positions (Hinton et al., 2015, arXiv:1503.02531).

    Attributes:
      hidden_BPE: the transformed hidden states of its head.
      table_VE, bias_V: its decoder.
      weight: of the teacher in the loss; the labels have the rest.
      temperature: by which both models' logits are divided.
    """

    hidden_BPE: Float[Array, "B P E"]
    table_VE: Float[Array, "V E"]
    bias_V: Float[Array, "V"]
    weight: float = dataclasses.field(metadata={"static": True})
    temperature: float = dataclasses.field(metadata={"static": True})

    def on(self, hidden_BPE: jax.Array) -> "SoftTargets":
        """The same decoder on other hidden states."""
        return dataclasses.replace(self, hidden_BPE=hidden_BPE)

    def mixed(self, logits_NV, loss_N, d_logits_NV, weights_N):
        """(1 - w) cross-entropy + w T^2 KL(teacher || model), and its gradient of the logits."""
        weight, temperature = self.weight, self.temperature
        theirs_NE = self.hidden_BPE.reshape(-1, self.hidden_BPE.shape[-1])
        theirs_NV = jnp.einsum(
            "ne,ve->nv", theirs_NE, self.table_VE, preferred_element_type=jnp.float32
        )
        theirs_NV += self.bias_V
        log_p_NV = jax.nn.log_softmax(theirs_NV / temperature)
        log_q_NV = jax.nn.log_softmax(logits_NV.astype(jnp.float32) / temperature)
        p_NV = jnp.exp(log_p_NV)
        divergence_N = jnp.sum(p_NV * (log_p_NV - log_q_NV), axis=1)
        d_soft_NV = temperature * (jnp.exp(log_q_NV) - p_NV) * weights_N[:, None]
        loss_N = (1 - weight) * loss_N + weight * temperature**2 * divergence_N
        d_logits_NV = (1 - weight) * d_logits_NV + weight * d_soft_NV.astype(d_logits_NV.dtype)
        return loss_N, d_logits_NV


@jax.custom_vjp
def masked_lm_loss(
    hidden_BPE: Float[Array, "B P E"],
    embedding_VE: Float[Array, "V E"],
    bias_V: Float[Array, "V"],
    labels_BP: Int[Array, "B P"],
    weights_BP: Float[Array, "B P"],
    teacher: SoftTargets | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sums cross-entropy and correct guesses over predicted positions.

    Args:
      hidden_BPE: the head's transformed hidden states.
      embedding_VE, bias_V: the decoder, tied to the word embeddings; float32.
      labels_BP: int32 ids. Where weights_BP is 0 the slot counts for nothing.
      weights_BP: float32, 1 for a prediction.
      teacher: see `SoftTargets`; its vocabulary is the model's, and it has no gradient.

    Returns:
      (sum of weighted losses, weighted number of correct guesses), float32 scalars.
      Divide by the sum of the weights of the global batch for the means.
    """
    divided, decoder = (hidden_BPE, labels_BP, weights_BP), (embedding_VE, bias_V)
    sums, _ = _on_each_device(divided, decoder, teacher, with_gradients=False)
    return sums


def _on_each_device(
    divided: tuple, decoder: tuple, teacher: SoftTargets | None, *, with_gradients: bool
):
    """The sums, and the gradients of the hidden states and of the decoder.

    Each device goes through its own rows in chunks. The gradients of the decoder have an axis over
    the devices in front, so that what the devices found is added up once, and not in each chunk.
    """

    def call(hidden_BPE, labels_BP, weights_BP, theirs_BPE, embedding_VE, bias_V, teacher):
        teacher = None if teacher is None else teacher.on(theirs_BPE)
        sums, gradients = _chunked(
            hidden_BPE, embedding_VE, bias_V, labels_BP, weights_BP, teacher, with_gradients
        )
        if with_gradients:
            d_hidden_BPE, *d_decoder = gradients
            gradients = d_hidden_BPE, *(gradient[None] for gradient in d_decoder)
        return tuple(total[None] for total in sums), gradients

    theirs_BPE = None
    if teacher is not None:  # its hidden states are divided, its decoder is not
        theirs_BPE, teacher = teacher.hidden_BPE, teacher.on(None)
    sums, gradients = on_own_rows(call, (*divided, theirs_BPE), (*decoder, teacher))
    return tuple(total.sum(axis=0) for total in sums), gradients


def _chunk_count(rows: int, predictions: int) -> int:
    """The fewest equal chunks of the P axis that stay within the bound."""
    for count in range(1, predictions + 1):
        if predictions % count == 0 and rows * predictions // count <= CHUNK_PREDICTIONS:
            return count
    return max(1, predictions)


def _chunk(hidden_BPE, table_VE, bias_V, labels_BP, weights_BP, teacher, with_gradients):
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
    if teacher is not None:
        loss_N, d_logits_NV = teacher.mixed(logits_NV, loss_N, d_logits_NV, weights_N)
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


def _chunked(hidden_BPE, embedding_VE, bias_V, labels_BP, weights_BP, teacher, with_gradients):
    rows, predictions = labels_BP.shape
    count = _chunk_count(rows, predictions)
    # The barrier has it converted once, and not in each chunk.
    table_VE = jax.lax.optimization_barrier(embedding_VE.astype(hidden_BPE.dtype))
    if count == 1:
        return _chunk(hidden_BPE, table_VE, bias_V, labels_BP, weights_BP, teacher, with_gradients)

    def split(x):
        return jnp.moveaxis(x.reshape(rows, count, predictions // count, *x.shape[2:]), 1, 0)

    def step(totals, chunk):
        hidden_BPE, labels_BP, weights_BP, theirs_BPE = chunk
        taught = None if teacher is None else teacher.on(theirs_BPE)
        sums, gradients = _chunk(
            hidden_BPE, table_VE, bias_V, labels_BP, weights_BP, taught, with_gradients
        )
        if not with_gradients:
            return jax.tree.map(jnp.add, totals, (sums, None)), None
        d_hidden_BPE, *d_decoder = gradients
        return jax.tree.map(jnp.add, totals, (sums, d_decoder)), d_hidden_BPE

    zero = jnp.zeros((), jnp.float32)
    d_decoder = [jnp.zeros_like(embedding_VE), jnp.zeros_like(bias_V)] if with_gradients else None
    (sums, d_decoder), stacked = jax.lax.scan(
        step,
        ((zero, zero), d_decoder),
        (
            split(hidden_BPE),
            split(labels_BP),
            split(weights_BP),
            None if teacher is None else split(teacher.hidden_BPE),
        ),
    )
    if not with_gradients:
        return sums, None
    d_hidden_BPE = jnp.moveaxis(stacked, 0, 1).reshape(hidden_BPE.shape)
    return sums, (d_hidden_BPE, *d_decoder)


def _forward(hidden_BPE, embedding_VE, bias_V, labels_BP, weights_BP, teacher=None):
    divided, decoder = (hidden_BPE, labels_BP, weights_BP), (embedding_VE, bias_V)
    return _on_each_device(divided, decoder, teacher, with_gradients=True)


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
        None,
    )


masked_lm_loss.defvjp(_forward, _backward)
