"""One encoder layer and its parts, for MosaicBERT and the BERT baseline alike.

Post-LayerNorm: x = norm(dropout(output(attention(x))) + x); y = norm(feed_forward(x) + x).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.dropout import Site, site_keys
from mosaicbert_jax.modeling.on_mesh import (
    FSDP_AXIS,
    ROW_AXES,
    WIDTH_AXIS,
    on_own_columns,
    on_own_parts,
    on_own_rows,
)
from pallas_kernels import (
    BlockRanges,
    alibi_attention_qkv,
    alibi_slopes,
    geglu_linear,
    gelu,
    matmul,
    residual_norm,
    sum_rows,
)


def _promote_all_but_kernel(arrays, *, dtype):
    x, kernel, *bias = arrays
    return x.astype(dtype), kernel, *(None if b is None else b.astype(dtype) for b in bias)


# Not a lambda: models that are alike have equal graphs, and share what is compiled for one.
def _product(x, kernel, *_, **__):
    return matmul(x, kernel)


def linear(config: BertConfig, inputs: int, outputs: int, *, use_bias: bool = True, rngs: nnx.Rngs):
    """A dense layer with BERT's initialisation: weights N(0, initializer_range), biases 0."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        dtype=config.compute_dtype,
        kernel_init=nnx.initializers.normal(config.initializer_range),
        dot_general=_product,
        promote_dtype=_promote_all_but_kernel,
        rngs=rngs,
    )


def embedding(config: BertConfig, entries: int, *, rngs: nnx.Rngs) -> nnx.Embed:
    """A table of hidden_size columns, N(0, initializer_range).

    Its gradient is summed in float32, as that of a frequent token is a sum over thousands of
    places: in bfloat16 a sum stops growing at 256 times what is added.
    """
    init = nnx.initializers.normal(config.initializer_range)
    return nnx.Embed(entries, config.hidden_size, embedding_init=init, rngs=rngs)


def look_up(
    table_VE: Float[Array, "V E"], index_BL: Int[Array, "B L"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "B L E"]:
    """The entries, rounded to `dtype`, of a table that is whole on every device.

    An index beyond the table gives NaN. The gradient is summed in float32, in a fixed order on
    GPUs that have the kernel for it; each device sums that of its own rows, so that only those
    sums meet.
    """
    return _look_up(table_VE.shape[0], jnp.dtype(dtype), table_VE, index_BL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _look_up(entries: int, dtype: jnp.dtype, table_VE, index_BL):
    return jnp.take(table_VE, index_BL, axis=0).astype(dtype)


def _look_up_forward(entries: int, dtype: jnp.dtype, table_VE, index_BL):
    return _look_up(entries, dtype, table_VE, index_BL), index_BL


def _look_up_backward(entries: int, dtype: jnp.dtype, index_BL, d_entries_BLE):
    def call(d_entries_BLE, index_BL):
        d_entries_NE = d_entries_BLE.reshape(-1, d_entries_BLE.shape[-1])
        return sum_rows(d_entries_NE, index_BL.reshape(-1), entries)[None]

    return on_own_rows(call, (d_entries_BLE, index_BL)).sum(axis=0), None


_look_up.defvjp(_look_up_forward, _look_up_backward)


def layer_norm(config: BertConfig, *, epsilon: float | None = None, rngs: nnx.Rngs):
    """LayerNorm over hidden_size in config.norm_dtype, with statistics in float32."""
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps if epsilon is None else epsilon,
        dtype=config.norm_dtype,
        use_fast_variance=False,  # E[x²] - E[x]² loses the digits that the golden values have
        rngs=rngs,
    )


def norm_of_sum(
    norm: nnx.LayerNorm,
    x_BLE: Float[Array, "B L E"],
    residual_BLE: Float[Array, "B L E"],
    *,
    bias: nnx.Param | None = None,
    dropout_rate: float = 0.0,
    keys_B: Key[Array, "B"] | None = None,
) -> Float[Array, "B L E"]:
    """norm(dropout(x + bias) + residual)."""

    def call(x_BLE, residual_BLE, keys_B, scale_E, bias_E, x_bias_E):
        return residual_norm(
            x_BLE,
            residual_BLE,
            scale_E,
            bias_E,
            x_bias_E=x_bias_E,
            epsilon=norm.epsilon,
            norm_dtype=norm.dtype,
            dropout_rate=dropout_rate,
            dropout_keys_B=keys_B,
        )

    vectors = norm.scale[...], norm.bias[...], None if bias is None else bias[...]
    return on_own_rows(call, (x_BLE, residual_BLE, keys_B), vectors)


def over_width(kernel: jax.Array, axis: int) -> jax.Array:
    """A layer's kernel as it is used on a mesh: whole, but for `axis`, which tensor divides.

    It is stored with its first axis divided over fsdp and tensor. The way between is in two steps,
    first an exchange over tensor and then a gathering over fsdp, so that no device has it whole.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return kernel
    before = (None,) * (axis - 1)
    if axis:
        exchanged = PartitionSpec(FSDP_AXIS, *before, WIDTH_AXIS)
        kernel = jax.lax.with_sharding_constraint(kernel, exchanged)
        return jax.lax.with_sharding_constraint(kernel, PartitionSpec(None, *before, WIDTH_AXIS))
    return jax.lax.with_sharding_constraint(kernel, PartitionSpec(WIDTH_AXIS))


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


class SelfAttention(nnx.Module):
    """Multi-head attention within segments; one projection to query, key and value."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.qkv = linear(config, config.hidden_size, 3 * config.hidden_size, rngs=rngs)
        self.output = linear(config, config.hidden_size, config.hidden_size, rngs=rngs)

    def context(
        self,
        x_BLE: Float[Array, "B L E"],
        segment_ids_BL: Int[Array, "B L"],
        ranges: BlockRanges,
        keys_B: Key[Array, "B"] | None,
        layer: int,
    ) -> Float[Array, "B L E"]:
        """Attention before its output projection."""
        config = self.config
        heads = config.num_attention_heads
        rows, length, width = x_BLE.shape
        shape = (3, heads, config.head_size)
        kernel_E3HD = over_width(self.qkv.kernel[...].reshape(width, *shape), 2)
        qkv_BL3HD = matmul(x_BLE, kernel_E3HD)
        bias_3HD = self.qkv.bias[...].reshape(shape)
        rate = config.attention_probs_dropout_prob if keys_B is not None else 0.0
        alibi = config.position_embedding == "alibi"
        # The baseline has no bias: the same attention with slopes of 0.
        slopes_H = alibi_slopes(heads) if alibi else np.zeros(heads, np.float32)
        keys_B = site_keys(keys_B, layer, Site.ATTENTION_WEIGHTS) if rate else None

        def attend(qkv_BL3HD, bias_3HD, segment_ids_BL, ranges, slopes_H, keys_B):
            return alibi_attention_qkv(
                qkv_BL3HD,
                segment_ids_BL,
                bias_3HD=bias_3HD,
                slopes_H=slopes_H,
                block_ranges=ranges,
                dropout_rate=rate,
                dropout_keys_B=keys_B,
            )

        # Neither rows nor heads meet: each device attends to its own, with no communication.
        rows_spec = PartitionSpec(ROW_AXES)
        in_specs = (
            PartitionSpec(ROW_AXES, None, None, WIDTH_AXIS),
            PartitionSpec(None, WIDTH_AXIS),
            rows_spec,
            rows_spec,
            PartitionSpec(WIDTH_AXIS),
            rows_spec,
        )
        out_specs = PartitionSpec(ROW_AXES, None, WIDTH_AXIS)
        context_BLHD = on_own_parts(attend, in_specs, out_specs)(
            qkv_BL3HD, bias_3HD, segment_ids_BL, ranges, jnp.asarray(slopes_H), keys_B
        )
        return context_BLHD.reshape(rows, length, width)


class FeedForward(nnx.Module):
    """GeGLU: output(dropout(GELU(g) * u)), [g | u] = input(x). BERT's: output(GELU(input(x)))."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.gated = config.feed_forward == "geglu"
        width = config.intermediate_size
        self.input = linear(
            config,
            config.hidden_size,
            2 * width if self.gated else width,
            use_bias=not self.gated,
            rngs=rngs,
        )
        self.output = linear(config, width, config.hidden_size, rngs=rngs)

    def __call__(
        self, x_BLE: Float[Array, "B L E"], keys_B: Key[Array, "B"] | None, layer: int
    ) -> Float[Array, "B L E"]:
        """Without the output's bias, and without the dropout that BERT has behind it."""
        output_FE = over_width(self.output.kernel[...], 0)
        if not self.gated:
            projected = matmul(x_BLE, over_width(self.input.kernel[...], 1))
            return matmul(gelu(projected + self.input.bias[...].astype(x_BLE.dtype)), output_FE)
        kernel_E2F = self.input.kernel[...].reshape(x_BLE.shape[-1], 2, -1)
        rate = self.config.hidden_dropout_prob if keys_B is not None else 0.0
        return geglu_linear(
            matmul(x_BLE, over_width(kernel_E2F, 2)),
            output_FE,
            dropout_rate=rate,
            dropout_keys_B=site_keys(keys_B, layer, Site.FEED_FORWARD) if rate else None,
            divide=on_own_columns,
        )


class EncoderLayer(nnx.Module):
    """Attention and feed-forward, each with its residual and LayerNorm after it."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.attention = SelfAttention(config, rngs=rngs)
        self.attention_norm = layer_norm(config, rngs=rngs)
        self.feed_forward = FeedForward(config, rngs=rngs)
        self.feed_forward_norm = layer_norm(config, rngs=rngs)

    def __call__(
        self,
        x_BLE: Float[Array, "B L E"],
        segment_ids_BL: Int[Array, "B L"],
        ranges: BlockRanges,
        keys_B: Key[Array, "B"] | None,
        layer: int,
        positions_BP: Int[Array, "B P"] | None = None,
    ) -> Float[Array, "B L E"]:
        """One layer; with positions_BP all that follows the attention runs on those columns only.

        Returns:
          (B, L, E), or (B, P, E) with positions_BP.
        """
        context_BLE = self.attention.context(x_BLE, segment_ids_BL, ranges, keys_B, layer)
        if positions_BP is not None:
            context_BLE = gather_columns(context_BLE, positions_BP)
            x_BLE = gather_columns(x_BLE, positions_BP)
        rate = self.config.hidden_dropout_prob if keys_B is not None else 0.0
        x_BLE = norm_of_sum(
            self.attention_norm,
            matmul(context_BLE, over_width(self.attention.output.kernel[...], 0)),
            x_BLE,
            bias=self.attention.output.bias,
            dropout_rate=rate,
            keys_B=site_keys(keys_B, layer, Site.HIDDEN) if rate else None,
        )
        # BERT's dropout stands behind the feed-forward, MosaicBERT's within.
        behind = 0.0 if self.feed_forward.gated else rate
        return norm_of_sum(
            self.feed_forward_norm,
            self.feed_forward(x_BLE, keys_B, layer),
            x_BLE,
            bias=self.feed_forward.output.bias,
            dropout_rate=behind,
            keys_B=site_keys(keys_B, layer, Site.FEED_FORWARD) if behind else None,
        )
