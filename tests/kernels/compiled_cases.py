"""The kernels compiled for GPUs, as JSON: run by test_compiled where compilers are.

.venv-compile/bin/python -m tests.kernels.compiled_cases
"""

import dataclasses
import functools
import json
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from mosaicbert_jax.modeling.on_mesh import on_own_columns, on_own_rows
from mosaicbert_jax.planning.compile_only import Program, compile_for, make_mesh
from mosaicbert_jax.planning.gpus import GPUS, Gpu
from pallas_kernels import (
    alibi_attention,
    alibi_attention_qkv,
    alibi_slopes,
    block_ranges,
    cross_entropy_and_gradient,
    geglu_linear,
    matmul,
    residual_norm,
    sum_rows,
)

ROWS, HEADS = 4, 12
TARGETS = ("a100-80gb", "h100")
# Compute capability 7.5, which the kernels don't serve, and 8.6, 8.9 and 10.0.
T4 = Gpu(
    name="Tesla T4",
    compute_capability=(7, 5),
    memory_bandwidth=320_064_000_000,
    memory=15_634_661_376,
    cores=40,
    fpus_per_core=64,
    l2_cache=4_194_304,
    clock_ghz=1.59,
    shared_memory_per_core=65_536,
    shared_memory_per_block=65_536,
)
CARDS = {"t4": T4, **{name: GPUS[name] for name in (*TARGETS, "a10", "l4", "b200")}}
OTHERS = tuple(name for name in CARDS if name not in TARGETS)
SHAPES = ((128, 64), (2048, 64), (8192, 64), (2048, 128))  # length, head
SHARDINGS = {"rows": {"data": 8}, "rows and heads": {"data": 4, "tensor": 2}}
NORM_WIDTHS = (768, 1024)
NORM_LENGTH, DEVICES = 128, 8
PREDICTIONS, WORDS = 2048, 30_528
KERNELS = (
    "alibi_attention_backward",
    "alibi_attention_forward",
    "cross_entropy_and_gradient",
    "geglu_backward",
    "geglu_forward",
    "residual_norm_backward",
    "residual_norm_forward",
    "sum_rows",
)
GEGLU_WIDTHS, GEGLU_LENGTH = (3072, 4096), 2048  # activations exceed weights
PROJECTED_LENGTH, PROJECTED_HEAD_SIZE = 512, 64


def array(mesh, dtype, *shape: int, spec: PartitionSpec = PartitionSpec()):  # noqa: B008
    """One argument of a program, on a mesh of GPUs that are not there."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def attend(qkv_BL3HD, segment_ids_BL, d_out_BLHD, **options):
    """The output and the gradient of the packed projection."""
    ranges = block_ranges(segment_ids_BL)

    def forward(qkv_BL3HD):
        return alibi_attention_qkv(qkv_BL3HD, segment_ids_BL, block_ranges=ranges, **options)

    out_BLHD, backward = jax.vjp(forward, qkv_BL3HD)
    return out_BLHD, *backward(d_out_BLHD)


def attend_unpacked(qkv_BL3HD, segment_ids_BL, d_out_BLHD):
    """`attend` on three arrays."""

    def forward(*operands):
        return alibi_attention(*operands, segment_ids_BL)

    q, k, v = (qkv_BL3HD[:, :, part] for part in range(3))
    out_BLHD, backward = jax.vjp(forward, q, k, v)
    return out_BLHD, *backward(d_out_BLHD)


def compile_kernels(
    target: str, length: int, head_size: int, dtype=jnp.bfloat16, function=attend, kernels="alibi"
) -> Program:
    """Both kernels, with nothing around them."""
    mesh = make_mesh(CARDS[target])
    return compile_for(
        CARDS[target],
        function,
        array(mesh, dtype, ROWS, length, 3, HEADS, head_size),
        array(mesh, jnp.int32, ROWS, length),
        array(mesh, dtype, ROWS, length, HEADS, head_size),
        kernels=kernels,
    )


def compile_between_projections(target: str, **options) -> Program:
    """Attention after its input's matrix product and before its output's, and all gradients."""
    width = HEADS * PROJECTED_HEAD_SIZE
    mesh = make_mesh(GPUS[target])

    def step(x_BLE, qkv_weight, qkv_bias, out_weight, segment_ids_BL, d_y_BLE):
        ranges = block_ranges(segment_ids_BL)

        def layer(x_BLE, qkv_weight, qkv_bias, out_weight):
            shape = (3, HEADS, PROJECTED_HEAD_SIZE)
            out_BLHD = alibi_attention_qkv(
                (x_BLE @ qkv_weight).reshape(*x_BLE.shape[:2], *shape),
                segment_ids_BL,
                bias_3HD=qkv_bias.reshape(shape),
                block_ranges=ranges,
                backend="triton",
                **options,
            )
            return out_BLHD.reshape(x_BLE.shape) @ out_weight

        y_BLE, backward = jax.vjp(layer, x_BLE, qkv_weight, qkv_bias, out_weight)
        return y_BLE, *backward(d_y_BLE)

    return compile_for(
        GPUS[target],
        step,
        array(mesh, jnp.bfloat16, ROWS, PROJECTED_LENGTH, width),
        array(mesh, jnp.bfloat16, width, 3 * width),
        array(mesh, jnp.float32, 3 * width),
        array(mesh, jnp.bfloat16, width, width),
        array(mesh, jnp.int32, ROWS, PROJECTED_LENGTH),
        array(mesh, jnp.bfloat16, ROWS, PROJECTED_LENGTH, width),
        kernels="_",
    )


def compile_sharded(target: str, sharding: str) -> Program:
    """On eight GPUs, each with its own rows, or its own rows and heads."""
    mesh = make_mesh(GPUS[target], **SHARDINGS[sharding])
    rows = PartitionSpec("data")
    packed = PartitionSpec("data", None, None, "tensor")
    unpacked = PartitionSpec("data", None, "tensor")

    def attend_here(qkv_BL3HD, segment_ids_BL, slopes_H):
        return alibi_attention_qkv(qkv_BL3HD, segment_ids_BL, slopes_H=slopes_H, backend="triton")

    def step(qkv_BL3HD, segment_ids_BL, d_out_BLHD):
        attend_sharded = jax.shard_map(
            attend_here,
            mesh=mesh,
            in_specs=(packed, rows, PartitionSpec("tensor")),
            out_specs=unpacked,
            check_vma=False,
        )
        slopes_H = jnp.asarray(alibi_slopes(HEADS))
        out_BLHD, backward = jax.vjp(
            lambda qkv_BL3HD: attend_sharded(qkv_BL3HD, segment_ids_BL, slopes_H), qkv_BL3HD
        )
        return out_BLHD, *backward(d_out_BLHD)

    shape = (8 * ROWS, 512, 3, HEADS, 64)
    return compile_for(
        GPUS[target],
        step,
        array(mesh, jnp.bfloat16, *shape, spec=packed),
        array(mesh, jnp.int32, *shape[:2], spec=rows),
        array(mesh, jnp.bfloat16, *shape[:2], *shape[3:], spec=unpacked),
    )


def compile_pre_norm(target: str) -> Program:
    """RMSNorm of x + residual with that sum, and the gradients through both."""
    mesh, width = make_mesh(GPUS[target]), NORM_WIDTHS[0]

    def step(x_BLE, residual_BLE, scale_E, d_y_BLE, d_sum_BLE):
        def forward(x_BLE, residual_BLE, scale_E):
            return residual_norm(
                *(x_BLE, residual_BLE, scale_E, None),
                epsilon=1e-5,
                center=False,
                norm_dtype=jnp.bfloat16,
                returns_sum=True,
                backend="triton",
            )

        results, backward = jax.vjp(forward, x_BLE, residual_BLE, scale_E)
        _, *gradients = backward((d_y_BLE, d_sum_BLE))  # without dropout, x's is the residual's
        return results, gradients

    x_BLE = array(mesh, jnp.bfloat16, ROWS, NORM_LENGTH, width)
    scale_E = array(mesh, jnp.float32, width)
    operands = x_BLE, x_BLE, scale_E, x_BLE, x_BLE
    return compile_for(GPUS[target], step, *operands, kernels="residual_norm")


def compile_norm(target: str, width: int, devices: int) -> Program:
    """LayerNorm of dropout(x) + residual, and its gradients, rows divided over the devices."""
    mesh = make_mesh(GPUS[target], devices)
    rows = devices * ROWS

    def step(x_BLE, residual_BLE, scale_E, bias_E, x_bias_E, d_y_BLE, seed):
        def here(x_BLE, residual_BLE, keys_B, scale_E, bias_E, x_bias_E):
            return residual_norm(
                *(x_BLE, residual_BLE, scale_E, bias_E),
                x_bias_E=x_bias_E,
                epsilon=1e-12,
                dropout_rate=0.1,
                dropout_keys_B=keys_B,
                backend="triton",
            )

        def forward(x_BLE, residual_BLE, *vectors):
            keys_B = jax.random.split(jax.random.key(seed), rows)
            return on_own_rows(here, (x_BLE, residual_BLE, keys_B), vectors)

        y_BLE, backward = jax.vjp(forward, x_BLE, residual_BLE, scale_E, bias_E, x_bias_E)
        return y_BLE, *backward(d_y_BLE)

    x_BLE = array(mesh, jnp.bfloat16, rows, NORM_LENGTH, width, spec=PartitionSpec("data"))
    scale_E = array(mesh, jnp.float32, width)
    with jax.set_mesh(mesh):
        return compile_for(
            GPUS[target],
            step,
            *(x_BLE, x_BLE, scale_E, scale_E, scale_E, x_BLE),
            array(mesh, jnp.uint32),
            kernels="residual_norm",
        )


def compile_cross_entropy(target: str, devices: int) -> Program:
    """The losses of a chunk of predictions and the gradient of their logits."""
    mesh = make_mesh(GPUS[target], devices)
    rows = devices * PREDICTIONS

    def step(*operands):
        kernel = functools.partial(cross_entropy_and_gradient, backend="triton")
        return on_own_rows(kernel, operands)

    by_rows = PartitionSpec("data")
    with jax.set_mesh(mesh):
        return compile_for(
            GPUS[target],
            step,
            array(mesh, jnp.bfloat16, rows, WORDS, spec=by_rows),
            array(mesh, jnp.int32, rows, spec=by_rows),
            array(mesh, jnp.float32, rows, spec=by_rows),
            kernels="cross_entropy",
        )


def compile_geglu(target: str, width: int, devices: int) -> Program:
    """A gated feed-forward without biases, and its gradients, rows divided over the devices."""
    mesh = make_mesh(GPUS[target], devices)
    rows, outer_width = devices * ROWS, width // 4

    def step(x_BLE, input_E2F, output_FE, d_y_BLE, seed):
        def forward(x_BLE, input_E2F, output_FE):
            return geglu_linear(
                matmul(x_BLE, input_E2F),
                output_FE,
                dropout_rate=0.1,
                dropout_keys_B=jax.random.split(jax.random.key(seed), rows),
                divide=on_own_columns,
                backend="triton",
            )

        y_BLE, backward = jax.vjp(forward, x_BLE, input_E2F, output_FE)
        return y_BLE, *backward(d_y_BLE)

    spec = PartitionSpec("data")
    x_BLE = array(mesh, jnp.bfloat16, rows, GEGLU_LENGTH, outer_width, spec=spec)
    with jax.set_mesh(mesh):
        return compile_for(
            GPUS[target],
            step,
            x_BLE,
            array(mesh, jnp.float32, outer_width, 2, width),
            array(mesh, jnp.float32, width, outer_width),
            x_BLE,
            array(mesh, jnp.uint32),
            kernels="geglu",
        )


def compile_all_kernels(target: str, dtype=jnp.bfloat16) -> Program:
    """Every kernel once, each chosen by "auto": what a card that is not tuned for gets."""
    mesh = make_mesh(CARDS[target])
    shape, width, feed_forward = (ROWS, 512), HEADS * 64, 4 * HEADS * 64

    def step(x_BLE, gate_up_BL2F, output_FE, scale_E, logits_NV, labels_N, weights_N, ids_BL):
        qkv_BL3HD = jnp.stack([x_BLE] * 3, axis=2).reshape(*shape, 3, HEADS, 64)

        def total(qkv_BL3HD, x_BLE, gate_up_BL2F):
            attended_BLE = alibi_attention_qkv(qkv_BL3HD, ids_BL).reshape(x_BLE.shape)
            y_BLE = residual_norm(attended_BLE, x_BLE, scale_E, scale_E, epsilon=1e-12)
            return (y_BLE + geglu_linear(gate_up_BL2F, output_FE)).sum()

        gradients = jax.value_and_grad(total, (0, 1, 2))(qkv_BL3HD, x_BLE, gate_up_BL2F)
        losses = cross_entropy_and_gradient(logits_NV, labels_N, weights_N)
        return gradients, losses, sum_rows(x_BLE.reshape(-1, width), ids_BL.reshape(-1), WORDS)

    return compile_for(
        CARDS[target],
        step,
        array(mesh, dtype, *shape, width),
        array(mesh, dtype, *shape, 2, feed_forward),
        array(mesh, jnp.float32, feed_forward, width),
        array(mesh, jnp.float32, width),
        array(mesh, dtype, PREDICTIONS, WORDS),
        array(mesh, jnp.int32, PREDICTIONS),
        array(mesh, jnp.float32, PREDICTIONS),
        array(mesh, jnp.int32, *shape),
        kernels="_",
    )


def _all_kernels_of(target: str) -> dict:
    program = compile_all_kernels(target)
    return {
        "calls": sum("triton" in line.opcode for line in program.entry().values()),
        "kernels": [dataclasses.asdict(k) for k in program.kernels if k.name in KERNELS],
        "atomics": program.atomics,
    }


def _kernels_only(program: Program) -> dict:
    return {"kernels": [dataclasses.asdict(kernel) for kernel in program.kernels]}


def _float32_of(target: str) -> dict:
    return _kernels_only(compile_kernels(target, 512, 128, jnp.float32))


def _unpacked_of(target: str) -> dict:
    return _kernels_only(compile_kernels(target, 512, 64, function=attend_unpacked))


def _cross_entropy_of(target: str, devices: int) -> dict:
    return _summary_of(compile_cross_entropy(target, devices), PREDICTIONS * WORDS)


def _geglu_of(target: str, width: int, devices: int) -> dict:
    program = compile_geglu(target, width, devices)
    return _summary_of(program, ROWS * GEGLU_LENGTH * width)


def _norm_of(target: str, width: int, devices: int) -> dict:
    program = compile_norm(target, width, devices)
    return _summary_of(program, ROWS * NORM_LENGTH * width)


def _summary_of(program: Program, large: int) -> dict:
    """Besides its kernels what it does with arrays of so many elements or more."""
    return {
        "collectives": program.collectives(),
        "large": [line.opcode for line in program.entry().values() if line.largest >= large],
        "kernels": [dataclasses.asdict(kernel) for kernel in program.kernels],
    }


def _kernels_of(target: str, length: int, head_size: int) -> dict:
    program = compile_kernels(target, length, head_size)
    return {
        "temporary_bytes": program.temporary_bytes,
        "kernels": [dataclasses.asdict(kernel) for kernel in program.kernels],
    }


def _projected(target: str, **options) -> dict:
    program = compile_between_projections(target, **options)
    entry = program.entry().values()
    return {
        "entry": [{**dataclasses.asdict(line), "largest": line.largest} for line in entry],
        "kernels": [
            dataclasses.asdict(kernel)
            for kernel in program.kernels
            if kernel.name.startswith(("alibi", "rotate"))
        ],
    }


def _pre_norm_of(target: str) -> dict:
    return _summary_of(compile_pre_norm(target), ROWS * NORM_LENGTH * NORM_WIDTHS[0])


def _sharded(target: str, sharding: str) -> dict:
    program = compile_sharded(target, sharding)
    calls = [line for line in program.entry().values() if "triton" in line.opcode]
    return {"collectives": program.collectives(), "calls": [call.result for call in calls]}


def main() -> None:
    work = {}
    with ThreadPoolExecutor(2) as pool:
        for target in CARDS:
            work[f"{target} all"] = pool.submit(_all_kernels_of, target)
        for target in ("l4", "h100"):
            work[f"{target} float32"] = pool.submit(_float32_of, target)
        for target in TARGETS:
            work[f"{target} unpacked"] = pool.submit(_unpacked_of, target)
            work[f"{target} projected"] = pool.submit(_projected, target)
            rotated = pool.submit(_projected, target, rope_theta=10_000.0, window=64)
            work[f"{target} rotated"] = rotated
            work[f"{target} pre-norm"] = pool.submit(_pre_norm_of, target)
            for sharding in SHARDINGS:
                work[f"{target} {sharding}"] = pool.submit(_sharded, target, sharding)
            for width in NORM_WIDTHS:
                for devices in (1, DEVICES):
                    name = f"{target} norm {width} {devices}"
                    work[name] = pool.submit(_norm_of, target, width, devices)
            for devices in (1, DEVICES):
                name = f"{target} cross-entropy {devices}"
                work[name] = pool.submit(_cross_entropy_of, target, devices)
            for width in GEGLU_WIDTHS:
                work[f"{target} geglu {width} 1"] = pool.submit(_geglu_of, target, width, 1)
            name = f"{target} geglu {GEGLU_WIDTHS[0]} {DEVICES}"
            work[name] = pool.submit(_geglu_of, target, GEGLU_WIDTHS[0], DEVICES)
            for shape in SHAPES:
                work["{} {} {}".format(target, *shape)] = pool.submit(_kernels_of, target, *shape)
    print(json.dumps({name: future.result() for name, future in work.items()}))


if __name__ == "__main__":
    main()
