"""The console script: mosaicbert COMMAND. What a command needs is imported when it runs."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from mosaicbert_jax import __version__, launch
from mosaicbert_jax.commands import train
from mosaicbert_jax.commands.config_line import check_words
from mosaicbert_jax.errors import explained

# A module each, with HELP, `add_arguments(parser)` and `run(arguments)`.
COMMANDS = ("prepare", "train", "fill-mask", "predict", "convert", "plan", "report")


class _Help(argparse.HelpFormatter):
    """Adds defaults to help texts, where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help or "", action.default
        if default in (None, False, argparse.SUPPRESS) or default == [] or "default" in text:
            return text
        return f"{text} (default: %(default)s)"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; see `explained` for how it exits otherwise."""
    words = list(sys.argv[1:] if argv is None else argv)
    with explained("interrupted"):
        check_words(words)
        if words[:1] == ["train"] and train.wants_help(words):
            print(train.help_text("mosaicbert train", words))
            sys.exit()
    parser = make_parser()
    arguments, rest = parser.parse_known_args(words)
    if hasattr(arguments, "overrides"):
        arguments.overrides, rest = rest, []
    # argparse stops at texts that stand behind an option, as in: fill-mask DIR --top 3 TEXT.
    if rest and (not hasattr(arguments, "text") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.text += rest
    launch.quiet_orbax()
    with explained("interrupted"):
        arguments.run(arguments)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands, with the modules that run them not yet imported."""
    parser = argparse.ArgumentParser(
        prog="mosaicbert", description="Pretrain, finetune and share BERTs of your own."
    )
    parser.add_argument("--version", action="version", version=f"mosaicbert {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"mosaicbert_jax.commands.{name.replace('-', '_')}")
        one = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=_Help
        )
        module.add_arguments(one)
        one.set_defaults(run=module.run)
    return parser
