"""Compiles for GPUs on a machine that has none, and reads the result.

Needs JAX's CUDA plugin and NVIDIA's compiler, which a CPU environment does without (the plugin
complains at each start): `make .venv-compile/installed` puts them into an environment of their
own. `run_there` runs a module there from anywhere; the rest of this module works there alone.
Nothing is executed; what is said of speed elsewhere is predicted.
"""

import dataclasses
import importlib.util
import math
import os
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.planning.gpus import Gpu
from mosaicbert_jax.training.sharding import AXES
from pallas_kernels import backends


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel as compiled.

    Attributes:
      name: of its entry point.
      registers: a thread.
      spilled_bytes: stores and loads of registers that did not fit.
      shared_memory: bytes a block.
      threads: a block.
      mma, wgmma, tcgen05: tensor-core instructions of Ampere's kind, Hopper's and Blackwell's, as
        written.
      exact_exponentials: exponentials with code for denormal numbers, as written.
      serialized: whether ptxas makes those of Hopper's kind wait for one another.
      instructions: of all kinds, as written.
      looped_instructions: those of the innermost loops, one pass through each.
    """

    name: str
    registers: int
    spilled_bytes: int
    shared_memory: int
    threads: int
    mma: int
    wgmma: int
    tcgen05: int
    exact_exponentials: int
    serialized: bool
    instructions: int
    looped_instructions: int

    def resident_warps(self, gpu: Gpu) -> int:
        """How many warps a core holds at once, by registers, threads and shared memory."""
        warps = self.threads // 32
        registers = -(-self.registers // 8) * 8 * self.threads  # given out in eights
        blocks = min(
            _REGISTERS_PER_CORE // registers,
            _WARPS_PER_CORE // warps,
            gpu.shared_memory_per_core // (self.shared_memory + _SHARED_MEMORY_KEPT_BACK),
            _BLOCKS_PER_CORE,
        )
        return blocks * warps


# Alike in compute capabilities 8.0 and 9.0 (CUDA C programming guide, technical specifications).
_REGISTERS_PER_CORE, _WARPS_PER_CORE, _BLOCKS_PER_CORE = 65_536, 64, 32
_SHARED_MEMORY_KEPT_BACK = 1024  # of each block, by the driver


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a program's entry computation.

    Attributes:
      name, operands: names of values.
      opcode: such as "fusion"; of a custom call, its target, such as "__cublas$lt$matmul".
      result: its type and those of its parts, such as "(bf16[8,4]{1,0}, s8[64]{0})".
    """

    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]

    @property
    def largest(self) -> int:
        """How many elements the largest array of its result has."""
        shapes = re.findall(r"\w+\[([\d,]*)\]", self.result)
        return max((math.prod(int(n) for n in s.split(",") if n) for s in shapes), default=0)


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program.

    Attributes:
      text: its optimised HLO.
      temporary_bytes: of device memory, on one device.
      lasting_bytes: of its arguments, and of those results that do not take an argument's place.
      kernels: those whose names were asked for.
      atomics: if any were, which of all kernels change memory atomically: in no fixed order.
    """

    text: str
    temporary_bytes: int
    lasting_bytes: int
    kernels: tuple[Kernel, ...] = ()
    atomics: tuple[str, ...] = ()

    def entry(self) -> dict[str, Instruction]:
        """The entry computation, by name and in order: what runs, one after the other."""
        body = re.search(r"^ENTRY .*?^}", self.text, re.DOTALL | re.MULTILINE)[0]
        found = {}
        for match in _HLO_LINE.finditer(body):
            name, result, opcode, operands, rest = match.groups()
            if target := re.search(r'custom_call_target="([^"]*)"', rest):
                opcode = target[1]
            names = tuple(re.findall(r"%([\w.-]+)", operands))
            found[name] = Instruction(name, opcode, result, names)
        return found

    def collectives(self) -> list[str]:
        """The instructions that speak with other devices, wherever they stand."""
        return re.findall(rf"^ .*= .* ((?:{_COLLECTIVES})(?:-start)?)\(", self.text, re.MULTILINE)


_HLO_LINE = re.compile(
    r"^ +(?:ROOT )?%([\w.-]+) = (\([^()]*\)|\S+) ([\w-]+)\(([^()]*)\)(.*)$", re.MULTILINE
)
_COLLECTIVES = (
    "all-gather|all-reduce|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
    "|reduce-scatter"
)


def make_mesh(gpu: Gpu, data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of GPUs that are not there; see `sharding.make_mesh`."""
    shape = (data, fsdp, tensor)
    count = math.prod(shape)
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=gpu.description(), topology=f"1x1x{count}"
    )
    return Mesh(np.array(topology.devices).reshape(shape), AXES)


def compile_for(
    gpu: Gpu,
    function: Callable[..., Any],
    *arguments: Any,
    kernels: str = "",
    donate: Sequence[int] = (),
    options: Mapping[str, bool] | None = None,
) -> Program:
    """Compiles a function as the GPU's own machine would, matrix products by cuBLAS.

    Args:
      arguments: trees of ShapeDtypeStruct, all with shardings over one mesh of `make_mesh`.
      kernels: part of the names of the kernels to look into; none: no kernel.
      donate: which arguments' memory the results may take.
      options: more of the compiler's.
    """
    mesh = jax.tree.leaves(arguments)[0].sharding.mesh
    # Pallas asks the mesh which GPU it is for (from jax 0.11 on, and only there), our kernels
    # `compiling_for`.
    device = mesh.devices.flat[0]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), backends.compiling_for(device):
        lowered = jax.jit(function, donate_argnums=tuple(donate)).lower(*arguments)
    with tempfile.TemporaryDirectory() as folder:
        flags: dict[str, Any] = {"xla_gpu_enable_triton_gemm": False, **(options or {})}
        if kernels:
            flags |= {"xla_dump_to": folder, "xla_dump_emitter_re": "ptx"}
        compiled = lowered.compile(compiler_options=flags)
        found = kernels_found(pathlib.Path(folder), gpu, kernels) if kernels else ()
        atomics = atomics_found(pathlib.Path(folder))
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Program(
        text=compiled.as_text(),
        temporary_bytes=memory.temp_size_in_bytes,
        lasting_bytes=memory.argument_size_in_bytes + results,
        kernels=found,
        atomics=atomics,
    )


def kernels_found(folder: pathlib.Path, gpu: Gpu, name_part: str) -> tuple[Kernel, ...]:
    """The launched kernels whose name has `name_part`, from what XLA dumped into a folder."""
    launches = {}
    for path in folder.glob("*thunk_sequence.txt"):
        for line in path.read_text().splitlines():
            if launch := _LAUNCH.search(line):
                launches[launch["name"]] = int(launch["threads"]), int(launch["shared"])
    found = {}
    for path in sorted(folder.glob("*.ptx")):
        text = path.read_text()
        bodies = {name: body for name, body in _entries(text) if name_part in name}
        reports = _ptxas_reports(path, gpu) if bodies else {}
        for name, body in bodies.items():
            found[name] = _kernel(name, body, reports[name], *launches[name])
    return tuple(found[name] for name in sorted(found))


def mosaic_kernels(folder: pathlib.Path) -> tuple[Kernel, ...]:
    """Those that Pallas Mosaic GPU compiled while $MOSAIC_GPU_DUMP_TO was `folder`, by name.

    `compile_for` can't report them: they are not in XLA's dump.
    """
    found = []
    for path in sorted(folder.glob("*.ptx")):
        [(name, body)] = _entries(path.read_text())
        resources = path.with_suffix(".resources.txt").read_text()
        shared = int(re.search(r"smem_scratch_bytes=(\d+)", resources)[1])  # besides barriers
        threads = int(re.search(r"\.maxntid (\d+)", path.read_text())[1])
        report = _reports(path.with_suffix(".ptxas").read_text())[name]
        found.append(_kernel(name, body, report, threads, shared))
    return tuple(found)


_LAUNCH = re.compile(
    r"(?P<name>\S+) grid: \[[^\]]*\] threads: \[(?P<threads>\d+), 1, 1\] +"
    r"shared_memory: (?P<shared>\d+) bytes"
)
_ENTRY_NAME = re.compile(r"\.entry (\w+)\(")
_ATOMIC = re.compile(r"^\s+(?:@!?%\w+ )?(?:atom|red)\.", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s+(?:@%\S+ )?[a-z][\w.:]*[\s;]", re.MULTILINE)


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """The entry points of a PTX file: their names and what is within their braces."""
    for entry in _ENTRY_NAME.finditer(text):
        start = text.index("{", entry.end())
        depth = 0  # inline assembly has braces of its own, at the start of lines too
        for brace in re.compile(r"[{}]").finditer(text, start):
            depth += 1 if brace[0] == "{" else -1
            if not depth:
                yield entry[1], text[start : brace.start()]
                break


def atomics_found(folder: pathlib.Path) -> tuple[str, ...]:
    """The entry points of all PTX files that add or compare and swap atomically in memory."""
    files = (path.read_text() for path in sorted(folder.glob("*.ptx")))
    return tuple(name for text in files for name, body in _entries(text) if _ATOMIC.search(body))


def _kernel(name: str, body: str, report: str, threads: int, shared: int) -> Kernel:
    """Joins what PTX and ptxas say."""
    return Kernel(
        name=name,
        registers=int(re.search(r"Used (\d+) registers", report)[1]),
        spilled_bytes=sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", report))),
        shared_memory=shared,
        threads=threads,
        mma=len(re.findall(r"\bmma\.sync", body)),
        wgmma=len(re.findall(r"\bwgmma\.mma_async", body)),
        tcgen05=len(re.findall(r"\btcgen05\.mma", body)),
        exact_exponentials=len(re.findall(r"\bex2\.approx\.f32", body)),
        serialized="C7515" in report,
        instructions=len(_INSTRUCTION.findall(body)),
        looped_instructions=sum(len(_INSTRUCTION.findall(loop)) for loop in _innermost_loops(body)),
    )


def _innermost_loops(body: str) -> list[str]:
    """The texts from a label to the last jump back to it that hold no such text themselves."""
    labels = {match[1]: match.end() for match in re.finditer(r"^(\$\w+):", body, re.MULTILINE)}
    jumps = re.finditer(r"\bbra(?:\.uni)?\s+(\$\w+);", body)
    # The last of the jumps to a label is the one that stays.
    loops = {labels[j[1]]: j.end() for j in jumps if labels[j[1]] < j.start()}.items()
    return [
        body[start:end]
        for start, end in loops
        if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in loops)
    ]


def _ptxas_reports(path: pathlib.Path, gpu: Gpu) -> dict[str, str]:
    """What ptxas says of each kernel of a file."""
    said = subprocess.run(
        [_ptxas(), "-v", f"-arch={gpu.architecture}", path, "-o", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    return _reports(said)


def _reports(said: str) -> dict[str, str]:
    """What ptxas said, by kernel."""
    before, *reports = said.split("Compiling entry function '")
    # What it says of performance stands before all of these.
    advice = {name: line for line, name in re.findall(r"(.*in the function '(\w+)')", before)}
    names = [report.partition("'")[0] for report in reports]
    return {
        name: report + advice.get(name, "") for name, report in zip(names, reports, strict=True)
    }


def _ptxas() -> pathlib.Path:
    spec = importlib.util.find_spec("nvidia.cuda_nvcc")
    return pathlib.Path(next(iter(spec.submodule_search_locations))) / "bin" / "ptxas"


def run_there(module: str, *arguments: str) -> str:
    """Runs a module of this repository in the compile environment; what it printed.

    The environment's Python is $COMPILE_PYTHON, as the Makefile sets it, or the one that
    `make .venv-compile/installed` makes.

    Raises:
      UserError: the environment is not there, or lacks a package.
      CalledProcessError: the module failed.
    """
    python = os.environ.get("COMPILE_PYTHON", str(_ROOT / ".venv-compile" / "bin" / "python"))
    # The cache would give programs without compiling them, and so without PTX to look into.
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    environment.pop("XLA_FLAGS", None)

    def run(*command: str) -> str:
        return subprocess.run(
            [python, *command],
            cwd=_ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    try:
        lacking = run("-c", _SAY_WHAT_LACKS, *_NEEDED).strip()
    except FileNotFoundError:
        lacking = python
    if lacking:
        raise UserError(
            f"compiling for GPUs needs {lacking}: run `make .venv-compile/installed` with a "
            "package index in reach (COMPILE_PYTHON names another environment's Python)"
        )
    return run("-m", module, *arguments)


_ROOT = pathlib.Path(__file__).parents[2]
_NEEDED = ("jax", "jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")
_SAY_WHAT_LACKS = """
import importlib.metadata, sys
found = {d.name.lower().replace("_", "-") for d in importlib.metadata.distributions()}
print(*sorted(set(sys.argv[1:]) - found), sep=", ")
"""
