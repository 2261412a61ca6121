"""Measures this project on the machine's GPU, part by part.

    python -m benchmarks.gpu --output benchmarks/gpu/h100 [PART ...] [--rehearse]

Each part is a process of its own with a time limit of its own. Its text goes to OUTPUT/PART.md as
it is printed, so that what one part said is there when the next one fails. The most valuable come
first, and their limits add up to 8 minutes, compiling included. `--rehearse` runs the same code on
a CPU at small sizes, the kernels by JAX's interpreter and without limits: it shows that the command
works, and says nothing of a GPU.
"""

import argparse
import dataclasses
import datetime
import importlib
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
# Seconds that each may take; their modules have the same names and a function main(rehearse).
PARTS = {
    "machine": 25,
    "numerics": 95,
    "step": 95,
    "determinism": 45,
    "train": 75,
    "attention": 60,
    "peers": 60,
    "counters": 25,
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a part ended.

    Attributes:
      status: its exit status, or None if it was ended at its limit.
      failures: the lines in which it says FAILED.
    """

    part: str
    seconds: float
    status: int | None
    failures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether it ended by itself and found nothing wrong."""
        return self.status == 0 and not self.failures

    def __str__(self) -> str:
        status = "ended at its limit" if self.status is None else f"status {self.status}"
        verdict = "ok" if self.ok else f"FAILED: {status}, {len(self.failures)} failures"
        return f"{self.part}: {verdict}, {self.seconds:.0f} s"


def run(part: str, folder: pathlib.Path, *, rehearse: bool) -> Outcome:
    """One part as a process; what it prints is in folder/PART.md and on the terminal."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part]
    path = folder / f"{part}.md"
    # Some parts start processes that share the GPU's memory.
    memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    quiet = {"PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment = {**os.environ, **memory, **quiet}
    if rehearse:
        command.append("--rehearse")
        environment["JAX_PLATFORMS"] = "cpu"
    begun = time.monotonic()
    with path.open("w") as file:
        file.write(f"# {part}\n\n{datetime.date.today()}, `{' '.join(command[1:])}`\n\n")
        file.flush()
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            status = child.wait(None if rehearse else PARTS[part])
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            status = None
    text = path.read_text(errors="replace")
    print(text, flush=True)
    failures = tuple(line for line in text.splitlines() if "FAILED" in line)
    return Outcome(part, time.monotonic() - begun, status, failures)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--output", type=pathlib.Path, help="a folder for the results")
    parser.add_argument("--rehearse", action="store_true", help="small sizes, on a CPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        importlib.import_module(f"benchmarks.gpu.{options.part}").main(options.rehearse)
        return
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}, only {', '.join(PARTS)}")
    if not options.output:
        parser.error("--output FOLDER is needed: benchmarks/gpu/CARD")
    options.output.mkdir(parents=True, exist_ok=True)
    asked = [part for part in PARTS if not options.parts or part in options.parts]
    outcomes = []
    for count, part in enumerate(asked, 1):
        left = sum(PARTS[later] for later in asked[count - 1 :])
        print(f"{count}/{len(asked)}: {part}, at most {left} s left", file=sys.stderr, flush=True)
        outcomes.append(run(part, options.output, rehearse=options.rehearse))
    print("\n".join(map(str, outcomes)))
    sys.exit(0 if all(outcome.ok for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
