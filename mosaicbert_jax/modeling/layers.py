"""One encoder layer and its parts, for MosaicBERT, the BERT baseline and ModernBERT alike.

Post-norm: x = norm(dropout(output(attention(x))) + x); y = norm(feed_forward(x) + x).
Pre-norm: x = x + dropout(output(attention(norm(x)))); y = x + feed_forward(norm(x)). There each sum
is computed together with the norm that follows it, which may be the next layer's.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from mosaicbert_jax.modeling.columns import gather_columns, spread_columns
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.dropout import NO_DROPOUT, Dropout, Site
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


def weight_initializer(config: BertConfig, *, is_output: bool = False) -> nnx.Initializer:
    """N(0, initializer_range); for pre-norm as ModernBERT's.

    That is cut at two standard deviations and, for projections whose output is added to the
    residual stream, divided by the root of twice the layers.
    """
    if config.norm_position == "post":
        return nnx.initializers.normal(config.initializer_range)
    scale = (2 * config.num_hidden_layers) ** -0.5 if is_output else 1.0
    return nnx.initializers.truncated_normal(config.initializer_range * scale)


def embedding(config: BertConfig, entries: int, *, rngs: nnx.Rngs) -> nnx.Embed:
    """A table of hidden_size columns; see `weight_initializer`.

    Its gradient is summed in float32, as that of a frequent token is a sum over thousands of
    places: in bfloat16 a sum stops growing at 256 times what is added.
    """
    init = weight_initializer(config)
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


class Norm(nnx.Module):
    """LayerNorm or RMSNorm over hidden_size in config.norm_dtype, with statistics in float32."""

    def __init__(self, config: BertConfig, *, epsilon: float | None = None, rngs: nnx.Rngs):
        self.epsilon = config.layer_norm_eps if epsilon is None else epsilon
        self.center, self.dtype = config.normalization == "layernorm", config.norm_dtype
        width = config.hidden_size
        # The initializers ignore their keys, but drawing these determines those of later layers.
        self.scale = nnx.Param(nnx.initializers.ones(rngs.params(), (width,), jnp.float32))
        zeros_E = nnx.initializers.zeros(rngs.params(), (width,), jnp.float32)
        self.bias = nnx.Param(zeros_E) if config.norm_bias else None

    def __call__(self, x_BLE: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        """norm(x), by the compiler, which makes it part of what stands before."""
        return residual_norm(
            x_BLE,
            jnp.zeros_like(x_BLE),
            self.scale[...],
            None if self.bias is None else self.bias[...],
            epsilon=self.epsilon,
            center=self.center,
            norm_dtype=self.dtype,
            backend="xla",
        )

    def of_sum(
        self,
        x_BLE: Float[Array, "B L E"],
        residual_BLE: Float[Array, "B L E"],
        *,
        bias: nnx.Param | None = None,
        dropout: Dropout = NO_DROPOUT,
    ) -> Float[Array, "B L E"]:
        """norm(dropout(x + bias) + residual)."""
        return self._call(x_BLE, residual_BLE, bias, dropout)

    def with_sum(
        self,
        x_BLE: Float[Array, "B L E"],
        residual_BLE: Float[Array, "B L E"],
        *,
        bias: nnx.Param | None = None,
        dropout: Dropout = NO_DROPOUT,
    ) -> tuple[Float[Array, "B L E"], Float[Array, "B L E"]]:
        """norm(sum) and the sum, dropout(x + bias) + residual."""
        return self._call(x_BLE, residual_BLE, bias, dropout, returns_sum=True)

    def _call(self, x_BLE, residual_BLE, bias, dropout, *, returns_sum: bool = False):
        def call(x_BLE, residual_BLE, dropout, scale_E, bias_E, x_bias_E):
            return residual_norm(
                x_BLE,
                residual_BLE,
                scale_E,
                bias_E,
                x_bias_E=x_bias_E,
                epsilon=self.epsilon,
                center=self.center,
                norm_dtype=self.dtype,
                dropout_rate=dropout.rate,
                dropout_keys_B=dropout.keys_B,
                returns_sum=returns_sum,
            )

        biases = (None if param is None else param[...] for param in (self.bias, bias))
        return on_own_rows(call, (x_BLE, residual_BLE, dropout), (self.scale[...], *biases))


class Dense(nnx.Module):
    """x · kernel [+ bias], in x's dtype; the bias starts at 0, and both are float32.

    Args:
      outputs: sizes of the output's axes; the parameters are stored with these flattened.
      tensor_axis: the axis of (inputs, *outputs) that the mesh's tensor axis divides at use; None:
        the kernel is whole on every device.
      is_output: see `weight_initializer`.
    """

    def __init__(
        self,
        config: BertConfig,
        inputs: int,
        *outputs: int,
        tensor_axis: int | None = None,
        use_bias: bool = True,
        is_output: bool = False,
        rngs: nnx.Rngs,
    ):
        self.shape, self.tensor_axis = (inputs, *outputs), tensor_axis
        width, init = math.prod(outputs), weight_initializer(config, is_output=is_output)
        self.kernel = nnx.Param(init(rngs.params(), (inputs, width), jnp.float32))
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
        if axis:
            kernel_IO = constrain(kernel_IO, P(FSDP_AXIS, *(None,) * (axis - 1), WIDTH_AXIS))
        return constrain(kernel_IO, P(*(None,) * axis, WIDTH_AXIS))

    def product(self, x_BLI: Float[Array, "... I"]) -> Float[Array, "..."]:
        """x · kernel, for callers that add the bias in a kernel of their own."""
        return matmul(x_BLI, self.kernel_at_use())

    def __call__(self, x_BLI: Float[Array, "... I"]) -> Float[Array, "..."]:
        """x kernel + bias, in x's dtype."""
        y_BLO = self.product(x_BLI)
        if self.bias is None:
            return y_BLO
        return y_BLO + self.bias[...].astype(y_BLO.dtype).reshape(self.shape[1:])


class SelfAttention(nnx.Module):
    """Multi-head attention within segments; one projection to query, key and value."""

    def __init__(self, config: BertConfig, index: int, *, rngs: nnx.Rngs):
        self.config, self.window = config, config.window_of(index)
        width, qkv_shape = config.hidden_size, (3, config.num_attention_heads, config.head_size)
        options = {"use_bias": config.use_bias, "rngs": rngs}
        self.qkv = Dense(config, width, *qkv_shape, tensor_axis=2, **options)
        self.output = Dense(config, width, width, tensor_axis=0, is_output=True, **options)

    def context(
        self,
        x_BLE: Float[Array, "B L E"],
        segment_ids_BL: Int[Array, "B L"],
        ranges: BlockRanges,
        dropout: Dropout,
        positions_BP: Int[Array, "B P"] | None = None,
        source_BLE: Float[Array, "B L E"] | None = None,
    ) -> Float[Array, "B L E"]:
        """Attention before its output projection.

        Args:
          positions_BP: the columns of what is returned; None: all.
          source_BLE: what keys and values are of; x is then (B, P, E), at the positions. None: x.
        """
        config = self.config
        if source_BLE is None:
            qkv_BL3HD = self.qkv.product(x_BLE)
        else:
            kernel_E3HD = self.qkv.kernel_at_use()
            query_BL1HD = matmul(x_BLE, kernel_E3HD[:, :1])
            if positions_BP is not None:
                column_L = jnp.arange(source_BLE.shape[1])
                query_BL1HD = spread_columns(query_BL1HD, positions_BP, column_L)
            key_value_BL2HD = matmul(source_BLE, kernel_E3HD[:, 1:])
            qkv_BL3HD = jnp.concatenate([query_BL1HD, key_value_BL2HD], axis=2)
        bias_3HD = slopes_H = theta = None
        if self.qkv.bias is not None:
            bias_3HD = self.qkv.bias[...].reshape(self.qkv.shape[1:])
        if config.position_embedding == "rope":
            is_local = self.window is not None
            theta = config.local_rope_theta if is_local else config.global_rope_theta
        elif config.position_embedding == "alibi":
            slopes_H = jnp.asarray(alibi_slopes(config.num_attention_heads))
        else:  # the baseline, without a bias of attention: slopes of 0
            slopes_H = jnp.zeros(config.num_attention_heads)

        def attend(qkv_BL3HD, bias_3HD, segment_ids_BL, ranges, slopes_H, dropout):
            return alibi_attention_qkv(
                qkv_BL3HD,
                segment_ids_BL,
                bias_3HD=bias_3HD,
                slopes_H=slopes_H,
                rope_theta=theta,
                window=self.window,
                block_ranges=ranges,
                dropout_rate=dropout.rate,
                dropout_keys_B=dropout.keys_B,
            )

        # Each device attends to its own rows and heads, with no communication.
        rows, heads = P(ROW_AXES), P(WIDTH_AXIS)
        in_specs = P(ROW_AXES, None, None, WIDTH_AXIS), P(None, WIDTH_AXIS), rows, rows, heads, rows
        out_specs = P(ROW_AXES, None, WIDTH_AXIS)
        context_BLHD = on_own_parts(attend, in_specs, out_specs)(
            qkv_BL3HD, bias_3HD, segment_ids_BL, ranges, slopes_H, dropout
        )
        context_BLE = context_BLHD.reshape(*segment_ids_BL.shape, config.hidden_size)
        return context_BLE if positions_BP is None else gather_columns(context_BLE, positions_BP)


class FeedForward(nnx.Module):
    """GeGLU: output(dropout(GELU(g) * u)), [g | u] = input(x). BERT's: output(GELU(input(x))).

    SwiGLU is GeGLU with SiLU.
    """

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        inputs, width = config.hidden_size, config.intermediate_size
        outputs = (2, width) if config.is_gated else (width,)
        self.input = Dense(
            config,
            inputs,
            *outputs,
            tensor_axis=len(outputs),
            use_bias=config.use_bias and not config.is_gated,
            rngs=rngs,
        )
        self.output = Dense(
            config,
            width,
            inputs,
            tensor_axis=0,
            use_bias=config.use_bias,
            is_output=True,
            rngs=rngs,
        )

    def __call__(self, x_BLE: Float[Array, "B L E"], dropout: Dropout) -> Float[Array, "B L E"]:
        """Without the output's bias; `dropout` is GeGLU's, before its output projection."""
        if not self.config.is_gated:
            return self.output.product(gelu(self.input(x_BLE)))
        return geglu_linear(
            self.input.product(x_BLE),
            self.output.kernel_at_use(),
            activation="gelu" if self.config.feed_forward == "geglu" else "silu",
            dropout_rate=dropout.rate,
            dropout_keys_B=dropout.keys_B,
            divide=on_own_columns,
        )


class EncoderLayer(nnx.Module):
    """Attention and feed-forward, each with its residual and its norm.

    A layer takes and gives the residual stream and what is still to be added to it: nothing behind
    post-norm layers and embeddings, the feed-forward's output behind pre-norm layers.
    """

    def __init__(self, config: BertConfig, index: int, *, rngs: nnx.Rngs):
        self.config, self.index = config, index
        self.attention = SelfAttention(config, index, rngs=rngs)
        # The first pre-norm layer reads the embeddings, which have a norm.
        has_norm = config.norm_position == "post" or index > 0
        self.attention_norm = Norm(config, rngs=rngs) if has_norm else None
        self.feed_forward = FeedForward(config, rngs=rngs)
        self.feed_forward_norm = Norm(config, rngs=rngs)

    def __call__(
        self,
        stream: tuple[Float[Array, "B L E"], Float[Array, "B L E"] | None],
        segment_ids_BL: Int[Array, "B L"],
        ranges: BlockRanges,
        keys_B: Key[Array, "B"] | None,
        positions_BP: Int[Array, "B P"] | None = None,
        source_BLE: Float[Array, "B L E"] | None = None,
    ) -> tuple[Float[Array, "B L E"], Float[Array, "B L E"] | None]:
        """One layer.

        Args:
          positions_BP: columns on which alone it runs after attention: (B, P, E). None: all.
          source_BLE: the residual stream of which keys and values are, and with it the stream that
            the layer takes is of the positions alone. None: of what it takes.
        """
        config, drop_at = self.config, functools.partial(Dropout.at, keys_B, layer=self.index)
        weights_dropout = drop_at(config.attention_probs_dropout_prob, site=Site.ATTENTION_WEIGHTS)
        hidden_dropout = drop_at(config.hidden_dropout_prob, site=Site.HIDDEN)
        rate = config.dropout_rate("feed_forward_dropout_prob")
        within, after = drop_at(rate, site=Site.FEED_FORWARD), NO_DROPOUT
        if not config.is_gated:  # BERT drops after the feed-forward, the others within it.
            within, after = after, within

        residual_BLE, update_BLE = stream
        x_BLE = residual_BLE
        if update_BLE is not None:
            x_BLE, residual_BLE = self.attention_norm.with_sum(update_BLE, residual_BLE)
        if source_BLE is not None and config.norm_position == "pre":
            source_BLE = self.attention_norm(source_BLE)
        context_BLE = self.attention.context(
            x_BLE, segment_ids_BL, ranges, weights_dropout, positions_BP, source_BLE
        )
        if positions_BP is not None and source_BLE is None:
            residual_BLE = gather_columns(residual_BLE, positions_BP)
        attended_BLE = self.attention.output.product(context_BLE)
        sum_of = {"bias": self.attention.output.bias, "dropout": hidden_dropout}
        bias = self.feed_forward.output.bias

        if config.norm_position == "post":
            x_BLE = self.attention_norm.of_sum(attended_BLE, residual_BLE, **sum_of)
            update_BLE = self.feed_forward(x_BLE, within)
            return self.feed_forward_norm.of_sum(update_BLE, x_BLE, bias=bias, dropout=after), None
        x_BLE, residual_BLE = self.feed_forward_norm.with_sum(attended_BLE, residual_BLE, **sum_of)
        update_BLE = self.feed_forward(x_BLE, within)
        if bias is not None:
            update_BLE += bias[...].astype(update_BLE.dtype)
        return residual_BLE, after(update_BLE)
