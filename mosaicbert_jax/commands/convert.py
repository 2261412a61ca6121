"""Converts a run to a Hugging Face folder, or such a folder to a workdir."""

import argparse

from mosaicbert_jax.buckets import local_copy, place, uploaded
from mosaicbert_jax.errors import UserError

HELP = "to PyTorch and Hugging Face, and from there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "source", type=place, metavar="WORKDIR_OR_FOLDER",
        help="a run, which becomes a Hugging Face folder; or such a folder, which becomes a "
        "workdir for --config.init_from",
    )  # fmt: skip
    parser.add_argument("--output", type=place, required=True, metavar="DIR", help="is made")
    parser.add_argument("--step", type=int, help="of a run's checkpoint; the default is its last")
    parser.add_argument("--tokenizer", type=place, help="for a Hugging Face folder that has none")
    parser.add_argument(
        "--renew-head", action="store_true", help="of a Hugging Face folder: take the encoder alone"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from mosaicbert_jax.conversion import export_run, import_folder
    from mosaicbert_jax.storage.workdir import CONFIG_FILE, is_run
    from mosaicbert_jax.storage.working_copy import read_copy

    output = arguments.output
    source = read_copy(arguments.source, arguments.step)
    if is_run(source):
        if arguments.tokenizer or arguments.renew_head:
            raise UserError(
                f"{arguments.source} is a run, which has its tokenizer and its head: --tokenizer "
                "and --renew-head are for Hugging Face folders"
            )
        with uploaded(output, last=CONFIG_FILE) as folder:
            export_run(source, folder, arguments.step)
        print(f"{output} is a Hugging Face folder; its README.md says how to load it.")
        return
    if arguments.step is not None:
        raise UserError(f"--step is for runs, and {arguments.source} has no checkpoints")
    renew = ("head",) if arguments.renew_head else ()
    tokenizer = None if arguments.tokenizer is None else local_copy(arguments.tokenizer)
    with uploaded(output, last=CONFIG_FILE) as folder:
        import_folder(source, folder, tokenizer=tokenizer, renew=renew)
    print(f"{output} is a workdir; train from it with --config.init_from={output}")
