"""Trains: pretraining, finetuning or GLUE, as the config says."""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Iterator

from ml_collections import ConfigDict

from mosaicbert_jax import launch
from mosaicbert_jax.buckets import Place, place
from mosaicbert_jax.commands import config_line
from mosaicbert_jax.errors import UserError, explained

HELP = "pretrain or finetune a model, as a config says"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    names = ", ".join(config_line.config_names())
    parser.add_argument(
        "--config",
        required=True,
        help=f"a file, or the name of a config that comes with the package ({names}); override "
        "a value with --config.KEY=VALUE",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="the run's folder, local or in a bucket (gs://, s3://): made, or resumed from",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="resume a run with another train.duration, optimizer or eval than before",
    )
    parser.set_defaults(overrides=[])


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    flags = [f"--config={arguments.config}", f"--workdir={arguments.workdir}"]
    flags += ["--extend"] if arguments.extend else []
    with _explained():
        _train(["mosaicbert train", *flags, *arguments.overrides])


def main() -> None:
    """Trains as train.py's command line says; see `explained` for how it exits otherwise."""
    launch.quiet_orbax()
    with _explained():
        config_line.check_words(sys.argv[1:])
        if wants_help(sys.argv[1:]):
            print(help_text("train.py", sys.argv))
        else:
            _train(sys.argv)


def wants_help(words: list[str]) -> bool:
    """Whether a command line asks for help."""
    return not {"-h", "--help"}.isdisjoint(words)


def help_text(program: str, words: list[str]) -> str:
    """The arguments, and the keys of the config that a command line names with their meanings."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    add_arguments(parser)
    return f"{parser.format_help()}\n{_keys_help(words)}"


def _keys_help(words: list[str]) -> str:
    named = [word for word in config_line.located(words) if word.startswith("--config")]
    if not any(word.startswith("--config=") for word in named):
        return "Name a config to see its keys: --config quickstart --help"
    config, _, _ = config_line.read_flags(["train", *named])
    from mosaicbert_jax.commands.config_help import listed

    return f"Keys of this config, with their values:\n\n{listed(config)}"


def _explained():
    return explained("interrupted; the same command resumes from the last checkpoint")


def _train(words: list[str]) -> None:
    extend = "--extend" in words
    config, workdir = parse([word for word in words if word != "--extend"])
    # Imported from here on: a typo on the command line answers at once.
    import jax

    from mosaicbert_jax import hosts

    hosts.join()
    if jax.default_backend() == "cpu":
        launch.keep_freed_memory()
    with _local(place(workdir)) as folder:
        what_next = train(config, folder, extend=extend)
    if hosts.is_first():
        print(f"Done. Try: {what_next.format(workdir=workdir)}", flush=True)


@contextlib.contextmanager
def _local(workdir: Place) -> Iterator[pathlib.Path]:
    """The folder to train in: the workdir, or a copy of one in a bucket, which follows it."""
    if isinstance(workdir, pathlib.Path):
        yield workdir
        return
    from mosaicbert_jax import hosts
    from mosaicbert_jax.storage.working_copy import local_folder, working_copy

    if not hosts.on_one_machine():
        raise UserError(
            f"{workdir}: a run on several machines needs a workdir that all of them see, on a "
            "shared file system"
        )
    with contextlib.ExitStack() as stack:
        hosts.on_first(lambda: stack.enter_context(working_copy(workdir)))
        yield local_folder(workdir)


def parse(words: list[str]) -> tuple[ConfigDict, str]:
    """The config with its overrides, and the workdir.

    Args:
      words: the command line; the first is the program.

    Raises:
      UserError: see `config_line.read_flags`; or there is no config or no workdir.
    """
    config, workdir, rest = config_line.read_flags(words)
    if config is None or workdir is None or rest:
        extra = f"; {' '.join(rest)} is not recognized" if rest else ""
        program = pathlib.Path(words[0]).name
        raise UserError(f"usage: {program} --config=CONFIG --workdir=DIR [--extend]{extra}")
    return config, workdir


def train(config: ConfigDict, workdir: pathlib.Path, *, extend: bool = False) -> str:
    """Runs what the config's `kind` names; returns what to do next, with {workdir} in it.

    Args:
      extend: see `loop.train`.

    Raises:
      UserError: an unknown kind, or as the run itself.
    """
    kind = config.get("kind")
    if kind not in _KINDS:
        raise UserError(f"kind={kind!r}: train takes configs of {', '.join(_KINDS)}")
    return _KINDS[kind](config, workdir, extend)


def _pretrain(config: ConfigDict, workdir: pathlib.Path, extend: bool) -> str:
    from mosaicbert_jax.pretraining.pretraining import Pretraining
    from mosaicbert_jax.training.loop import train

    train(Pretraining.prepare(config, workdir), extend=extend)
    return "mosaicbert fill-mask {workdir} 'The [MASK] of the union.'"


def _finetune(config: ConfigDict, workdir: pathlib.Path, extend: bool) -> str:
    from mosaicbert_jax.finetuning.finetuning import finetune

    finetune(config, workdir, extend=extend)
    return "mosaicbert predict {workdir} FILE"


def _glue(config: ConfigDict, workdir: pathlib.Path, extend: bool) -> str:
    if extend:
        raise UserError("--extend is for one run, not for GLUE's many")
    from mosaicbert_jax.finetuning.suite import run_suites

    run_suites(config, workdir)
    return "mosaicbert report {workdir} --output report.html"


# By the kind that a config names. Each imports what it needs alone.
_KINDS = {"pretraining": _pretrain, "finetuning": _finetune, "glue": _glue}
