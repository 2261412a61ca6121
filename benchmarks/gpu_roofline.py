"""What MosaicBERT-Base's training moves through a GPU's memory, counted without a GPU.

    JAX_PLATFORMS=cpu python -m benchmarks.gpu_roofline [--gpu a100-80gb h100] [--rows 256]
        [--row-length 128]

Forward and backward of one microbatch on one GPU are compiled as in training (bfloat16 over float32
parameters, dropout 0.1, 30 % predicted), and the bytes and matrix FLOPs of the optimised program
are counted (mosaicbert_jax/planning/traffic.py says how). The optimizer's update is compiled apart.
Nothing runs: times and MFU are predicted, for rows without padding, from matrix products at 80 % of
the peak and all else at 90 % of the memory's bandwidth. Needs the compile environment (`make
.venv-compile/installed`); a program takes about half a minute on two cores.
"""

import argparse
import collections
import dataclasses
import datetime
import platform
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mosaicbert_jax import BertConfig, BertForMaskedLM
from mosaicbert_jax.modeling.dropout import row_keys
from mosaicbert_jax.planning.compile_only import Program, compile_for, make_mesh
from mosaicbert_jax.planning.gpus import GPUS, Gpu
from mosaicbert_jax.planning.plan import MATMUL_SHARE, MEMORY_SHARE
from mosaicbert_jax.planning.profile import ATTENTION_PRODUCTS
from mosaicbert_jax.planning.traffic import Instruction, Module, Work, parse
from mosaicbert_jax.training import checkpoints, optimizer
from mosaicbert_jax.training.flops import model_flops_per_token
from mosaicbert_jax.training.microbatch import abstract_batch

MASKING_RATE = 0.3
SEQUENCE_LENGTH = 128  # the recipe's longest; longer rows hold several
LARGEST = 25

# Which part of the model an instruction belongs to, by the beginning of the name of a function that
# it was written in: the first that fits. What is fused of several parts goes to the first in PARTS.
_WRITTEN_IN = {
    "_chunked": "head and loss",
    "masked_lm_loss": "head and loss",
    "cross_entropy_and_gradient": "head and loss",
    "MaskedLMHead.transform": "head and loss",
    "Embeddings.__call__": "embeddings",
    "norm_of_sum": "layer norm",
    "drop": "dropout",
    "promote_dtype": "casts of weights",
    "LayerNorm.__call__": "layer norm",
    "FeedForward.__call__": "feed-forward",
    "SelfAttention.context.<locals>": "attention",
    "SelfAttention.context": "qkv",
    "EncoderLayer.__call__": "attention output, residuals",
    "BertModel.__call__": "other",
}
PARTS = (
    "head and loss",
    "embeddings",
    "feed-forward",
    "layer norm",
    "dropout",
    "attention",
    "qkv",
    "attention output, residuals",
    "casts of weights",
    "other",
)
_MERE_FORM = {"parameter", "constant", "broadcast", "bitcast", "convert", "tuple", "iota"}
_MOVES = {"copy", "transpose"}


def compile_gradients(gpu: Gpu, config: BertConfig, rows: int, length: int) -> Program:
    """Forward and backward of a microbatch."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: BertForMaskedLM(config, rngs=nnx.Rngs(0))))

    def gradients(params, batch, seed):
        keys_B = row_keys(jax.random.key(seed), rows)

        def loss(params):
            model = nnx.merge(graph, params)
            return model.loss(**batch, dropout_key=keys_B)

        return jax.value_and_grad(loss, has_aux=True)(params)

    mesh = make_mesh(gpu)
    replicated = NamedSharding(mesh, PartitionSpec())
    params = checkpoints.abstract_params(config, replicated)
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=replicated)
    with jax.set_mesh(mesh):
        batch = abstract_batch(mesh, rows, length, MASKING_RATE)
        return compile_for(gpu, gradients, params, batch, seed)


def compile_update(gpu: Gpu, config: BertConfig) -> Program:
    """The optimizer's update of all parameters, in place."""
    adam = optimizer.make_optimizer(
        peak_learning_rate=5e-4, b1=0.9, b2=0.98, eps=1e-6, weight_decay=1e-5
    )

    def update(params, state, gradients, rate):
        return optimizer.apply(adam, gradients, state, params, rate)

    mesh = make_mesh(gpu)
    replicated = NamedSharding(mesh, PartitionSpec())
    params = checkpoints.abstract_params(config, replicated)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
        jax.eval_shape(adam.init, params),
    )
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
    with jax.set_mesh(mesh):
        return compile_for(gpu, update, params, state, params, rate, donate=(0, 1))


def part_of(module: Module, work: Work) -> str:
    """The part of the model that an instruction belongs to."""

    def written_in(instruction: Instruction) -> str:
        functions = module.functions(instruction)
        parts = (
            part
            for name, part in _WRITTEN_IN.items()
            if any(function.startswith(name) for function in functions)
        )
        return next(parts, "other")

    working = [one for one in work.fused if one.opcode not in _MERE_FORM]
    found = {written_in(one) for one in working or (work.instruction, *work.fused)}
    return min(found, key=PARTS.index)


def kind_of(work: Work) -> str:
    """What an instruction is, whatever it is for."""
    if work.instruction.is_matmul:
        return "matmul"
    if work.instruction.is_kernel:
        return "Pallas kernel"
    roots = work.root_opcodes
    opcodes = {one.opcode for one in work.fused} - _MERE_FORM
    if opcodes <= _MOVES and opcodes:
        return "copy or transpose"
    if not opcodes:
        return "conversion or broadcast" if work.operands else "fill"
    return f"fusion to {' and '.join(roots)}"


@dataclasses.dataclass(frozen=True)
class Roofline:
    """A program's costs.

    Attributes:
      tokens: of the microbatch.
      model_flops: MFU's numerator, all tokens together.
      executed_flops: of the matrix products and of attention's kernels, were all sequences as long
        as SEQUENCE_LENGTH and aligned to its blocks.
    """

    gpu: Gpu
    program: Program
    module: Module
    work: list[Work]
    tokens: int
    model_flops: float
    executed_flops: float

    @classmethod
    def of(cls, gpu: Gpu, config: BertConfig, rows: int, length: int) -> "Roofline":
        """Compiles and counts."""
        program = compile_gradients(gpu, config, rows, length)
        module = parse(program.text)
        work, tokens = module.work(), rows * length
        attended = min(length, SEQUENCE_LENGTH)
        product = 2 * tokens * attended * config.hidden_size
        kernels = sum(
            one.times * product * count
            for one in work
            for name, count in ATTENTION_PRODUCTS.items()
            if one.instruction.is_kernel and name in one.instruction.op_name
        )
        per_token = model_flops_per_token(
            config, sequence_length=attended, masking_rate=MASKING_RATE
        )  # fmt: skip
        executed = sum(one.flops for one in work) + kernels
        return cls(gpu, program, module, work, tokens, tokens * per_token, executed)

    @property
    def outside(self) -> list[Work]:
        """All but the matrix products."""
        return [one for one in self.work if not one.instruction.is_matmul]

    @property
    def attention(self) -> str:
        """How attention was compiled."""
        names = [one.instruction.op_name for one in self.outside if one.instruction.is_kernel]
        kernels = any("alibi_attention" in name for name in names)
        return "as Triton kernels" if kernels else "through XLA"

    @property
    def seconds(self) -> float:
        """Predicted."""
        flops = max(self.model_flops, self.executed_flops)
        return flops / (MATMUL_SHARE * self.gpu.peak_flops) + seconds_of(self.gpu, self.outside)

    def kilobytes(self, work: Iterable[Work]) -> float:
        """A token."""
        return sum(one.bytes for one in work) / self.tokens / 1e3


def seconds_of(gpu: Gpu, work: Iterable[Work]) -> float:
    """How long the memory takes, as predicted."""
    return sum(one.bytes for one in work) / (MEMORY_SHARE * gpu.memory_bandwidth)


def summary(rooflines: list[Roofline], updates: list[Program]) -> str:
    """One column a GPU."""
    rows: list[tuple[str, Callable[[Roofline], str]]] = [
        ("attention", lambda r: r.attention),
        ("outside matmuls, KB a token", lambda r: f"{r.kilobytes(r.outside):,.0f}"),
        (
            "of that in Pallas kernels",
            lambda r: f"{r.kilobytes(w for w in r.outside if w.instruction.is_kernel):,.0f}",
        ),
        (
            "in matmuls, KB a token",
            lambda r: f"{r.kilobytes(w for w in r.work if w.instruction.is_matmul):,.0f}",
        ),
        ("temporary memory, GB", lambda r: f"{r.program.temporary_bytes / 1e9:.1f}"),
        ("model FLOPs, MFLOP a token", lambda r: f"{r.model_flops / r.tokens / 1e6:.0f}"),
        ("executed in matmuls and attention", lambda r: f"{r.executed_flops / r.tokens / 1e6:.0f}"),
        ("predicted time of a microbatch, ms", lambda r: f"{r.seconds * 1e3:.1f}"),
        (
            "of that outside matmuls",
            lambda r: f"{seconds_of(r.gpu, r.outside) * 1e3:.1f}",
        ),
        ("predicted tokens/s", lambda r: f"{r.tokens / r.seconds:,.0f}"),
        (
            "predicted MFU, real tokens, no padding",
            lambda r: f"{r.model_flops / r.seconds / r.gpu.peak_flops:.1%}",
        ),
    ]
    lines = [
        f"| | {' | '.join(r.gpu.name for r in rooflines)} |",
        f"| --- |{' --- |' * len(rooflines)}",
        *(f"| {name} | {' | '.join(cell(r) for r in rooflines)} |" for name, cell in rows),
    ]
    works = [parse(update.text).work() for update in updates]
    gigabytes = [f"{sum(one.bytes for one in work) / 1e9:.2f}" for work in works]
    times = [
        f"{seconds_of(r.gpu, work) * 1e3:.1f}" for r, work in zip(rooflines, works, strict=True)
    ]
    lines.append(f"| the update, apart: GB moved | {' | '.join(gigabytes)} |")
    lines.append(f"| the update, apart: predicted ms | {' | '.join(times)} |")
    return "\n".join(lines)


def shares(roofline: Roofline, title: str, key: Callable[[Work], str]) -> str:
    """Bytes a token by a key, the largest first."""
    groups = collections.defaultdict(list)
    for work in roofline.work:
        groups[key(work)].append(work)
    lines = [f"| {title} | instructions | KB a token outside matmuls | in matmuls |"]
    lines.append("| --- | --- | --- | --- |")

    def outside(group: list[Work]) -> list[Work]:
        return [work for work in group if not work.instruction.is_matmul]

    for name, group in sorted(groups.items(), key=lambda g: -roofline.kilobytes(outside(g[1]))):
        inside = [work for work in group if work.instruction.is_matmul]
        lines.append(
            f"| {name} | {len(group)} | {roofline.kilobytes(outside(group)):,.1f} | "
            f"{roofline.kilobytes(inside):,.1f} |"
        )
    return "\n".join(lines)


def largest(roofline: Roofline, count: int) -> str:
    """The instructions outside matmuls that move most, those alike in one line."""
    groups = collections.defaultdict(list)
    for work in roofline.outside:
        shapes = [str(s) for s in work.operands if s.bytes > roofline.tokens]
        results = [str(s) for s in work.instruction.results if s.bytes > 0]
        alike = part_of(roofline.module, work), kind_of(work), *results, "from", *shapes
        groups[alike].append(work)
    ranked = sorted(groups.items(), key=lambda g: -roofline.kilobytes(g[1]))[:count]
    lines = [
        "| KB a token | instructions | part | kind | op_name | results and large operands |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (part, kind, *shapes), group in ranked:
        names = (one.op_name for work in group for one in (work.instruction, *work.fused))
        op_name = next((name for name in names if name), "").replace("|", "/")
        lines.append(
            f"| {roofline.kilobytes(group):,.1f} | {len(group)} | {part} | {kind} | `{op_name}` | "
            f"{' '.join(shapes)} |"
        )
    return "\n".join(lines)


def report(rooflines: list[Roofline], updates: list[Program], rows: int, length: int) -> str:
    """All tables; the detailed ones of the first GPU."""
    first = rooflines[0]
    sections = [
        f"## {rows} x {length} tokens, attention {first.attention}",
        f"{datetime.date.today()}, Python {platform.python_version()}, jax {jax.__version__}, "
        "compiled without a GPU, nothing measured: "
        f"`python -m benchmarks.gpu_roofline --rows {rows} --row-length {length}`",
        summary(rooflines, updates),
        f"{first.gpu.name}, by part of the model:",
        shares(first, "part", lambda work: part_of(first.module, work)),
        "By kind of instruction:",
        shares(first, "kind", kind_of),
        f"The {LARGEST} that move most outside matmuls, those alike in one line:",
        largest(first, LARGEST),
    ]
    return "\n\n".join(sections) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", nargs="+", choices=GPUS, default=["a100-80gb", "h100"])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--row-length", type=int, default=128)
    arguments = parser.parse_args()
    config = BertConfig.mosaicbert_base(dtype="bfloat16")
    rows, length = arguments.rows, arguments.row_length
    rooflines = [Roofline.of(GPUS[name], config, rows, length) for name in arguments.gpu]
    updates = [compile_update(GPUS[name], config) for name in arguments.gpu]
    print(report(rooflines, updates, rows, length))


if __name__ == "__main__":
    main()
