"""What train.py does: reads the flags, runs, and says what went wrong in one line."""

import pathlib
import re
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mosaicbert_jax.errors import UserError, explained


def main() -> None:
    """Trains as the command line says; see `explained` for what ends it otherwise."""
    with explained("interrupted; the same command goes on from the last checkpoint"):
        config, workdir = parse()
        # Imported from here on: a typo on the command line answers at once.
        from mosaicbert_jax.training import hosts

        hosts.join()
        what_next = run(config, pathlib.Path(workdir))
        if hosts.is_first():
            print(f"Done. {what_next}", flush=True)


def run(config: ConfigDict, workdir: pathlib.Path) -> str:
    """Pretrains or finetunes, as the config is for; returns what to do next."""
    # Imported here: a typo on the command line answers at once, and pretraining needs no metrics.
    if "task" in config:
        from mosaicbert_jax.finetuning.finetuning import finetune

        finetune(config, workdir)
        return f"Try: python -m mosaicbert_jax predict {workdir} FILE"
    if "tasks" in config:
        from mosaicbert_jax.finetuning.suite import run_suites

        run_suites(config, workdir)
        return f"The scores are in {workdir}/results.json."
    if "variants" in config:
        benchmark = "ablation" if "numerics" in config else "pareto"
        raise UserError(
            f"this config is for several runs: give it to `python -m benchmarks.{benchmark}`"
        )
    from mosaicbert_jax.training.loop import train
    from mosaicbert_jax.training.pretraining import Pretraining

    train(Pretraining.prepare(config, workdir))
    return f"Try: python -m mosaicbert_jax fill-mask {workdir} 'The [MASK] of the union.'"


def parse() -> tuple[ConfigDict, str]:
    """The config with its overrides, and the workdir, from sys.argv.

    Raises:
      UserError: see `read`; or there is no workdir.
    """
    config, workdir, rest = read(sys.argv)
    if config is None or workdir is None or rest:
        extra = f"; {rest} is not understood" if rest else ""
        raise UserError(f"usage: train.py --config=configs/NAME.py --workdir=DIR{extra}")
    return config, workdir


def read(words: list[str]) -> tuple[ConfigDict | None, str | None, list[str]]:
    """The config with its overrides, the workdir, and what else a command line has.

    Args:
      words: the command line; the first is the program.

    Raises:
      UserError: an unknown flag or key (names the nearest), a value of another type, or a config
        file that is not there.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "a file of configs/; override a value with --config.KEY=VALUE",
        flag_values=values,
    )
    flags.DEFINE_string(
        "workdir", None, "the run's folder: made, or gone on with", flag_values=values
    )
    command_line, sys.argv = sys.argv, words  # config_flags reads the overrides there
    try:
        rest = values(words)[1:]
        config = values.config
        if config is not None and not isinstance(config, ConfigDict):
            config.seed  # noqa: B018  a config file that failed to load raises what went wrong
    except flags.Error as error:
        raise UserError(_without_traceback(str(error))) from error
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:  # whatever the config file or an override of it raises
        raise UserError(_explain(error)) from error
    finally:
        sys.argv = command_line
    _refuse_whole_groups(words, config)
    return config, values.workdir, rest


def _refuse_whole_groups(words: list[str], config: ConfigDict | None) -> None:
    """Raises UserError for an override that takes the place of a group of keys."""
    for word in words:
        match = re.match(r"--config\.([\w.]+)=", word)
        if match and config is not None:
            value: Any = config
            for name in match[1].split("."):
                value = value.get(name) if isinstance(value, ConfigDict) else None
            if isinstance(value, ConfigDict | dict):
                raise UserError(f"{match[0]}: this is a group; set its keys one by one")


def _without_traceback(text: str) -> str:
    """One line of an error of a config file, with the place in it that the traceback names last."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        return text
    places = re.findall(r'File "([^"]+)", line (\d+)', text)
    place = f"{':'.join(places[-1])}: " if places else ""
    return place + lines[-1].strip()


def _explain(error: BaseException) -> str:
    """One line of an error whose text may be quoted and broken by the libraries it came through."""
    text = str(error)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]  # a KeyError's text is a representation
    text = " ".join(text.replace("\\n", " ").replace("\\", "").split())
    if isinstance(error, AttributeError | KeyError) and " object " not in text:
        return f"there is no config key {text}; the keys stand in training/configuration.py"
    return text or type(error).__name__
