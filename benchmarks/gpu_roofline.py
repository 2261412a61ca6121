"""What MosaicBERT-Base's training moves through a GPU's memory, counted without a GPU.

    JAX_PLATFORMS=cpu python -m benchmarks.gpu_roofline [--gpu a100-80gb h100] [--rows 256]
        [--row-length 128]

Forward and backward of one microbatch on one GPU are compiled as in training (bfloat16 over float32
parameters, dropout 0.1, 30% predicted), and the bytes and matrix FLOPs of the optimised program
are counted (mosaicbert_jax/planning/traffic.py says how). The optimizer's update is compiled apart.
Nothing runs: times and MFU are predicted, for rows of whole sequences without padding, by
mosaicbert_jax/planning/gpu_time.py, whose assumptions the report lists. Needs the compile
environment (`make .venv-compile/installed`); a program takes about half a minute on two cores.
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
from mosaicbert_jax.planning import gpu_time
from mosaicbert_jax.planning.compile_only import Program, compile_for, make_mesh
from mosaicbert_jax.planning.gpu_time import Range
from mosaicbert_jax.planning.gpus import GPUS, Gpu
from mosaicbert_jax.planning.traffic import Instruction, Module, Work, parse
from mosaicbert_jax.pretraining.microbatch import abstract_batch
from mosaicbert_jax.storage.opening import abstract_params, build_model
from mosaicbert_jax.training import optimizer
from mosaicbert_jax.training.flops import model_flops_per_token

MASKING_RATE = 0.3
SEQUENCE_LENGTH = 128  # the recipe's longest; longer rows hold several
LARGEST = 25
MPT_PREDICTED = "49.7% to 42.3%"  # compared in tests/planning/test_gpu_time.py

# Which part of the model an instruction belongs to, by the beginning of the name of a function that
# it was written in: the first that fits. What is fused of several parts goes to the first in PARTS.
_WRITTEN_IN = {
    "_chunked": "head and loss",
    "masked_lm_loss": "head and loss",
    "cross_entropy_and_gradient": "head and loss",
    "PredictionHead.transform": "head and loss",
    "Embeddings.__call__": "embeddings",
    "Norm.": "layer norm",
    "drop": "dropout",
    "promote_dtype": "casts of weights",
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
    params = abstract_params(nnx.eval_shape(lambda: build_model(config, None, 0)), replicated)
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
    params = abstract_params(nnx.eval_shape(lambda: build_model(config, None, 0)), replicated)
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
        as SEQUENCE_LENGTH.
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
        kernels = sum(gpu_time.attention_flops(one, SEQUENCE_LENGTH) for one in work)
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
    def seconds(self) -> Range:
        """Predicted."""
        return seconds_of(self.gpu, self.work)

    def kilobytes(self, work: Iterable[Work]) -> float:
        """A token."""
        return sum(one.bytes for one in work) / self.tokens / 1e3


def seconds_of(gpu: Gpu, work: Iterable[Work]) -> Range:
    """How long instructions take one after the other, launches counted, as predicted."""
    work = list(work)
    times = (gpu_time.seconds(gpu, one, SEQUENCE_LENGTH) for one in work)
    return sum(times, gpu_time.launch_gaps(work))


def shown(figure: Range, form: str, change: Callable[[float], float]) -> str:
    """A range, its fast end first."""
    return f"{change(figure.fast):{form}} to {change(figure.slow):{form}}"


def milliseconds(time: Range) -> str:
    return shown(time, ".1f", lambda seconds: seconds * 1e3)


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
        ("predicted time of a microbatch, ms", lambda r: milliseconds(r.seconds)),
        ("of that outside matmuls", lambda r: milliseconds(seconds_of(r.gpu, r.outside))),
        ("predicted tokens/s", lambda r: shown(r.seconds, ",.0f", lambda s: r.tokens / s)),
        (
            "predicted MFU, real tokens, no padding",
            lambda r: shown(r.seconds, ".1%", lambda s: r.model_flops / s / r.gpu.peak_flops),
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
        milliseconds(seconds_of(r.gpu, work)) for r, work in zip(rooflines, works, strict=True)
    ]
    lines.append(f"| the update, apart: GB moved | {' | '.join(gigabytes)} |")
    lines.append(f"| the update, apart: predicted ms | {' | '.join(times)} |")
    return "\n".join(lines)


def assumptions(gpus: Iterable[Gpu]) -> str:
    """What the predicted times rest on."""
    lines = [
        "Predicted times are ranges, fast to slow. What they assume of the GPUs "
        "(mosaicbert_jax/planning/gpu_time.py says where each figure is from):",
        "",
        "| GPU | tiles of products | share of the peak in a tile's loop | share of the bandwidth | "
        "instructions of attention's 64x64 tiles, forward and backward |",
        "| --- | --- | --- | --- | --- |",
    ]
    for gpu in gpus:
        timing = gpu_time.timing_of(gpu)
        tiles = ", ".join(f"{rows}x{columns}" for rows, columns in timing.tiles)
        matmul, memory = (
            shown(share, ".0%", lambda share: share) for share in (timing.matmul, timing.memory)
        )
        forward, backward = timing.attention
        lines.append(
            f"| {gpu.name} | {tiles} | {matmul} | {memory} | {forward:,} and {backward:,} |"
        )
    issued = shown(gpu_time.ISSUED, ".0%", lambda share: share)
    gap = shown(gpu_time.LAUNCH_GAP, ".0f", lambda seconds: seconds * 1e6)
    lines += [
        "",
        f"Tiles are taken in whole waves; attention issues into {issued} of the slots; a launch "
        f"takes {gap} µs; nothing is faster than its bytes. By the same model, MPT-125M in PyTorch "
        f"on A100-80GBs gets {MPT_PREDICTED} MFU in sequences of 512, where llm-foundry published "
        "42.6% (tests/planning/test_gpu_time.py). The A100's share of the peak was chosen for that "
        "model's and its larger sisters' published speeds, which lie in the slow half of their "
        "ranges, some below; no GPU's figures are measured yet.",
    ]
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
        assumptions(roofline.gpu for roofline in rooflines),
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
