"""Reads a config, its overrides and the workdir from a command line."""

import pathlib
import re
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mosaicbert_jax.errors import UserError


def config_names() -> list[str]:
    """The configs that come with the package."""
    return sorted(path.stem for path in _folder().glob("[!_]*.py"))


def _folder() -> pathlib.Path:
    """Of the configs: within the package where it was installed, beside it in a clone."""
    package = pathlib.Path(__file__).parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _located(words: list[str]) -> list[str]:
    """A command line with the path of the config that it names, if it names one."""
    if "--config" in words[:-1]:
        at = words.index("--config")
        words = [*words[:at], f"--config={words[at + 1]}", *words[at + 2 :]]
    return [words[0], *map(_with_path, words[1:])]


def _with_path(word: str) -> str:
    match = re.fullmatch(r"--config=(\w+)(:.*)?", word)
    if not match:
        return word
    path = _folder() / f"{match[1]}.py"
    if not path.is_file():
        raise UserError(
            f"there is no config {match[1]!r}: give a file, or one of {', '.join(config_names())}"
        )
    return f"--config={path}{match[2] or ''}"


def read_flags(words: list[str]) -> tuple[ConfigDict | None, str | None, list[str]]:
    """The config with its overrides, the workdir, and what else a command line has.

    Args:
      words: the command line; the first is the program.

    Raises:
      UserError: an unknown flag or key (names the nearest), a value of another type, or a config
        file that is not there.
    """
    words = _located(words)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "a file, or the name of a config; override a value with --config.KEY=VALUE",
        flag_values=values,
    )
    flags.DEFINE_string(
        "workdir", None, "the run's folder: made, or resumed from", flag_values=values
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
    _refuse_overrides(words, config)
    return config, values.workdir, rest


def _refuse_overrides(words: list[str], config: ConfigDict | None) -> None:
    """Raises UserError for an override of the kind, or of a whole group of keys."""
    for word in words:
        match = re.match(r"--config\.([\w.]+)=", word)
        if match and config is not None:
            if match[1] == "kind":
                raise UserError(f"{word}: the kind of a config can't be changed")
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
        return f"there is no config key {text}"
    return text or type(error).__name__
