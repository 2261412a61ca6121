"""Writes curves and figures of runs as one HTML page."""

import argparse

from mosaicbert_jax.buckets import place, uploaded

HELP = "curves and figures of runs, as one HTML page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "workdirs", type=place, nargs="+", metavar="WORKDIR",
        help="of a run, which may be in progress, or of a GLUE suite. Several runs share "
        "their charts",
    )  # fmt: skip
    parser.add_argument("--output", type=place, required=True, metavar="FILE.html")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from mosaicbert_jax.reporting.writing import report
    from mosaicbert_jax.storage.working_copy import read_copy

    folders = [read_copy(workdir, parts=()) for workdir in arguments.workdirs]
    with uploaded(arguments.output) as output:
        line = report(folders, output)
    print(line.replace(str(output), str(arguments.output)))
