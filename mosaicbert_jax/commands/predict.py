"""Labels texts with a finetuned model."""

import argparse
import sys

from mosaicbert_jax.buckets import local_copy, place

HELP = "label texts with a finetuned model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "model", type=place, help="workdir of a finetuning run, or a Hugging Face folder"
    )
    parser.add_argument(
        "file", type=place, nargs="?",
        help=".csv, .tsv or .jsonl with the columns of the training file; or a text a line (two "
        "with a tab between them, for pairs), as from standard input, which is read without a file",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from mosaicbert_jax.finetuning.classifier import Classifier

    classifier = Classifier(arguments.model)
    file = None if arguments.file is None else local_copy(arguments.file)
    for examples in classifier.read(file):
        for example, prediction in zip(examples, classifier(examples), strict=True):
            print(*classifier.kind.lines(example, prediction), sep="\n", flush=True)
    if classifier.cut:
        print(
            f"cut at {classifier.max_seq_len} tokens: {classifier.cut:,} of the texts; what stands "
            "behind was not read",
            file=sys.stderr,
        )
