"""Writes the page of all config keys from the comments in the code that defines them.

Command: python -m docs.config_reference docs/config.md
The comment behind a key, or directly above it, is its meaning; a key without one is an error.
"""

import ast
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from mosaicbert_jax import BertConfig
from mosaicbert_jax.finetuning import configuration as finetuning
from mosaicbert_jax.pretraining import configuration as pretraining
from mosaicbert_jax.training import configuration as shared
from mosaicbert_jax.training import recovery

_HEAD = """# Config keys

Every key, with its default and meaning, made from the comments in the code by
`python -m docs.config_reference docs/config.md`.

Set a key on the command line with `--config.KEY=VALUE`, as in `--config.train.duration=2h`, or in a
config file of your own: a Python file with a function `get_config()`, such as those in `configs/`.
A misspelled key is an error that names the nearest one. `None` means not set.

**Durations** are a number and a unit: `70000ba` steps, `286720000sp` sequences, `30e9tok` real
tokens, `3ep` epochs, `90s`, `45m` or `1.13h` of training time, `20usd` dollars (which needs
`train.price_per_gpu_hour`).
"""
# The sources of each kind of config: a group whose function is its own, or "" for the tree itself.
_SHARED = {
    "optimizer": (shared, "optimizer_settings"),
    "mesh": (shared, "mesh_settings"),
    "log": (shared, "log_settings"),
    "recovery": (recovery, "recovery_settings"),
}
_KINDS = {
    "Pretraining": (lambda: pretraining.pretraining(BertConfig()), pretraining, "pretraining"),
    "Finetuning": (finetuning.finetuning, finetuning, "finetuning"),
    "GLUE": (finetuning.glue, finetuning, "glue"),
}


def comments(source: str) -> dict[int, str]:
    """The comment on each line, by the line's number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def meanings(source: str, function: str) -> dict[str, str]:
    """The comment of each key in the dict that a function makes, by dotted key; "" without one."""
    said, lines = comments(source), source.splitlines()
    tree = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    found: dict[str, str] = {}

    def visit(node: ast.Dict, prefix: str) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if not isinstance(key, ast.Constant):
                continue
            name = f"{prefix}{key.value}"
            if isinstance(value, ast.Dict):
                visit(value, f"{name}.")
                if value.lineno != value.end_lineno:
                    continue
            above, line = [], key.lineno - 1
            while lines[line - 1].lstrip().startswith("#"):
                above.insert(0, said[line])
                line -= 1
            behind = said.get(value.end_lineno or key.lineno, "")
            found[name] = " ".join([*above, behind] if behind else above)

    dicts = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    visit(max(dicts, key=lambda node: len(ast.unparse(node))), "")
    return found


def _model_meanings() -> dict[str, str]:
    """Of BertConfig's fields, from its docstring."""
    text = (BertConfig.__doc__ or "").partition("Attributes:")[2]
    found = re.findall(r"^      (\w+): (.*(?:\n {8}.*)*)", text, re.M)
    return {f"model.{name}": " ".join(said.split()) for name, said in found}


def _all_meanings(module: Any, function: str) -> dict[str, str]:
    def of(module: Any, function: str) -> dict[str, str]:
        return meanings(pathlib.Path(module.__file__).read_text(), function)

    found = _model_meanings() | of(module, function)
    for group, (where, name) in _SHARED.items():
        found |= {f"{group}.{key}": said for key, said in of(where, name).items()}
    if function == "glue":  # groups that it takes over from finetuning
        found = of(finetuning, "finetuning") | found
        found |= {f"recipes.TASK.{k}": said for k, said in of(finetuning, "_recipe").items()}
    return found


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below a config with its value, by its path with dots."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def table(config: ConfigDict, known: dict[str, str]) -> str:
    """A row for each key.

    Raises:
      ValueError: a key without a meaning.
    """
    rows, missing = [], []
    for key, value in leaves(config):
        is_recipe = key.startswith("recipes.")
        said = known.get(f"recipes.TASK.{key.rpartition('.')[2]}" if is_recipe else key, "")
        if not said:
            missing.append(key)
        if is_recipe:
            continue  # they have a table of their own
        said = (said[:1].upper() + said[1:]).removesuffix(".")
        rows.append(f"| `{key}` | `{value!r}` | {said.replace('|', '/')} |")
    if missing:
        raise ValueError(f"no comment says what these keys mean: {', '.join(missing)}")
    return "\n".join(["| key | default | meaning |", "| --- | --- | --- |", *rows])


def _recipes(config: ConfigDict, known: dict[str, str]) -> str:
    names = list(next(iter(config.recipes.values())))
    rows = [
        f"| `{task}` | {' | '.join(f'`{recipe[name]!r}`' for name in names)} |"
        for task, recipe in config.recipes.items()
    ]
    said = [f"- `recipes.TASK.{name}`: {known[f'recipes.TASK.{name}']}" for name in names]
    head = [f"| task | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    return "\n".join([*said, "", *head, *rows])


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for title, (make, module, function) in _KINDS.items():
        config, known = make(), _all_meanings(module, function)
        parts.append(f"## {title}\n\n{table(config, known)}\n")
        if "recipes" in config:
            parts.append(f"The recipe of each task:\n\n{_recipes(config, known)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_text(page(), encoding="utf-8")
