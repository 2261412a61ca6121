"""Reads a config, its overrides and the workdir from a command line."""

import difflib
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mosaicbert_jax import buckets
from mosaicbert_jax.errors import UserError


def check_words(words: Sequence[str]) -> None:
    """Raises UserError for a URL on a command line that is none of a bucket's."""
    for word in words:
        found = re.match(r"(?:--[\w.-]+=)?['\"(\[\s]*([a-z][a-z0-9+.-]*://[^\s'\",]+)(.?)", word)
        if found is None or buckets.is_url(found[1]):
            continue
        if word.startswith("--") or " " not in word:  # a text may begin with a URL
            raise UserError(
                f"{found[1]}: paths are local, or in buckets (gs://, s3://); copy the files to one"
            )


def config_names() -> list[str]:
    """The configs that come with the package."""
    return sorted(path.stem for path in _folder().glob("[!_]*.py"))


def _folder() -> pathlib.Path:
    """The folder of the configs: inside an installed package, next to it in a clone."""
    package = pathlib.Path(__file__).parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def located(words: list[str]) -> list[str]:
    """A command line with the name of its config, if it has one, replaced by a path."""
    if "--config" in words[:-1]:
        at = words.index("--config")
        words = [*words[:at], f"--config={words[at + 1]}", *words[at + 2 :]]
    return [words[0], *map(_with_path, words[1:])]


def _with_path(word: str) -> str:
    match = re.fullmatch(r"--config=([^:]+)(:.*)?", word)
    if not match:
        return word
    if re.fullmatch(r"\w+", match[1]):
        path = _folder() / f"{match[1]}.py"
        if path.is_file():
            return f"--config={path}{match[2] or ''}"
        near = difflib.get_close_matches(match[1], config_names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"there is no config {match[1]!r}: {hint}give a file, or one of "
            f"{', '.join(config_names())}"
        )
    path = pathlib.Path(match[1])
    if not path.is_file():
        there = [other.name for other in path.parent.glob("*.py")]
        near = difflib.get_close_matches(path.name, there, n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"{path}: no such config file{hint}")
    return word


def read_flags(words: list[str]) -> tuple[ConfigDict | None, str | None, list[str]]:
    """The config with its overrides, the workdir, and what else a command line has.

    Args:
      words: the command line; the first is the program.

    Raises:
      UserError: an unknown flag or key (names the nearest), a value of another type, or a config
        file that is not there.
    """
    words = located(words)
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
        if plain := [word for word in words[1:] if word.startswith("--config=")]:
            _check_overrides(words, _plain_config([words[0], *plain]))
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
    return config, values.workdir, rest


def _plain_config(words: list[str]) -> ConfigDict | None:
    """The config as its file has it; None if it can't be loaded, which is explained later."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    command_line, sys.argv = sys.argv, words  # without overrides; see `read_flags`
    try:
        values(words)
        return values.config if isinstance(values.config, ConfigDict) else None
    except Exception:  # whatever the config file raises
        return None
    finally:
        sys.argv = command_line


_TYPES = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


def _check_overrides(words: list[str], config: ConfigDict | None) -> None:
    """Raises UserError for an override of the kind, of a group, or of an unknown key or type."""
    if config is None:
        return
    for word in words:
        match = re.match(r"--config\.([\w.]+)(?:=(.*))?$", word, re.DOTALL)
        if not match:
            continue
        if match[1] == "kind":
            raise UserError(f"{word}: the kind of a config can't be changed")
        *groups, name = match[1].split(".")
        group: Any = config
        for place, part in enumerate([*groups, name]):
            if not isinstance(group, ConfigDict) or part not in group:
                raise UserError(_unknown_key(".".join(groups[:place]), part, group))
            owner, group = group, group[part]
        if isinstance(group, ConfigDict | dict):
            raise UserError(f"--config.{match[1]}: this is a group; set its keys one by one")
        kind = owner.get_type(name)
        if match[2] is not None and not _fits(match[2], kind):
            raise UserError(f"{match[1]}={match[2]!r} must be {_TYPES[kind]}")


def _unknown_key(where: str, name: str, group: Any) -> str:
    """The message about a key that its group doesn't have."""
    prefix = f"{where}." if where else ""
    if not isinstance(group, ConfigDict):
        return f"there is no config key {prefix}{name}: {where} is a key itself"
    near = difflib.get_close_matches(name, list(group), n=1)
    keys = ", ".join(f"{prefix}{key}" for key in group)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {keys}"
    return f"there is no config key {prefix}{name}; {hint}"


def _fits(text: str, kind: type) -> bool:
    """Whether the text of an override can be a value of a type; None always can."""
    if text == "None":
        return True
    if kind is bool:
        return text.lower() in ("true", "false", "t", "f", "1", "0")
    if kind not in (int, float):
        return True
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _without_traceback(text: str) -> str:
    """One line for an error in a config file, with the last place that the traceback names
    there."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        return text
    places = re.findall(r'File "([^"]+)", line (\d+)', text)
    place = f"{':'.join(places[-1])}: " if places else ""
    return place + lines[-1].strip()


def _explain(error: BaseException) -> str:
    """One line for an error whose text libraries may have quoted and wrapped."""
    text = str(error)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]  # a KeyError's text is a representation
    text = " ".join(text.replace("\\n", " ").replace("\\", "").split())
    if isinstance(error, AttributeError | KeyError) and " object " not in text:
        return f"there is no config key {text}"
    return text or type(error).__name__
