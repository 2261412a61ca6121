"""What several tests share: a small prepared data set, and train.py as a process.

`pytest --gpu` runs the kernels' tests with the kernels compiled on this machine's GPU; else all
tests run on the CPU, the kernels by JAX's interpreter.
"""

import io
import json
import os
import pathlib
import subprocess
import sys

import hypothesis
import numpy as np
import pytest

# Most of a test's time is compiling, and a third of that LLVM's optimizations. What runs the
# documentation and the notebooks has them, as users do.
QUICK_COMPILE = "--xla_backend_optimization_level=0"
# Two devices in this process: sharding is tested wherever the tests run.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=2 {QUICK_COMPILE}")
# A program compiled by one test, or by a process that it started, is there for the next.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# The same examples at each run; campaigns/fuzz.py is where others are looked for.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="the kernels' tests, on a GPU, compiled")


def pytest_configure(config: pytest.Config) -> None:
    """Before jax is imported."""
    if config.getoption("gpu"):
        os.environ["JAX_PLATFORMS"] = "cuda,cpu"
        os.environ["MOSAICBERT_TEST_KERNELS"] = "triton"
        os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # of what they are compared with
    else:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("gpu"):
        return
    import jax

    try:
        jax.devices("cuda")
    except RuntimeError as error:
        raise pytest.UsageError(f"--gpu: JAX finds no NVIDIA GPU: {error}") from error
    others = [item for item in items if not item.get_closest_marker("on_gpu")]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item.get_closest_marker("on_gpu")]


ROOT = pathlib.Path(__file__).parent.parent
_WORDS = (
    "the", "of", "union", "state", "people", "congress", "war",
    "peace", "law", "nation", "year", "great", "treaty", "public",
)  # fmt: skip


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> pathlib.Path:
    """400 short documents with word order worth learning."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    with path.open("w") as file:
        for _ in range(400):
            start = rng.integers(len(_WORDS))
            words = [_WORDS[(start + 3 * i) % len(_WORDS)] for i in range(rng.integers(4, 60))]
            file.write(json.dumps({"text": f"{' '.join(words)} {rng.integers(1000)}."}) + "\n")
    return path


@pytest.fixture(scope="session")
def dataset(corpus, tmp_path_factory) -> pathlib.Path:
    """The corpus, prepared."""
    from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare

    folder = tmp_path_factory.mktemp("data") / "set"
    options = PrepareOptions(inputs=(str(corpus),), output=str(folder), vocab_size=192)
    prepare(options, say=lambda line: None)
    return folder


def run_train(workdir, dataset, *overrides: str, config: str = "tiny") -> list[str]:
    """The command line of a training run."""
    return [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={ROOT}/configs/{config}.py",
        f"--workdir={workdir}",
        f"--config.data.path={dataset}",
        *(f"--config.{override}" for override in overrides),
    ]


def standard_input(data: bytes) -> io.TextIOWrapper:
    """What to put in place of sys.stdin."""
    return io.TextIOWrapper(io.BytesIO(data))


def run_process(command: list[str], **options) -> subprocess.CompletedProcess:
    """Runs on one device, as a user would."""
    environment = {**os.environ, "XLA_FLAGS": QUICK_COMPILE, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, **options
    )
