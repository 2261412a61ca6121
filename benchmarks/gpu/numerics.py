"""Every kernel compared with plain JAX in float32 at highest precision, and with itself.

A line passes if the kernel's error, the length of the difference over the length of the exact
result, is at most twice that of plain JAX in the same dtype (or a floor, for float32, where plain
JAX is the exact one), for the value and each gradient; if three runs give the same bits; and if
all is finite where it should be.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from benchmarks.gpu.inputs import packed_ids
from benchmarks.gpu.tables import attempt, header
from mosaicbert_jax.modeling.on_mesh import on_own_columns, on_own_rows
from pallas_kernels import (
    alibi_attention,
    alibi_attention_qkv,
    cross_entropy_and_gradient,
    geglu_linear,
    residual_norm,
    sum_rows,
)

FLOOR = {"float32": 1e-5, "bfloat16": 1e-3}
_MODERN = {"rope_theta": 10_000.0, "window": 64}
_ATTENTION = {  # name: (rows, length, heads, head size, how segments lie[, options])
    "attention, packed": (32, 128, 12, 64, "packed"),
    "attention, packed, 512": (8, 512, 12, 64, "packed"),
    "attention, odd length": (3, 130, 12, 64, "packed"),
    "attention, 8,192": (1, 8192, 12, 64, "packed"),
    "attention, heads of 32": (2, 500, 6, 32, "packed"),
    "attention, heads of 128": (2, 384, 8, 128, "packed"),
    "attention, padding on the left": (4, 128, 12, 64, "left"),
    "attention, a row all of padding": (4, 128, 12, 64, "empty"),
    "attention, rotated": (8, 512, 12, 64, "packed", {"rope_theta": 160_000.0}),
    "attention, rotated, window": (8, 512, 12, 64, "packed", _MODERN),
    "attention, rotated, window, 8,192": (1, 8192, 12, 64, "packed", _MODERN),
}
_SMALL_ATTENTION = {
    "attention, padding on the left": (2, 32, 1, 32, "left"),
    "attention, a row all of padding": (2, 32, 1, 32, "empty"),
    "attention, rotated, window": (2, 32, 1, 32, "packed", {"rope_theta": 100.0, "window": 4}),
}


def main(rehearse: bool) -> None:
    print(__doc__)
    jax.config.update("jax_default_matmul_precision", "highest")  # plain float32 is TF32 else
    checks = _Checks("interpret" if rehearse else "triton", rehearse)
    header("kernel", "errors (of plain JAX)", "three times the same bits", "verdict")
    for dtype in ("bfloat16",) if rehearse else ("bfloat16", "float32"):
        checks.attention(dtype)
        checks.norm(dtype)
        checks.pre_norm(dtype)
        checks.geglu(dtype)
        checks.geglu(dtype, activation="silu")
        checks.cross_entropy(dtype)
        checks.row_sums(dtype)
    checks.unpacked()
    checks.nan()
    checks.one_device_mesh()
    checks.large_operand()


class _Checks:
    def __init__(self, ours: str, rehearse: bool):
        self.ours, self.rehearse = ours, rehearse
        self.rng = np.random.default_rng(0)

    def normal(self, *shape: int, dtype: str = "bfloat16") -> jax.Array:
        return jnp.asarray(self.rng.standard_normal(shape, np.float32), dtype)

    def attention(self, dtype: str) -> None:
        cases = _SMALL_ATTENTION if self.rehearse else _ATTENTION
        if dtype == "float32":
            cases = dict(list(cases.items())[:1])
        for name, (rows, length, heads, head_size, kind, *options) in cases.items():
            ids_BL = self.segment_ids(rows, length, kind)
            exact = "reference" if length <= 512 else "xla"

            attend = functools.partial(_attend, dict(*options))

            operands = (
                self.normal(rows, length, 3, heads, head_size, dtype=dtype),
                self.normal(3, heads, head_size, dtype=dtype),
            )
            d_out_BLHD = self.normal(rows, length, heads, head_size, dtype=dtype)
            name = f"{name}, {dtype}"
            self.compare(name, attend, operands, d_out_BLHD, dtype, exact, (ids_BL,))

    def segment_ids(self, rows: int, length: int, kind: str) -> jax.Array:
        ids_BL = packed_ids(self.rng, rows, length)
        if kind == "left":
            ids_BL = np.sort(ids_BL > 0, axis=1).astype(np.int32)
            ids_BL[:, : length // 3] = 0
        elif kind == "empty":
            ids_BL[-1] = 0
        return jnp.asarray(ids_BL)

    def unpacked(self) -> None:
        shape = (2, 32, 1, 32) if self.rehearse else (8, 512, 12, 64)
        ids_BL = self.segment_ids(*shape[:2], "packed")

        def attend(backend, q, k, v):
            return alibi_attention(q, k, v, ids_BL, backend=backend)

        operands = tuple(self.normal(*shape) for _ in "qkv")
        name, d_out_BLHD = "attention, q, k and v apart, bfloat16", self.normal(*shape)
        self.compare(name, attend, operands, d_out_BLHD, "bfloat16", "reference")
        if not self.rehearse:  # for Hopper, with jax 0.11 or higher
            mosaic = _Checks("mosaic", rehearse=False)
            mosaic.compare(f"{name}, mosaic", attend, operands, d_out_BLHD, "bfloat16", "reference")

    def norm(self, dtype: str, rate: float = 0.1) -> None:
        rows, length, width = (2, 8, 64) if self.rehearse else (64, 128, 768)
        keys_B = jax.random.split(jax.random.key(3), rows)

        def norm(backend, x, residual, scale, bias, x_bias):
            scale, bias, x_bias = (v.astype(jnp.float32) for v in (scale, bias, x_bias))
            return residual_norm(
                *(x, residual, scale, bias),
                x_bias_E=x_bias,
                epsilon=1e-12,
                norm_dtype=x.dtype,
                dropout_rate=rate,
                dropout_keys_B=keys_B,
                backend=backend,
            )

        shape = (rows, length, width)
        scale_E = 1 + 0.3 * self.normal(width, dtype=dtype)
        vectors = scale_E, self.normal(width, dtype=dtype), self.normal(width, dtype=dtype)
        operands = (self.normal(*shape, dtype=dtype), self.normal(*shape, dtype=dtype), *vectors)
        d_y_BLE = self.normal(*shape, dtype=dtype)
        self.compare(f"residual_norm, dropout, {dtype}", norm, operands, d_y_BLE, dtype)

    def pre_norm(self, dtype: str) -> None:
        """As ModernBERT has it, and as RMSNorm."""
        shape = (2, 8, 64) if self.rehearse else (64, 128, 768)
        operands = (
            self.normal(*shape, dtype=dtype),
            self.normal(*shape, dtype=dtype),
            1 + 0.3 * self.normal(shape[-1], dtype=dtype),
        )
        d_both_BLE = self.normal(*shape[:-1], 2 * shape[-1], dtype=dtype)
        for name, center in ("LayerNorm", True), ("RMSNorm", False):

            def norm(backend, x, residual, scale, center=center):
                both = residual_norm(
                    *(x, residual, scale.astype(jnp.float32), None),
                    epsilon=1e-5,
                    center=center,
                    norm_dtype=x.dtype,
                    returns_sum=True,
                    backend=backend,
                )
                return jnp.concatenate(both, axis=-1)

            title = f"residual_norm and sum, {name}, {dtype}"
            self.compare(title, norm, operands, d_both_BLE, dtype)

    def geglu(self, dtype: str, rate: float = 0.1, activation: str = "gelu") -> None:
        rows, length, width, outputs = (2, 8, 64, 64) if self.rehearse else (64, 128, 3072, 768)
        keys_B = jax.random.split(jax.random.key(4), rows)

        def geglu(backend, gate_up, kernel):
            options = {
                "activation": activation,
                "dropout_rate": rate,
                "dropout_keys_B": keys_B,
            }
            return geglu_linear(gate_up, kernel, backend=backend, **options)

        operands = (
            self.normal(rows, length, 2, width, dtype=dtype),
            0.02 * self.normal(width, outputs, dtype="float32"),
        )
        d_out_BLE = self.normal(rows, length, outputs, dtype=dtype)
        self.compare(
            f"geglu_linear, {activation}, dropout, {dtype}", geglu, operands, d_out_BLE, dtype
        )

    def cross_entropy(self, dtype: str) -> None:
        count, words = (16, 256) if self.rehearse else (2048, 30528)
        labels_N = jnp.asarray(self.rng.integers(0, words, count), jnp.int32)
        weights_N = jnp.asarray(self.rng.random(count), jnp.float32)

        def losses(backend, logits_NV):
            loss_N, _, d_logits_NV = cross_entropy_and_gradient(
                logits_NV, labels_N, weights_N, backend=backend
            )
            return loss_N, d_logits_NV

        operands = (4 * self.normal(count, words, dtype=dtype),)
        self.compare(f"cross_entropy_and_gradient, {dtype}", losses, operands, None, dtype)

    def row_sums(self, dtype: str) -> None:
        count, words, width = (100, 64, 64) if self.rehearse else (32768, 30528, 768)
        index_N = self.rng.integers(0, words, count)
        index_N[self.rng.random(count) < 0.24] = 4  # [MASK]
        index_N = jnp.asarray(index_N, jnp.int32)

        def sums(backend, rows_NE):
            return (sum_rows(rows_NE, index_N, words, backend=backend),)

        self.compare(
            f"sum_rows, {dtype}", sums, (self.normal(count, width, dtype=dtype),), None, dtype
        )

    def compare(
        self,
        name: str,
        function: Callable,
        operands: tuple[jax.Array, ...],
        cotangent: jax.Array | None,
        dtype: str,
        exact: str = "xla",
        context: tuple[jax.Array, ...] = (),
    ) -> None:
        """function(backend, *operands, *context) by ours and by plain JAX, with all gradients."""

        @functools.partial(jax.jit, static_argnums=0)
        def outcome(backend, operands, context):
            def call(*operands):
                return function(backend, *operands, *context)

            if cotangent is None:
                return call(*operands)
            out, pull_back = jax.vjp(call, *operands)
            return out, *pull_back(cotangent.astype(out.dtype))

        def cells():
            found, *again = (
                jax.device_get(outcome(self.ours, operands, context)) for _ in range(3)
            )
            upcast = tuple(x.astype(jnp.float32) for x in operands)
            true = outcome(exact, upcast, context)
            plain = outcome(exact, operands, context)
            pairs = [
                (_error(f, t), _error(p, t)) for f, p, t in zip(found, plain, true, strict=True)
            ]
            same = all(_same_bits(found, other) for other in again)
            near = all(our <= max(2 * other, FLOOR[dtype]) for our, other in pairs)
            errors = ", ".join(f"{our:.1e} ({other:.1e})" for our, other in pairs)
            return errors, same, "PASS" if same and near else "FAILED"

        attempt(name, cells)

    def nan(self) -> None:
        """NaN in one segment of one row comes out there, and nowhere else."""

        def in_attention():
            ids_BL = jnp.asarray([[1] * 40 + [2] * 24] * 2)
            qkv = self.normal(2, 64, 3, 2, 32).at[1, 45, 0].set(jnp.nan)
            out_BLHD = jax.jit(functools.partial(alibi_attention_qkv, backend=self.ours))(
                qkv, ids_BL
            )
            is_nan_BL = np.isnan(np.asarray(out_BLHD, np.float32)).any(axis=(2, 3))
            expected_BL = np.zeros((2, 64), bool)
            expected_BL[1, 45] = True
            return "", "", _verdict((is_nan_BL == expected_BL).all())

        def in_cross_entropy():
            logits_NV = self.normal(4, 512).at[2, 7].set(jnp.nan)
            function = jax.jit(functools.partial(cross_entropy_and_gradient, backend=self.ours))
            loss_N, correct_N, d_NV = function(logits_NV, jnp.full(4, 3), jnp.ones(4))
            rows = np.isnan(np.asarray(loss_N)), np.isnan(np.asarray(d_NV, np.float32)).any(axis=1)
            right = all((row == [False, False, True, False]).all() for row in rows)
            return "", "", _verdict(right and not bool(correct_N[2]))

        attempt("NaN in a query", in_attention)
        attempt("NaN in a logit", in_cross_entropy)

    def one_device_mesh(self) -> None:
        """The way of a mesh, on one device: the bits of no mesh."""
        rows, length, width = 4, 16, 64
        x_BLE, residual_BLE = self.normal(rows, length, width), self.normal(rows, length, width)
        gate_up = self.normal(rows, length, 2, width)
        ones_E, kernel = jnp.ones(width), self.normal(width, width, dtype="float32")

        def call(x_BLE, residual_BLE, ones_E):
            return residual_norm(
                *(x_BLE, residual_BLE, ones_E, ones_E), epsilon=1e-12, backend=self.ours
            )

        def both(x_BLE, residual_BLE, gate_up):
            y_BLE = on_own_rows(call, (x_BLE, residual_BLE), (ones_E,))
            z_BLE = geglu_linear(gate_up, kernel, divide=on_own_columns, backend=self.ours)
            return (y_BLE + z_BLE).astype(jnp.float32).sum()

        def cells():
            gradient = jax.value_and_grad(both, argnums=(0, 1, 2))
            alone = jax.device_get(jax.jit(gradient)(x_BLE, residual_BLE, gate_up))
            axes = ("data", "fsdp", "tensor")
            mesh = jax.make_mesh((1, 1, 1), axes, axis_types=(AxisType.Auto,) * 3)
            with jax.set_mesh(mesh):
                mapped = jax.device_get(jax.jit(gradient)(x_BLE, residual_BLE, gate_up))
            leaves = jax.tree.leaves(alone), jax.tree.leaves(mapped)
            return "", "", _verdict(_same_bits(*leaves))

        attempt("norm and GeGLU through shard_map", cells)

    def large_operand(self) -> None:
        """Beyond 2^31 elements and 4 GiB: the last rows as they are alone."""
        rows, length, heads, head_size = (3, 32, 1, 32) if self.rehearse else (1900, 512, 12, 64)

        def cells():
            last = self.normal(2, length, 3, heads, head_size)
            ids_BL = self.segment_ids(2, length, "packed")
            qkv = jnp.zeros((rows, length, 3, heads, head_size), jnp.bfloat16).at[-2:].set(last)
            all_ids_BL = jnp.ones((rows, length), jnp.int32).at[-2:].set(ids_BL)

            def gradient(qkv, ids_BL):
                attend = functools.partial(alibi_attention_qkv, backend=self.ours)
                out, pull_back = jax.vjp(lambda qkv: attend(qkv, ids_BL), qkv)
                return out[-2:], pull_back(out)[0][-2:]

            whole = jax.device_get(jax.jit(gradient)(qkv, all_ids_BL))
            alone = jax.device_get(jax.jit(gradient)(last, ids_BL))
            return f"{qkv.nbytes / 2**30:.1f} GiB", "", _verdict(_same_bits(whole, alone))

        attempt("attention on a large operand", cells)


def _attend(options, backend, qkv, bias, ids_BL):
    return alibi_attention_qkv(qkv, ids_BL, bias_3HD=bias, backend=backend, **options)


def _verdict(right: bool) -> str:
    return "PASS" if right else "FAILED"


def _same_bits(arrays: Sequence, others: Sequence) -> bool:
    pairs = zip(arrays, others, strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def _error(found, true) -> float:
    found, true = (np.asarray(x, np.float64) for x in (found, true))
    return float(np.linalg.norm(found - true) / max(np.linalg.norm(true), 1e-30))
