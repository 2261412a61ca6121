"""Writes the page of all config keys from the comments in the code that defines them.

Command: python -m docs.config_reference docs/config.md
A key without a comment is an error; see `config_help`.
"""

import pathlib
import sys

from ml_collections import ConfigDict

from mosaicbert_jax.commands.config_help import KINDS, all_meanings, leaves

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
TITLES = {"pretraining": "Pretraining", "finetuning": "Finetuning", "glue": "GLUE"}


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
    for kind, (make, _, _) in KINDS.items():
        config, known, title = make(), all_meanings(kind), TITLES[kind]
        parts.append(f"## {title}\n\n{table(config, known)}\n")
        if "recipes" in config:
            parts.append(f"The recipe of each task:\n\n{_recipes(config, known)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_text(page(), encoding="utf-8")
