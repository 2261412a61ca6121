"""Five steps from one start, twice in this process and once in another: are the bits equal?"""

import hashlib
import subprocess
import sys

import jax
import numpy as np

from benchmarks.gpu.inputs import Step, batch_of, config_of
from benchmarks.gpu.tables import header, row


def digest(rehearse: bool) -> str:
    """Of all parameters after five steps."""
    config = config_of("mosaicbert_base", rehearse=rehearse)
    batch, _ = batch_of(config, *((2, 64) if rehearse else (64, 512)), "packed")
    step = Step.compile(config, batch)
    step.run(5)
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(step.state.params):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def main(rehearse: bool) -> None:
    header("five steps", "SHA-256 of the parameters", "equal")
    first = digest(rehearse)
    row("this process", first[:16], "")
    again = digest(rehearse)
    row("again", again[:16], "PASS" if again == first else "FAILED")
    code = f"from benchmarks.gpu.determinism import digest; print(digest({rehearse}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    other = said.stdout.split()[-1]
    row("another process", other[:16], "PASS" if other == first else "FAILED")
