"""Writes models as folders that Hugging Face's libraries, and `reading`, load."""

import importlib.resources
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, processors

from mosaicbert_jax.files import new_folder
from mosaicbert_jax.interop.config_file import CONFIG_FILE, model_type, stored_config
from mosaicbert_jax.interop.model_card import Finetuned, Training, model_card
from mosaicbert_jax.interop.names import BERT_DECODER_BIAS, LAYOUTS
from mosaicbert_jax.interop.weight_files import SAFETENSORS
from mosaicbert_jax.modeling.encoder import BertModel
from mosaicbert_jax.text.tokenizer import (
    check_vocabulary,
    is_lowercase,
    load_tokenizer,
    special_token_ids,
    special_token_names,
    tokenizer_files,
)

_TORCH_FILES = (
    "configuration_mosaicbert.py",
    "modeling_mosaicbert.py",
    "padding_mosaicbert.py",
)


def save_model(
    model: Any,
    folder: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    training: Training | Finetuned | None = None,
    labels: Sequence[str] = (),
    problem_type: str | None = None,
    max_length: int | None = None,
) -> None:
    """Writes a model; see `save_pretrained`.

    Args:
      labels: the names of a classifier's outputs; LABEL_0, … if there are none.
      training: what is known of its training, for the model card.
      problem_type: of a classifier, for config.json; see `stored_config`.
      max_length: tokens that the model was finetuned to read at most; None: it isn't known.
    """
    config, class_name = model.config, type(model).__name__
    kind = model_type(config)
    encoder = None if tokenizer is None else load_tokenizer(tokenizer)
    if encoder is not None:
        check_vocabulary(encoder, config.vocab_size, tokenizer)
    stored = stored_config(
        config,
        class_name,
        labels=labels or [f"LABEL_{i}" for i in range(getattr(model, "num_labels", 0))],
        pad_token_id=special_token_ids(encoder).pad if encoder else 0,
        problem_type=problem_type,
    )
    card = model_card(
        class_name,
        config,
        parameters=sum(x.size for _, x in nnx.to_flat_state(nnx.state(model, nnx.Param))),
        has_tokenizer=encoder is not None,
        training=training,
    )
    with new_folder(pathlib.Path(folder)) as unfinished:
        (unfinished / CONFIG_FILE).write_text(json.dumps(stored, indent=2) + "\n", "utf-8")
        # Without this entry transformers takes the file for another framework's.
        save_file(stored_tensors(model), unfinished / SAFETENSORS, metadata={"format": "pt"})
        # safetensors makes it the owner's alone.
        shutil.copymode(unfinished / CONFIG_FILE, unfinished / SAFETENSORS)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        if kind == "mosaicbert":
            sources = importlib.resources.files("mosaicbert_jax.interop") / "torch_model"
            for name in _TORCH_FILES:
                (unfinished / name).write_bytes((sources / name).read_bytes())
        if encoder is not None:
            has_limit = config.position_embedding != "alibi"
            limits = [max_length, config.max_position_embeddings if has_limit else None]
            known = [limit for limit in limits if limit is not None]
            write_tokenizer(
                encoder,
                unfinished,
                max_length=min(known, default=None),
                token_types=config.type_vocab_size > 0,
            )


def stored_tensors(model: Any) -> dict[str, np.ndarray]:
    """The parameters, float32, by the names that PyTorch's class has for them."""
    kind = model_type(model.config)
    layout = LAYOUTS[kind]
    tensors: dict[str, np.ndarray] = {}
    for path, value in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        names = layout.names(path)
        array = np.asarray(value[...], np.float32)
        array = array.T if path[-1] == "kernel" else array  # PyTorch stores (outputs, inputs)
        parts = np.split(array, len(names))
        tensors |= {n: np.ascontiguousarray(x) for n, x in zip(names, parts, strict=True)}
    if layout.decoder_bias in tensors and kind == "bert":
        tensors[BERT_DECODER_BIAS] = tensors.pop(layout.decoder_bias)
    elif layout.decoder_bias in tensors:
        # Written out, as the original does: code that does not tie reads a whole model.
        tensors[layout.tied_decoder] = tensors[layout.words]
    if isinstance(model, BertModel):
        prefix = f"{layout.encoder}."
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def write_tokenizer(
    tokenizer: Tokenizer,
    folder: pathlib.Path,
    *,
    max_length: int | None = None,
    token_types: bool = True,
) -> None:
    """The tokenizer's files, and what AutoTokenizer reads beside them.

    Args:
      max_length: tokens that the model takes; None: any number.
      token_types: whether the model has token types.
    """
    ids, names = special_token_ids(tokenizer), special_token_names(tokenizer)
    # Ours puts the two round every sequence, whatever the file that the tokenizer came from says.
    tokenizer.post_processor = processors.BertProcessing(
        (names["sep"], ids.sep), (names["cls"], ids.cls)
    )
    for name, text in tokenizer_files(tokenizer).items():
        (folder / name).write_text(text, encoding="utf-8")
    inputs = ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"]
    settings: dict[str, Any] = {
        # The class that takes tokenizer.json as it is; BertTokenizer builds one of its own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "do_lower_case": is_lowercase(tokenizer),
        "model_input_names": inputs,
    }
    settings |= {f"{role}_token": name for role, name in names.items()}
    if max_length is not None:
        settings["model_max_length"] = max_length
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
