"""MosaicBERT-Base's training step compiled for eight A100s, as JSON: run where compilers are.

.venv-compile/bin/python -m tests.planning.compiled_step
"""

import collections
import json
import re

from mosaicbert_jax import BertConfig
from mosaicbert_jax.planning.gpus import GPUS
from mosaicbert_jax.planning.training_step import compile_training_step

GPU, DEVICES, ROWS_OF_A_DEVICE, LENGTH = "a100-80gb", 8, 256, 128
CONFIG = BertConfig.mosaicbert_base(dtype="bfloat16", hidden_dropout_prob=0.1)
_KERNEL_CALL = re.compile(r'"__gpu\$xla\.gpu\.triton".*?op_name="[^"]*?(\w+)/pallas_call"')


def main() -> None:
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
    print(json.dumps(told))


if __name__ == "__main__":
    main()
