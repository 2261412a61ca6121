"""What a run was started with: its model, its data, and settings that are not the defaults."""

import functools
import json
from typing import Any

import jax
from flax import nnx

from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.finetuning.configuration import finetuning, glue
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.pretraining.configuration import pretraining
from mosaicbert_jax.reporting.formatting import NOT_KNOWN, large, number
from mosaicbert_jax.reporting.history import History, is_number
from mosaicbert_jax.storage.opening import build_model
from mosaicbert_jax.storage.target import Target
from mosaicbert_jax.storage.workdir import CLASSIFIER

_NAMES = {
    "MosaicBERT-Base": BertConfig.mosaicbert_base(),
    "MosaicBERT-Large": BertConfig.mosaicbert_large(),
    "BERT-Base": BertConfig.bert_base(),
    "BERT-Large": BertConfig.bert_large(),
    "ModernBERT-base": BertConfig.modernbert_base(),
    "ModernBERT-large": BertConfig.modernbert_large(),
}
_SIZES = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden size",
    "num_attention_heads": "heads",
    "intermediate_size": "feed-forward size",
    "vocab_size": "vocabulary",
}
_KIND = (*list(_SIZES)[:4], "position_embedding", "feed_forward")  # what has a name
_DATA = ("data.path", "data.mixture")  # every run sets one of them


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """The leaves of nested dicts, by keys with dots."""
    if not isinstance(value, dict) or not value:
        return {key: value}
    inner = (_flat(part, f"{key}.{name}" if key else str(name)) for name, part in value.items())
    return functools.reduce(dict.__or__, inner)


def _as_json(leaves: dict[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value, ensure_ascii=False) for key, value in leaves.items()}


def all_settings(run: History) -> dict[str, str]:
    """Everything in config.json, each value as JSON."""
    rest = {key: value for key, value in run.record.items() if key != "config"}
    rest["model as built"] = rest.pop("model")
    return _as_json(_flat(run.record["config"]) | _flat(rest))


def changed(config: dict[str, Any], *, is_suite: bool = False) -> dict[str, tuple[str, str]]:
    """Settings as JSON, each with its default, where they differ.

    The defaults are those of GLUE suites, of finetuning, or of pretraining MosaicBERT-Base.
    """
    is_finetuning = config.get("kind") == "finetuning"
    kind = glue() if is_suite else finetuning() if is_finetuning else pretraining(BertConfig())
    found, defaults = _as_json(_flat(config)), _as_json(_flat(json.loads(kind.to_json())))
    return {
        key: (value, defaults.get(key, NOT_KNOWN))
        for key, value in found.items()
        if key not in (*_DATA, "hardware") and value != defaults.get(key)
    }


def setup(run: History) -> dict[str, str]:
    """The model, its number of parameters and the data."""
    model, identity = run.record["model"], run.record["dataset"]
    known = {key: number(value) for key, value in model.items() if is_number(value)}
    sizes = ", ".join(f"{shown} {known.get(key, NOT_KNOWN)}" for key, shown in _SIZES.items())
    names = [
        f"{name}: "
        for name, one in _NAMES.items()
        if all(model.get(key) == getattr(one, key) for key in _KIND)
    ]
    built = {key: run.record.get(key) for key in ("model", CLASSIFIER)}
    data = run.record["config"].get("data", {})
    parts = identity.get("mixture", {})
    mixture = [
        f"{weight:g} × {_source(path, parts.get(str(index), {}))}"
        for index, (path, weight) in enumerate(data.get("mixture") or ())
    ]
    return {
        "model": f"{''.join(names)}{sizes}",
        "parameters": _parameters(json.dumps(built)),
        "data": "; ".join(mixture) or _source(data.get("path"), identity),
    }


@functools.cache  # the runs of a page are often of one model
def _parameters(record: str) -> str:
    """Counted on shapes alone, so that no device is used."""
    try:
        found = json.loads(record)
        target = found[CLASSIFIER] and Target.from_dict(found[CLASSIFIER])
        config = BertConfig.from_fields(found["model"])
        model = nnx.eval_shape(lambda: build_model(config, target, 0))
    except (UserError, LookupError, TypeError):  # the record of another release
        return NOT_KNOWN
    return f"{sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))):,}"


def _source(path: str | None, identity: dict[str, Any]) -> str:
    """A folder or file, its digest, and its sequences if the folder is still there."""
    digest = str(identity.get("digest"))
    try:
        found = DatasetMetadata.load(path) if path else None
    except (UserError, OSError):  # moved since, or a file to finetune on
        found = None
    size = ""
    if found is not None and found.digest == digest:
        size = f", {large(found.splits['train'].sequences)} training sequences"
    return f"{path or NOT_KNOWN} (digest {digest[:12]}{size})"
