"""A MosaicBERT of more than a billion parameters, sharded over the GPUs of a node.

Command:   python train.py --config=configs/mosaicbert_1b.py --workdir=runs/mosaicbert_1b \\
               --config.data.path=DIR
           DIR: C4 (English) prepared with bert-base-uncased's vocabulary, 128 tokens a sequence.
Hardware:  8 A100 (80 GB) a node. Parameters, gradients and optimizer state take 18 GB in all: each
           GPU holds an eighth of them (fsdp), so that memory is left for activations.
Predicted: see benchmarks/results/plan.md. Nothing was trained with it yet, here or elsewhere.
"""

from mosaicbert_jax import BertConfig
from mosaicbert_jax.pretraining.configuration import pretraining


def get_config():
    """28 layers of 1,536: 1,106,643,264 parameters."""
    model = BertConfig.mosaicbert_base(
        num_hidden_layers=28,
        hidden_size=1536,
        num_attention_heads=24,
        intermediate_size=6144,
    )
    config = pretraining(model)
    config.mesh.fsdp = 8
    config.train.microbatch_tokens = 32_768
    config.optimizer.learning_rate = 2e-4
    config.hardware = "gpu"
    return config
