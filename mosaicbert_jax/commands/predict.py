"""Labels texts with a finetuned model."""

import argparse
import pathlib

HELP = "label texts with a finetuned model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "model", type=pathlib.Path, help="workdir of a finetuning run, or a Hugging Face folder"
    )
    parser.add_argument(
        "file", type=pathlib.Path, nargs="?",
        help=".csv, .tsv or .jsonl with the columns of the training file; or a text a line (two "
        "with a tab between them, for pairs), as from standard input, which is read without a file",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from mosaicbert_jax.finetuning.classifier import Classifier
    from mosaicbert_jax.finetuning.examples import examples_to_label, examples_to_tag
    from mosaicbert_jax.storage.target import TOKEN_CLASSIFICATION

    classifier = Classifier(arguments.model)
    if classifier.target.kind == TOKEN_CLASSIFICATION:
        for examples in examples_to_tag(arguments.file, classifier.columns):
            for example, labels in zip(examples, classifier.tag(examples), strict=True):
                words = zip(example.words, labels, strict=False)  # a long text's end has none
                print(*(f"{word}\t{label}" for word, label in words), "", sep="\n", flush=True)
        return
    for examples in examples_to_label(arguments.file, classifier.columns):
        for example, found in zip(examples, classifier(examples), strict=True):
            text = " ".join(f"{example.first} {example.second or ''}".split())
            probability = [] if found.probability is None else [f"{found.probability:.4f}"]
            print(*[found.label, *probability, text], sep="\t", flush=True)
