"""Small input of every kind, and what reads it; see campaigns/fuzz.py."""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
from flax import nnx
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mosaicbert_jax import BertConfig, BertForMaskedLM, BertForSequenceClassification
from mosaicbert_jax.commands import config_line
from mosaicbert_jax.commands import train as command
from mosaicbert_jax.commands.cli import main as commands
from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.finetuning import glue
from mosaicbert_jax.finetuning.classifier import Classifier
from mosaicbert_jax.finetuning.kinds import KINDS
from mosaicbert_jax.finetuning.task import read_task
from mosaicbert_jax.interop.writing import save_model
from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare
from mosaicbert_jax.pretraining.pretraining import Pretraining
from mosaicbert_jax.text.tokenizer import (
    SPECIAL_TOKENS,
    encode_texts,
    load_tokenizer,
    of_plain_text,
    padded_vocab_size,
    vocab_size,
)
from mosaicbert_jax.text.tokenizer_training import BPE_MODEL, train_tokenizer
from mosaicbert_jax.text.word_starts import word_starts

ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Target:
    """Something that reads input.

    Attributes:
      name: for the table.
      folder: with good input.
      patterns: globs of the files in it that are mutated.
      use: reads the folder (a copy of it) and may write the path that it is given too.
      share: of the inputs, beside the others'; less where each takes about a second.
    """

    name: str
    folder: pathlib.Path
    patterns: tuple[str, ...]
    use: Callable[[pathlib.Path, pathlib.Path], None]
    share: float = 1.0


def prepare_run(line: list[str]) -> None:
    """All that train.py does before it trains."""
    with mock.patch.object(sys, "argv", line):
        config, workdir = command.parse(sys.argv)
    with mock.patch("mosaicbert_jax.training.loop.train", _look_at):
        if "task" in config:
            from mosaicbert_jax.finetuning.finetuning import Finetuning

            _look_at(Finetuning.prepare(config, pathlib.Path(workdir)))
        else:
            command.train(config, pathlib.Path(workdir))


def _look_at(run: Any, **options: Any) -> None:
    """What the loop asks of a run first, and its first batches."""
    run.describe(Position())
    with contextlib.closing(run.batches(Position())) as stream:
        for _ in range(2):
            next(stream)


def _use_data_set(folder: pathlib.Path, output: pathlib.Path) -> None:
    words = [
        "train.py", f"--config={ROOT}/configs/tiny.py", f"--workdir={output}",
        f"--config.data.path={folder}",
    ]  # fmt: skip
    with mock.patch.object(sys, "argv", words):
        config, workdir = command.parse(sys.argv)
    run = Pretraining.prepare(config, pathlib.Path(workdir))
    _look_at(run)
    for dataset in (run.dataset, run.validation):
        if isinstance(dataset, TokenDataset):
            tokens, lengths = dataset.gather(np.arange(len(dataset)))
            assert len(tokens) == lengths.sum()


def _use_config_file(folder: pathlib.Path, output: pathlib.Path) -> None:
    prepare_run(
        [
            "train.py",
            f"--config={folder}/tiny.py",
            f"--workdir={output}",
            f"--config.data.path={folder}/set",
        ]
    )


def _use_tokenizer(folder: pathlib.Path, output: pathlib.Path) -> None:
    for path in (folder, folder / "tokenizer.json", folder / "vocab.txt"):
        tokenizer = load_tokenizer(path)
        encode_texts(tokenizer, ["the law of the union", "", "é\u0000 [MASK]", "x" * 300])


def _use_other_tokenizers(folder: pathlib.Path, output: pathlib.Path) -> None:
    for path in sorted(folder.glob("*.json")):
        tokenizer = load_tokenizer(path)
        encode_texts(of_plain_text(tokenizer), ["the law of the union", "", "é\u0000 [MASK]"])
        word_starts(tokenizer, padded_vocab_size(vocab_size(tokenizer)))


def _use_hugging_face(folder: pathlib.Path, output: pathlib.Path) -> None:
    commands(["convert", str(folder), "--output", str(output)])


def _use_tables(folder: pathlib.Path, output: pathlib.Path) -> None:
    tokenizer = load_tokenizer(folder / "vocab.txt")
    for name, kind in (
        ("reviews.csv", "classification"),
        ("ratings.tsv", "regression"),
        ("reviews.jsonl", "classification"),
        ("words.jsonl", "token_classification"),
    ):
        line = [
            "x", f"--config={ROOT}/configs/finetune.py", f"--config.data.path={folder / name}",
            f"--config.task={kind}", "--config.data.dev_fraction=0.3",
        ]  # fmt: skip
        config, _, _ = config_line.read_flags(line)
        task = read_task(config)
        KINDS[kind].encode(task.train, tokenizer, task.target, 32)


def _use_glue(folder: pathlib.Path, output: pathlib.Path) -> None:
    for name in ("cola", "rte", "stsb"):
        task = glue.read_glue_task(name, str(folder))
        for example in (*task.train, *task.dev[""]):
            task.target.number(example.label, example.place)
        glue.read_test_set(name, str(folder), "")


def _use_report(folder: pathlib.Path, output: pathlib.Path) -> None:
    commands(["report", str(folder), "--output", str(output)])


def _use_run(folder: pathlib.Path, output: pathlib.Path) -> None:
    commands(["fill-mask", str(folder), "the [MASK] of the union"])


def _use_classifier(folder: pathlib.Path, output: pathlib.Path) -> None:
    classifier = Classifier(folder)
    for examples in classifier.read(folder / "lines.txt"):  # none, if a mutation emptied it
        for example, prediction in zip(examples, classifier(examples), strict=True):
            classifier.kind.lines(example, prediction)


def _use_standard_input(folder: pathlib.Path, output: pathlib.Path) -> None:
    with (folder / "lines.txt").open("rb") as file:
        # Whatever the locale's encoding is.
        lines = io.TextIOWrapper(file, encoding="ascii")
        with mock.patch.object(sys, "stdin", lines):
            commands(["fill-mask", str(folder)])


def _use_text(folder: pathlib.Path, output: pathlib.Path) -> None:
    prepare(
        PrepareOptions((str(folder),), str(output), vocab_size=64, workers=1), say=lambda line: None
    )


def good_input(folder: pathlib.Path) -> list[Target]:
    """Writes small input of each kind, and says what reads it."""
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("ba", "de", "ki", "lo") for b in ("ra", "so", "ti", "nu")]
    texts = [" ".join(rng.choice(words, rng.integers(3, 20))) for _ in range(120)]
    (folder / "text.txt").write_text("\n".join(texts))
    prepare(
        PrepareOptions((str(folder / "text.txt"),), str(folder / "set"), vocab_size=128, workers=1),
        say=lambda line: None,
    )
    shutil.copytree(folder / "set", folder / "configs" / "set")
    shutil.copy(ROOT / "configs" / "tiny.py", folder / "configs")
    shutil.copytree(folder / "set", folder / "tokenizer")
    for path in (folder / "tokenizer").iterdir():
        if path.name not in ("tokenizer.json", "vocab.txt"):
            path.unlink()
    _write_run(folder)
    commands(["convert", str(folder / "run"), "--output", str(folder / "model")])
    _write_classifier(folder)
    _write_other_tokenizers(folder / "others", texts)
    _write_modernbert(folder)
    (folder / "run" / "lines.txt").write_text("the [MASK]\n[MASK] of \u00e9\n")
    _write_tables(folder / "tables", texts, rng)
    _write_tables(folder / "text", texts, rng)
    (folder / "text" / "words.jsonl").rename(folder / "text" / "words.skipped")
    shutil.copy(folder / "set" / "vocab.txt", folder / "tables")
    _write_glue(folder / "glue", texts, rng)
    data = ("dataset.json", "*.npy", "tokenizer.json")
    names = ("*.json", "*.safetensors", "vocab.txt")
    targets = [
        Target("prepared data sets", folder / "set", data, _use_data_set),
        Target("config files", folder / "configs", ("tiny.py",), _use_config_file),
        Target("tokenizer files", folder / "tokenizer", ("*",), _use_tokenizer),
        Target("BPE and Unigram", folder / "others", ("*",), _use_other_tokenizers),
        Target("ModernBERT folders", folder / "modernbert", names, _use_hugging_face, share=0.5),
        Target("Hugging Face folders", folder / "model", names, _use_hugging_face),
        Target("CSV, TSV, JSON Lines", folder / "tables", ("*[vl]",), _use_tables),
        Target("GLUE's files", folder / "glue", ("*/*.tsv",), _use_glue),
        Target("runs, by report", folder / "run", ("*.json*",), _use_report, share=0.2),
        Target(
            "runs, by fill-mask", folder / "run", ("config.json", "tok*/*"), _use_run, share=0.2
        ),
        Target(
            "classifiers, by predict",
            folder / "classifier",
            ("*.json", "*.txt"),
            _use_classifier,
            share=0.2,
        ),
        Target("standard input", folder / "run", ("lines.txt",), _use_standard_input, share=0.2),
        Target("text, by prepare", folder / "text", ("*",), _use_text, share=0.3),
    ]
    if importlib.util.find_spec("torch"):
        _write_torch_file(folder)
        bins = ("*.bin", "config.json")
        targets.append(Target("PyTorch files", folder / "torch", bins, _use_hugging_face))
    return targets


def _write_run(folder: pathlib.Path) -> None:
    settings = ("train.duration=2ba", "model.num_hidden_layers=1", "model.hidden_size=16")
    line = [
        "train.py", f"--config={ROOT}/configs/tiny.py", f"--workdir={folder / 'run'}",
        f"--config.data.path={folder / 'set'}", *(f"--config.{setting}" for setting in settings),
    ]  # fmt: skip
    with mock.patch.object(sys, "argv", line):
        command.main()


def _write_classifier(folder: pathlib.Path) -> None:
    """One of several labels, in Hugging Face's layout."""
    config = BertConfig(
        vocab_size=128, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    model = BertForSequenceClassification(config, num_labels=2, rngs=nnx.Rngs(0))
    save_model(
        model, folder / "classifier", tokenizer=folder / "set", labels=("a", "b"),
        problem_type="multi_label_classification", max_length=32,
    )  # fmt: skip
    (folder / "classifier" / "lines.txt").write_text("the law\tof the union\n\u00e9\n")


def _write_other_tokenizers(folder: pathlib.Path, texts: list[str]) -> None:
    folder.mkdir()
    train_tokenizer(texts, 300, model=BPE_MODEL).save(str(folder / "bpe.json"))
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=list(SPECIAL_TOKENS), unk_token="[UNK]", show_progress=False
    )
    unigram.train_from_iterator(texts, trainer)
    unigram.save(str(folder / "unigram.json"))


def _write_modernbert(folder: pathlib.Path) -> None:
    config = BertConfig.modernbert_base(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, sliding_window=4,
    )  # fmt: skip
    model = BertForMaskedLM(config, rngs=nnx.Rngs(0))
    save_model(model, folder / "modernbert", tokenizer=folder / "others" / "bpe.json")


def _write_torch_file(folder: pathlib.Path) -> None:
    import torch
    from safetensors.torch import load_file

    shutil.copytree(folder / "model", folder / "torch")
    path = folder / "torch" / "model.safetensors"
    torch.save(load_file(path), folder / "torch" / "pytorch_model.bin")
    path.unlink()


def _write_tables(folder: pathlib.Path, texts: list[str], rng: np.random.Generator) -> None:
    folder.mkdir()
    for name, delimiter, labels in (
        ("reviews.csv", ",", ["good", "bad"]),
        ("ratings.tsv", "\t", ["1.5", "-2", "0"]),
    ):
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(["text", "label"])
            writer.writerows([text, rng.choice(labels)] for text in texts[:30])
    with (folder / "reviews.jsonl").open("w") as file:
        for text in texts[:30]:
            print(json.dumps({"text": text, "label": str(rng.choice(["a", "b"]))}), file=file)
    with (folder / "words.jsonl").open("w") as file:
        for text in texts[:30]:
            tags = [str(rng.choice(["O", "B-X"])) for _ in text.split()]
            print(json.dumps({"text": text.split(), "label": tags}), file=file)


def _write_glue(folder: pathlib.Path, texts: list[str], rng: np.random.Generator) -> None:
    def write(name: str, header: str | None, row: Callable[[int], str]) -> None:
        for part in ("train", "dev"):
            lines = [] if header is None else [header]
            lines += [row(i) for i in range(20)]
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{part}.tsv").write_text("\n".join(lines) + "\n")

    def text() -> str:
        return str(rng.choice(texts))

    classes = ("entailment", "not_entailment")
    middle = "genre\tfilename\tyear\told_index\tsource1\tsource2"
    write("CoLA", None, lambda i: f"gj04\t{i % 2}\t\t{text()}")
    write(
        "RTE", "index\tsentence1\tsentence2\tlabel",
        lambda i: f"{i}\t{text()}\t{text()}\t{classes[i % 2]}",
    )  # fmt: skip
    write(
        "STS-B", f"index\t{middle}\tsentence1\tsentence2\tscore",
        lambda i: f"{i}\t{middle}\t{text()}\t{text()}\t{i % 6}",
    )  # fmt: skip
    for name, header in (
        ("CoLA", "index\tsentence"),
        ("RTE", "index\tsentence1\tsentence2"),
        ("STS-B", f"index\t{middle}\tsentence1\tsentence2"),
    ):
        columns = header.count("\t")
        rows = ["\t".join([str(i), *(text() for _ in range(columns))]) for i in range(5)]
        (folder / name / "test.tsv").write_text("\n".join([header, *rows]) + "\n")
