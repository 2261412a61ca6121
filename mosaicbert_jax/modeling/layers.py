"""One encoder layer and its parts, for MosaicBERT and the BERT baseline alike.

Post-LayerNorm: x = norm(dropout(output(attention(x))) + x); y = norm(feed_forward(x) + x).
"""

import functools
import math

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


class Dense(nnx.Module):
    """x · kernel + bias, in x's dtype; kernel ~ N(0, initializer_range), bias 0, both float32.

    Args:
      outputs: sizes of the output's axes; the parameters are stored with these flattened.
      tensor_axis: the axis of (inputs, *outputs) that the mesh's tensor axis divides at use; None:
        the kernel is whole on every device.
      use_bias: False: there is no bias, and `bias` is None.
    """

    def __init__(
        self,
        config: BertConfig,
        inputs: int,
        *outputs: int,
        tensor_axis: int | None = None,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.shape, self.tensor_axis = (inputs, *outputs), tensor_axis
        width, normal = math.prod(outputs), nnx.initializers.normal(config.initializer_range)
        self.kernel = nnx.Param(normal(rngs.params(), (inputs, width), jnp.float32))
        zeros = nnx.initializers.zeros
        # The initializer ignores its key, but drawing one determines the keys of later layers.
        self.bias = nnx.Param(zeros(rngs.params(), (width,), jnp.float32)) if use_bias else None

    def kernel_at_use(self) -> Float[Array, "I *O"]:
        """The kernel in its full shape, divided over tensor only.

        It is stored with its first axis divided over fsdp and tensor. It is resharded in two steps,
        an exchange over tensor and then an all-gather over fsdp, so that no device holds it whole.
        """
        kernel_IO, axis = self.kernel[...].reshape(self.shape), self.tensor_axis
        if axis is None or jax.sharding.get_abstract_mesh().empty:
            return kernel_IO
        constrain = jax.lax.with_sharding_constraint
        if axis == 0:
            return constrain(kernel_IO, PartitionSpec(WIDTH_AXIS))
        between = (None,) * (axis - 1)
        kernel_IO = constrain(kernel_IO, PartitionSpec(FSDP_AXIS, *between, WIDTH_AXIS))
        return constrain(kernel_IO, PartitionSpec(None, *between, WIDTH_AXIS))

    def product(self, x_BLI: Float[Array, "... I"]) -> Float[Array, "..."]:
        """x · kernel, for callers that add the bias in a kernel of their own."""
        return matmul(x_BLI, self.kernel_at_use())

    def __call__(self, x_BLI: Float[Array, "... I"]) -> Float[Array, "..."]:
        y_BLO = self.product(x_BLI)
        if self.bias is None:
            return y_BLO
        return y_BLO + self.bias[...].astype(y_BLO.dtype).reshape(self.shape[1:])


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
        width, qkv_shape = config.hidden_size, (3, config.num_attention_heads, config.head_size)
        self.qkv = Dense(config, width, *qkv_shape, tensor_axis=2, rngs=rngs)
        self.output = Dense(config, width, width, tensor_axis=0, rngs=rngs)

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
        qkv_BL3HD = self.qkv.product(x_BLE)
        bias_3HD = self.qkv.bias[...].reshape(self.qkv.shape[1:])
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
        return context_BLHD.reshape(x_BLE.shape)


class FeedForward(nnx.Module):
    """GeGLU: output(dropout(GELU(g) * u)), [g | u] = input(x). BERT's: output(GELU(input(x)))."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.gated = config.feed_forward == "geglu"
        width = config.intermediate_size
        outputs = (2, width) if self.gated else (width,)
        self.input = Dense(
            config,
            config.hidden_size,
            *outputs,
            tensor_axis=len(outputs),
            use_bias=not self.gated,
            rngs=rngs,
        )
        self.output = Dense(config, width, config.hidden_size, tensor_axis=0, rngs=rngs)

    def __call__(
        self, x_BLE: Float[Array, "B L E"], keys_B: Key[Array, "B"] | None, layer: int
    ) -> Float[Array, "B L E"]:
        """Without the output's bias, and without the dropout that BERT has behind it."""
        if not self.gated:
            return self.output.product(gelu(self.input(x_BLE)))
        rate = self.config.hidden_dropout_prob if keys_B is not None else 0.0
        return geglu_linear(
            self.input.product(x_BLE),
            self.output.kernel_at_use(),
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
            self.attention.output.product(context_BLE),
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
