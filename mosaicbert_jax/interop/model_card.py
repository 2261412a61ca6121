"""The model card of a saved model: what it is, how it was trained, how to load it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mosaicbert_jax.interop.config_file import AUTO_CLASSES, MODEL_NAMES, model_type
from mosaicbert_jax.modeling.config import BertConfig

_TASKS = {
    "BertModel": ("feature-extraction", "an encoder"),
    "BertForMaskedLM": ("fill-mask", "an encoder with a head that guesses masked tokens"),
    "BertForSequenceClassification": (
        "text-classification",
        "an encoder with a classifier of sequences",
    ),
    "BertForTokenClassification": (
        "token-classification",
        "an encoder with a classifier of tokens",
    ),
}
_ARCHITECTURES = {
    "mosaicbert": "MosaicBERT (Portes et al., 2023, arXiv:2312.17482): BERT with ALiBi in place of "
    "position embeddings and with gated linear units",
    "bert": "BERT (Devlin et al., 2019, arXiv:1810.04805)",
    "modernbert": "ModernBERT (Warner et al., 2024, arXiv:2412.13663): rotary position embeddings, "
    "attention within a window in most layers, pre-norm layers without biases",
}


@dataclasses.dataclass(frozen=True)
class DataSource:
    """A data set that a model was trained on.

    Attributes:
      share: of the sequences.
      digest: sha256 of its dataset.json.
      texts: its sources, a line each, with license and attribution where they are known; None if
        the data set is not at hand any more.
    """

    share: float
    digest: str
    texts: Sequence[str] | None


@dataclasses.dataclass(frozen=True)
class Training:
    """What a run recorded of itself.

    Attributes:
      settings: the `config` of its record.
      steps, sequences, tokens: completed when the weights were saved; padding is not counted.
      sources: of the text.
      evaluation: the row of metrics.jsonl at that step or the last before it.
    """

    settings: dict[str, Any]
    steps: int
    sequences: int
    tokens: int
    sources: Sequence[DataSource]
    evaluation: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """What a finetuning run recorded of itself.

    Attributes:
      settings: the `config` of its record.
      labels: the classes; none of a regression.
      steps: completed when the weights were saved.
      scores: the row of metrics.jsonl with the evaluation at that step or the last before it.
    """

    settings: dict[str, Any]
    labels: Sequence[str]
    steps: int
    scores: dict[str, Any] | None


def model_card(
    class_name: str,
    config: BertConfig,
    *,
    parameters: int,
    has_tokenizer: bool,
    training: Training | Finetuned | None,
) -> str:
    """Markdown, with the front matter that model hubs read."""
    kind = model_type(config)
    task, what = _TASKS[class_name]
    limit = f"at most {config.max_position_embeddings} tokens"
    if kind == "mosaicbert":
        limit = "no limit on the number of tokens"
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags:\n- {kind}\n"
        "- mosaicbert_jax\n---",
        f"# {MODEL_NAMES[kind]}, {parameters:,} parameters",
        f"{_ARCHITECTURES[kind]}; {what}. {config.num_hidden_layers} layers, hidden size "
        f"{config.hidden_size}, {config.num_attention_heads} heads, feed-forward size "
        f"{config.intermediate_size}, vocabulary {config.vocab_size}; {limit}. Written by "
        "mosaicbert_jax; the weights are float32.",
        _loading(class_name, kind, has_tokenizer),
    ]
    if training is None:
        parts.append("## Training\n\nNothing about it was recorded where this folder was written.")
    elif isinstance(training, Finetuned):
        parts.append(_finetuned(training))
    else:
        parts += [_recipe(training, config), _data(training), _evaluation(training)]
    return "\n\n".join(parts) + "\n"


def _loading(class_name: str, kind: str, has_tokenizer: bool) -> str:
    auto = AUTO_CLASSES[class_name]
    trust = ", trust_remote_code=True" if kind == "mosaicbert" else ""
    names = [auto, *(["AutoTokenizer"] if has_tokenizer else [])]
    lines = [f"from transformers import {', '.join(names)}", ""]
    lines.append('folder = "."  # where this file is')
    lines.append(f"model = {auto}.from_pretrained(folder{trust})")
    if has_tokenizer:
        lines += [
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            'outputs = model(**tokenizer(["The first text.", "The other one."], padding=True, '
            'return_tensors="pt"))',
        ]
    text = "## How to load it\n\nWith transformers 5:\n\n```python\n" + "\n".join(lines) + "\n```\n"
    if kind == "mosaicbert":
        text += (
            "\n`trust_remote_code=True` runs `modeling_mosaicbert.py` of this folder, plain "
            "PyTorch that needs no further package.\n"
        )
    if not has_tokenizer:
        text += "\nNo tokenizer was given when this folder was written; use the model's own.\n"
    return text + (
        "\nIn JAX: `from mosaicbert_jax import "
        f"{class_name}; {class_name}.from_pretrained(folder)`."
    )


def _finetuned(training: Finetuned) -> str:
    settings = training.settings
    data, optimizer, train = settings["data"], settings["optimizer"], settings["train"]
    labels = ", ".join(training.labels)
    rows = {
        "task": settings["task"] + (f": {labels}" if labels else ""),
        "planned length": train["duration"],
        "done when these weights were saved": f"{training.steps:,} steps of "
        f"{train['batch_size']} examples",
        "examples": f"at most {data['max_seq_len']} tokens",
        "learning rate": f"{optimizer['learning_rate']:g} at the peak",
        "weight decay": f"{optimizer['weight_decay']:g} a step at the peak, decoupled",
        "seed": str(settings["seed"]),
    }
    if settings.get("distill", {}).get("teacher"):
        weight = settings["distill"]["weight"]
        rows["learned from"] = f"the text, and with a weight of {weight:g} another model's guesses"
    for name, value in (training.scores or {}).items():
        if name.startswith("eval_"):
            shown = f"{value:.4f}" if isinstance(value, float) else str(value)
            rows[f"held out: {name.removeprefix('eval_').replace('_', ' ')}"] = shown
    return f"## Finetuning\n\n{_table(rows)}"


def _table(rows: dict[str, str]) -> str:
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"| | |\n| --- | --- |\n{lines}"


def _recipe(training: Training, config: BertConfig) -> str:
    settings = training.settings
    data, optimizer, train = settings["data"], settings["optimizer"], settings["train"]
    rows = {
        "planned length": train["duration"],
        "done when these weights were saved": f"{training.steps:,} steps, "
        f"{training.sequences:,} sequences, {training.tokens:,} tokens (padding not counted)",
        "started from": "another model's weights" if settings["init_from"] else "random weights",
        "batch": f"{train['batch_tokens']:,} tokens, padding included, in rows of "
        f"{data['row_length']}" + (", packed" if data["packing"] else ", a sequence each"),
        "masked": _masking(data),
        "optimizer": _optimizer(optimizer),
        "schedule": _schedule(optimizer),
        "dropout": f"{config.hidden_dropout_prob:g}, in attention "
        f"{config.attention_probs_dropout_prob:g}",
        "precision": f"{config.dtype} computation, float32 weights and optimizer",
        "seed": str(settings["seed"]),
    }
    if settings.get("distill", {}).get("teacher"):
        weight = settings["distill"]["weight"]
        rows["learned from"] = f"the text, and with a weight of {weight:g} another model's guesses"
    return f"## Recipe\n\nMasked language modelling.\n\n{_table(rows)}"


def _masking(data: dict[str, Any]) -> str:
    rate, unit = data["masking_rate"], data.get("masking_unit", "token")
    share = f"{rate:.0%}" if isinstance(rate, float) else f"{rate[0]:.0%} changing to {rate[1]:.0%}"
    by_unit = "" if unit == "token" else f", by {unit}"
    return f"{share} of the tokens{by_unit}"


def _optimizer(optimizer: dict[str, Any]) -> str:
    name = {"stable_adamw": "StableAdamW", "muon": "Muon for dense layers and AdamW"}.get(
        optimizer.get("name", "adamw"), "AdamW"
    )
    line = (
        f"{name}, learning rate {optimizer['learning_rate']:g}, betas {optimizer['b1']:g} and "
        f"{optimizer['b2']:g}, eps {optimizer['eps']:g}, decoupled weight decay "
        f"{optimizer['weight_decay']:g} a step at the peak"
    )
    if optimizer.get("clip_norm") is not None:
        line += f", gradients clipped at a norm of {optimizer['clip_norm']:g}"
    if optimizer.get("ema_decay") is not None:
        line += f"; the weights are their moving average with decay {optimizer['ema_decay']:g}"
    return line


def _schedule(optimizer: dict[str, Any]) -> str:
    name, form = optimizer.get("schedule", "linear"), optimizer.get("decay_form")
    warmup = f"linear warmup over {optimizer['warmup']:.0%} of the planned length, then "
    to_the_end = f"to {optimizer['final_fraction']:.0%} of the peak"
    return {
        "linear": f"{warmup}linear decay {to_the_end}",
        "cosine": f"{warmup}cosine decay {to_the_end}",
        "constant": f"{warmup}constant",
        "wsd": f"{warmup}constant, with {form} decay {to_the_end} over the last "
        f"{optimizer.get('decay', 0):.0%}",
        "decay": f"{form} decay from another run's peak {to_the_end}",
    }[name]


def _data(training: Training) -> str:
    lines = ["## Data", ""]
    for source in training.sources:
        share = "" if len(training.sources) == 1 else f"{source.share:.1%} of the sequences: "
        lines.append(f"{share}a data set whose record has the sha256 `{source.digest}`")
        if source.texts is None:
            lines[-1] += ". It was not at hand when this card was written."
        else:
            lines[-1] += ", made of"
            lines += ["", *(f"- {text}" for text in source.texts)]
        lines.append("")
    return "\n".join(lines).rstrip()


def _evaluation(training: Training) -> str:
    row = training.evaluation
    if row is None:
        return "## Evaluation\n\nNone was recorded up to this step."
    rate = training.settings["eval"]["masking_rate"]
    return (
        f"## Evaluation\n\nOn held-out text, {rate:.0%} of its tokens masked, at step "
        f"{row['step']:,}, over {row['eval_predictions']:,} predictions:\n\n| | |\n| --- | --- |\n"
        f"| cross-entropy, nats | {row['eval_loss']:.3f} |\n"
        f"| masked tokens guessed right | {row['eval_masked_accuracy']:.3f} |\n"
        f"| the same, always guessing the commonest | {row['eval_commonest_accuracy']:.3f} |"
    )
