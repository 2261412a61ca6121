"""MosaicBERT-Base's training step compiled for eight A100s, as JSON: run where compilers are.

.venv-compile/bin/python -m tests.planning.compiled_step replicated
"""

import collections
import dataclasses
import json
import re
import sys

import jax

from mosaicbert_jax import BertConfig
from mosaicbert_jax.planning.compile_only import make_mesh
from mosaicbert_jax.planning.gpus import GPUS
from mosaicbert_jax.planning.profile import of_program
from mosaicbert_jax.planning.training_step import abstract_state, compile_training_step

GPU, DEVICES, ROWS_OF_A_DEVICE, LENGTH = "a100-80gb", 8, 256, 128
CONFIG = BertConfig.mosaicbert_base(dtype="bfloat16", hidden_dropout_prob=0.1)
_KERNEL_CALL = re.compile(r'"__gpu\$xla\.gpu\.triton".*?op_name="[^"]*?(\w+)/pallas_call"')


def replicated() -> dict:
    """All of it, each GPU with all parameters."""
    program = compile_training_step(
        GPUS[GPU],
        CONFIG,
        rows=DEVICES * ROWS_OF_A_DEVICE,
        length=LENGTH,
        data=DEVICES,
    )
    told = {
        "temporary_bytes": program.temporary_bytes,
        "lasting_bytes": program.lasting_bytes,
        "collectives": program.collectives(),
        "kernels": collections.Counter(_KERNEL_CALL.findall(program.text)),
    }
    return told


def sharded() -> dict:
    """Two of its layers with everything divided over the GPUs: what they say to each other."""
    mesh, config = (1, DEVICES, 1), dataclasses.replace(CONFIG, num_hidden_layers=2)
    program = compile_training_step(
        GPUS[GPU], config, rows=DEVICES * ROWS_OF_A_DEVICE, length=LENGTH, fsdp=DEVICES
    )
    state = abstract_state(config, make_mesh(GPUS[GPU], *mesh))
    profile = of_program(
        program,
        state,
        gpu=GPUS[GPU],
        rows=ROWS_OF_A_DEVICE,
        microbatches=1,
        mesh=mesh,
        sequence_length=LENGTH,
    )
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "table": config.vocab_size * config.hidden_size,
        "lasting_bytes": program.lasting_bytes,
        "collectives": [dataclasses.asdict(collective) for collective in profile.collectives],
    }


def atomics(gpu: str, position_embedding: str) -> list[str]:
    """The kernels of one GPU's step that change memory atomically; two layers, real shapes."""
    config = dataclasses.replace(CONFIG, num_hidden_layers=2, position_embedding=position_embedding)
    program = compile_training_step(
        GPUS[gpu], config, rows=ROWS_OF_A_DEVICE, length=LENGTH, microbatches=2, kernels="sum_rows"
    )
    assert program.kernels  # else no PTX was written
    return program.atomics


if __name__ == "__main__":
    kinds = {"replicated": replicated, "sharded": sharded, "atomics": atomics}
    print(json.dumps(kinds[sys.argv[1]](*sys.argv[2:])))
