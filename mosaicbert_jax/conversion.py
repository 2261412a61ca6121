"""Converts runs to Hugging Face folders, and such folders to workdirs."""

import json
import pathlib
from typing import Any

from mosaicbert_jax.buckets import Place, place
from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import new_folder
from mosaicbert_jax.interop.model_card import DataSource, Finetuned, Training
from mosaicbert_jax.interop.reading import read_model
from mosaicbert_jax.interop.writing import save_model, write_tokenizer
from mosaicbert_jax.modeling.heads import BertForMaskedLM
from mosaicbert_jax.storage import workdir
from mosaicbert_jax.storage.checkpoint_files import read_progress, write_params
from mosaicbert_jax.storage.opening import open_model
from mosaicbert_jax.storage.target import PROBLEM_TYPES
from mosaicbert_jax.text.tokenizer import check_vocabulary, load_tokenizer
from mosaicbert_jax.training.metrics import METRICS_FILE, is_row_until


def export_run(run: pathlib.Path, output: pathlib.Path, step: int | None = None) -> None:
    """Writes a run's model, of its last checkpoint or the one at `step`, as a Hugging Face folder.

    Raises:
      UserError: no run, no such checkpoint, or an output that exists.
    """
    stored = open_model(run, step)
    record = workdir.read_record(run)
    training, labels, problem_type = None, (), None
    if stored.target is not None:
        labels = stored.target.labels
        problem_type = PROBLEM_TYPES.get(stored.target.kind)
        steps = read_progress(run, step)["step"]
        scores = _last_evaluation(run / METRICS_FILE, steps)
        training = Finetuned(record["config"], labels, steps, scores)
    elif workdir.CONVERTED_FROM not in record:
        training = _training(run, record, read_progress(run, step))
    tokenizer = run / workdir.TOKENIZER
    save_model(
        stored.load(),
        output,
        tokenizer=tokenizer,
        training=training,
        labels=labels,
        problem_type=problem_type,
        max_length=stored.max_seq_len,
    )


def import_folder(
    folder: pathlib.Path,
    output: pathlib.Path,
    *,
    tokenizer: pathlib.Path | None = None,
    renew: tuple[str, ...] = (),
) -> None:
    """Writes a Hugging Face folder as a workdir for `init_from`, fill-mask and finetuning.

    Args:
      folder: with the weights of a masked language model, MosaicBERT's or BERT's.
      tokenizer: if the folder has none: a vocab.txt, a tokenizer.json, or a folder with them.
      renew: parts that start from random weights, such as ("head",) for an encoder alone.

    Raises:
      UserError: weights that are not this model's, no tokenizer or one that does not fit, or an
        output that exists.
    """
    model = read_model(BertForMaskedLM, folder, renew=renew)
    encoder = load_tokenizer(tokenizer or folder)
    check_vocabulary(encoder, model.config.vocab_size, tokenizer or folder)
    with new_folder(output) as unfinished:
        workdir.write_converted(unfinished, model.config, source=folder.absolute().name)
        write_params(unfinished, model)
        (unfinished / workdir.TOKENIZER).mkdir()
        write_tokenizer(encoder, unfinished / workdir.TOKENIZER)


def _training(run: pathlib.Path, record: dict[str, Any], progress: dict[str, Any]) -> Training:
    """What the run says of itself up to that progress."""
    data, dataset = record["config"]["data"], record["dataset"]
    if "mixture" in dataset:
        parts = [dataset["mixture"][str(index)] for index in range(len(dataset["mixture"]))]
        folders = [folder for folder, _ in data["mixture"]]
    else:
        parts, folders = [{"digest": dataset["digest"], "weight": 1.0}], [data["path"]]
    return Training(
        settings=record["config"],
        steps=progress["step"],
        sequences=progress["sequences"],
        tokens=progress["tokens"],
        sources=[
            DataSource(part["weight"], part["digest"], _texts(place(folder), part["digest"]))
            for part, folder in zip(parts, folders, strict=True)
        ],
        evaluation=_last_evaluation(run / METRICS_FILE, progress["step"]),
    )


def _texts(folder: Place, digest: str) -> list[str] | None:
    """What a data set was made of, if it is still there and still the same."""
    try:
        metadata = DatasetMetadata.load(folder)
    except (UserError, OSError):
        return None  # moved, gone or out of reach, which the card then says
    if metadata.digest != digest:
        return None
    return [
        ", ".join(
            [f"`{source.name}`: {source.documents:,} documents"]
            + ([f"license {source.license}"] if source.license else [])
            + ([source.attribution] if source.attribution else [])
        )
        for source in metadata.sources
    ]


def _last_evaluation(path: pathlib.Path, step: int) -> dict[str, Any] | None:
    """The last row of metrics.jsonl with an evaluation, up to a step."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if is_row_until(line, step)]
    keys = ("eval_loss", "eval_examples")  # of pretraining and of finetuning
    evaluated = (row for row in rows[::-1] if any(row.get(key) is not None for key in keys))
    return next(evaluated, None)
