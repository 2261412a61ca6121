"""Writes the page of one run or of several, or of GLUE suites."""

import datetime
import pathlib
from collections.abc import Sequence

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import write_atomically
from mosaicbert_jax.reporting.charts import MOST_RUNS
from mosaicbert_jax.reporting.history import History
from mosaicbert_jax.reporting.page import page
from mosaicbert_jax.reporting.suites import Suite, is_suite


def report(folders: Sequence[pathlib.Path], output: pathlib.Path) -> str:
    """Writes the page, replacing an old one; returns a line for the terminal.

    Raises:
      UserError: a folder is neither a run nor a suite, or is given twice; there are too many runs
        to tell apart; or the output's name does not end in .html.
    """
    if output.suffix != ".html":
        raise UserError(f"--output {output} must end in .html")
    runs, suites = [], []
    for folder, name in zip(folders, _names(folders), strict=True):
        if is_suite(folder):
            suites.append(Suite.read(folder, name))
        else:
            runs.append(History.read(folder, name))
    if len(runs) > MOST_RUNS:
        raise UserError(f"{len(runs)} runs are too many for a chart; give at most {MOST_RUNS}")
    html = page(runs, suites, datetime.datetime.now(datetime.UTC))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, html)
    return f"Wrote {output} ({len(html) / 1e3:,.0f} kB). Open it in a browser."


def _names(folders: Sequence[pathlib.Path]) -> list[str]:
    """The shortest ends of the paths that are all different."""
    paths = [folder.resolve() for folder in folders]
    twice = next((f for f, p in zip(folders, paths, strict=True) if paths.count(p) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice")
    for count in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
