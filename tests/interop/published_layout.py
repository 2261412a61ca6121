"""Checkpoints as MosaicBERT's authors published them: pytorch_model.bin, under model_type bert."""

import json

from mosaicbert_jax.interop.writing import stored_tensors
from tests.interop.torch_cases import torch


def write_published(folder, model, *, vocab_size):
    """Weights of `model`, and a config.json with the fields that the published one has.

    Args:
      vocab_size: as config.json says it, padded or not.
    """
    folder.mkdir()
    config = model.config
    stored = {
        "alibi_starting_size": 512, "architectures": ["BertForMaskedLM"],
        "attention_probs_dropout_prob": 0.0,
        "auto_map": {"AutoModelForMaskedLM": "bert_layers.BertForMaskedLM"},
        "classifier_dropout": None, "gradient_checkpointing": False, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": config.hidden_size,
        "initializer_range": 0.02, "intermediate_size": config.intermediate_size,
        "layer_norm_eps": 1e-12, "max_position_embeddings": config.max_position_embeddings,
        "model_type": "bert", "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers, "pad_token_id": 0,
        "position_embedding_type": "absolute", "torch_dtype": "float32",
        "transformers_version": "4.16.0", "type_vocab_size": config.type_vocab_size,
        "use_cache": True, "vocab_size": vocab_size,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(stored, indent=2))
    tensors = {name: torch.tensor(x) for name, x in stored_tensors(model).items()}
    tied = "bert.embeddings.word_embeddings.weight"
    if tied in tensors:
        tensors["cls.predictions.decoder.weight"] = tensors[tied]  # one storage for both
    torch.save(tensors, folder / "pytorch_model.bin")
