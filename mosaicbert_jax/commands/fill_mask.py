"""Predicts the tokens behind [MASK]."""

import argparse
import os
import sys
from collections.abc import Iterator

from mosaicbert_jax.buckets import place
from mosaicbert_jax.errors import UserError

HELP = "predict what stands behind [MASK]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", type=place, help="workdir of a run, or a Hugging Face folder")
    parser.add_argument("text", nargs="*", help="with [MASK]; none: lines of standard input")
    parser.add_argument("--top", type=int, default=5, help="guesses a mask")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from mosaicbert_jax.prediction import MASK, FillMask

    if arguments.top < 1:
        raise UserError(f"--top {arguments.top}: ask for at least one guess")
    fill = FillMask.open(arguments.model)
    for number, text in enumerate(arguments.text, 1):
        if not _is_unicode(text):
            raise UserError(f"text {number} is not UTF-8: {os.fsencode(text)!r}")
    for text in arguments.text or _lines():
        print(text)
        for index, guesses in enumerate(fill(text, top=arguments.top)):
            if text.count(MASK) > 1:
                print(f"  mask {index + 1}")
            for guess in guesses:
                print(f"  {guess.probability:6.1%}  {guess.token}", flush=True)


def _lines() -> Iterator[str]:
    if sys.stdin.isatty():
        print("Type lines with [MASK]; Ctrl-D ends.", file=sys.stderr)
    from mosaicbert_jax.text.tables import lines_of_input

    return (line for _, line in lines_of_input())


def _is_unicode(text: str) -> bool:
    """Whether an argument was UTF-8; Python fills others with surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
