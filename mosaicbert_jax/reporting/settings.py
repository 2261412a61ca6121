"""What a run was started with: its model, its data, and its settings beside the defaults."""

import functools
import json
import math
from typing import Any

import jax
from flax import nnx

from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.finetuning.configuration import finetuning, glue
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.reporting import formatting
from mosaicbert_jax.reporting.history import History
from mosaicbert_jax.training.checkpoints import build_model
from mosaicbert_jax.training.configuration import pretraining

_MODELS = {
    "MosaicBERT-Base": BertConfig.mosaicbert_base(),
    "MosaicBERT-Large": BertConfig.mosaicbert_large(),
    "BERT-Base": BertConfig.bert_base(),
    "BERT-Large": BertConfig.bert_large(),
}
_ARCHITECTURE = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
    "position_embedding", "feed_forward",
)  # fmt: skip
_DATA = ("data.path", "data.mixture")  # no run has the defaults of these


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """The leaves of nested dicts, by keys with dots."""
    if not isinstance(value, dict) or not value:
        return {key: value}
    found = {}
    for name, inner in value.items():
        found |= flat(inner, f"{key}.{name}" if key else str(name))
    return found


def all_settings(run: History) -> dict[str, str]:
    """Everything in config.json, each value as JSON."""
    rest = {key: value for key, value in run.record.items() if key != "config"}
    rest["model as built"] = rest.pop("model")
    found = flat(run.record["config"]) | flat(rest)
    return {key: _json(value) for key, value in found.items()}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@functools.cache
def _defaults(kind: str) -> dict[str, Any]:
    made = {
        "pretraining": lambda: pretraining(BertConfig()),
        "finetuning": finetuning,
        "GLUE": glue,
    }
    return flat(json.loads(made[kind]().to_json()))


def changed(config: dict[str, Any], *, is_suite: bool = False) -> dict[str, tuple[str, str]]:
    """The settings that differ from the defaults of that kind of run, and the defaults, as JSON.

    The defaults of pretraining are MosaicBERT-Base's.
    """
    kind = "GLUE" if is_suite else "finetuning" if "task" in config else "pretraining"
    defaults = _defaults(kind)
    return {
        key: (_json(value), _json(defaults[key]) if key in defaults else formatting.NOT_KNOWN)
        for key, value in flat(config).items()
        if key not in _DATA and (key not in defaults or value != defaults[key])
    }


def setup(run: History) -> dict[str, str]:
    """The model, its parameters and the data, as plain text."""
    return {
        "model": _model(run.record["model"]),
        "parameters": _parameters(json.dumps(run.record)),
        "data": _data(run),
    }


def _model(fields: dict[str, Any]) -> str:
    """The name, if it has one, and the sizes."""

    def of(name: str) -> str:
        value = fields.get(name)
        return f"{value:,}" if isinstance(value, int) else formatting.NOT_KNOWN

    sizes = (
        f"{of('num_hidden_layers')} layers, hidden size {of('hidden_size')}, "
        f"{of('num_attention_heads')} heads, feed-forward size {of('intermediate_size')}, "
        f"vocabulary {of('vocab_size')}"
    )
    for name, model in _MODELS.items():
        if all(fields.get(key) == getattr(model, key) for key in _ARCHITECTURE):
            return f"{name}: {sizes}"
    return sizes


@functools.cache  # the runs of a page are often of one model
def _parameters(record: str) -> str:
    """Counted on shapes alone, so that no device is used."""
    try:
        model = nnx.eval_shape(lambda: build_model(json.loads(record), 0))
    except (UserError, LookupError, TypeError):  # the record of another release
        return formatting.NOT_KNOWN
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    return f"{sum(math.prod(leaf.shape) for leaf in leaves):,}"


def _data(run: History) -> str:
    """The folders or the file, the digests, and the sequences of folders that are still there."""
    data, identity = run.record["config"].get("data", {}), run.record["dataset"]
    mixture = data.get("mixture") or ()
    parts = identity.get("mixture", {})
    if not mixture:
        return _source(data.get("path"), identity)
    return "; ".join(
        f"{weight:g} × {_source(path, parts.get(str(number), {}))}"
        for number, (path, weight) in enumerate(mixture)
    )


def _source(path: str | None, identity: dict[str, Any]) -> str:
    digest = identity.get("digest")
    told = [f"digest {str(digest)[:12]}"] if digest else []
    if path:
        try:
            found = DatasetMetadata.load(path)
        except (UserError, OSError):  # moved since, or a file to finetune on
            found = None
        if found is not None and found.digest == digest and "train" in found.splits:
            told.append(f"{formatting.large(found.splits['train'].sequences)} training sequences")
    return f"{path or formatting.NOT_KNOWN} ({', '.join(told)})" if told else str(path)
