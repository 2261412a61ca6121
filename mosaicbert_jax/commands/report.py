"""Writes curves and figures of runs as one HTML page."""

import argparse
import pathlib

HELP = "curves and figures of runs, as one HTML page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "workdirs", type=pathlib.Path, nargs="+", metavar="WORKDIR",
        help="of a run, which may be in progress, or of a GLUE suite. Several runs share "
        "their charts",
    )  # fmt: skip
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="FILE.html")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from mosaicbert_jax.reporting.writing import report

    print(report(arguments.workdirs, arguments.output))
