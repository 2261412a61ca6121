"""What each key of a config means, read from the comments in the code that defines them.

The comment behind a key, or directly above it, is its meaning.
"""

import ast
import io
import pathlib
import re
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from mosaicbert_jax.finetuning import configuration as finetuning
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.pretraining import configuration as pretraining
from mosaicbert_jax.training import configuration as shared
from mosaicbert_jax.training import recovery

# The sources of each kind of config: a group whose function is its own, or "" for the tree itself.
_SHARED = {
    "optimizer": (shared, "optimizer_settings"),
    "mesh": (shared, "mesh_settings"),
    "log": (shared, "log_settings"),
    "recovery": (recovery, "recovery_settings"),
}
KINDS = {
    "pretraining": (lambda: pretraining.pretraining(BertConfig()), pretraining, "pretraining"),
    "finetuning": (finetuning.finetuning, finetuning, "finetuning"),
    "glue": (finetuning.glue, finetuning, "glue"),
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
            name = prefix + str(key.value)
            if isinstance(value, ast.BinOp):  # a group of others, with a key of its own
                value = value.right
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


def all_meanings(kind: str) -> dict[str, str]:
    """What each key of a kind of config means, by its path with dots."""
    _, module, function = KINDS[kind]

    def of(module: Any, function: str) -> dict[str, str]:
        return meanings(pathlib.Path(module.__file__).read_text(), function)

    found = _model_meanings()
    for group, (where, name) in _SHARED.items():
        found |= {f"{group}.{key}": said for key, said in of(where, name).items()}
    found |= of(module, function)
    if function == "glue":  # groups that it takes over from finetuning
        found = found | of(finetuning, "finetuning") | of(module, function)
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


def listed(config: ConfigDict) -> str:
    """Every key of a config with its value and meaning, for the terminal."""
    known, found = all_meanings(config.kind), []
    for key, value in leaves(config):
        is_recipe = key.startswith("recipes.")
        said = known.get(f"recipes.TASK.{key.rpartition('.')[2]}" if is_recipe else key, "")
        found.append(f"  --config.{key}={value}")
        found += textwrap.wrap(said, 88, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(found)
