"""The page: one HTML file that needs nothing else, from what was read of runs and suites."""

import datetime
import itertools
import json
from collections.abc import Sequence
from typing import Any

from mosaicbert_jax.reporting import figures
from mosaicbert_jax.reporting.charts import (
    COLOURS,
    Chart,
    charts_of,
    draw,
    points_of,
    thinned,
)
from mosaicbert_jax.reporting.figures import text
from mosaicbert_jax.reporting.history import History, is_number
from mosaicbert_jax.reporting.style import STYLE
from mosaicbert_jax.reporting.suites import Suite
from mosaicbert_jax.reporting.summary import (
    figures_of,
    mfu_meaning,
    remarks,
    state_sentence,
)

_BORDERS = ("solid", "dashed", "dotted")  # as the curves' styles


def page(runs: Sequence[History], suites: Sequence[Suite], now: datetime.datetime) -> str:
    """HTML; alike for the same input, byte for byte.

    Args:
      now: when it is written.
    """
    names = [one.name for one in (*runs, *suites)]
    title = names[0] if len(names) == 1 else f"{len(names)} runs"
    parts = [_title(title, runs, suites)]
    when = now.strftime("%Y-%m-%d %H:%M:%S")
    parts.append(f'<p class="quiet">Written {when} UTC by mosaicbert_jax.</p>')
    parts += [_suite(suite, alone=len(names) == 1, now=now) for suite in suites]
    if len(runs) == 1:
        parts += [_bar(runs[0]), _sentences(runs[0], now), _tiles(runs[0])]
    elif runs:
        parts += [_side_by_side(runs, now), _differences(runs)]
    if any(run.training for run in runs):
        parts.append(_curves(runs))
    parts += [_evaluations(runs), _scores(runs)]
    parts += [_events(runs), _configs(runs)] if runs else []
    body = "\n".join(part for part in parts if part)
    # The policy lets a browser fetch and run nothing, whatever a name in the page holds.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _title(title: str, runs: Sequence[History], suites: Sequence[Suite]) -> str:
    alone = len(runs) == 1 and not suites
    state = f'<span class="state">{text(runs[0].state)}</span>' if alone else ""
    return f"<h1>{text(title)}{state}</h1>"


def _bar(run: History) -> str:
    share = run.last("share")
    if share is None:
        return ""
    return f'<div class="bar"><div style="width: {100 * min(max(share, 0), 1):.1f}%"></div></div>'


def _sentences(run: History, now: datetime.datetime) -> str:
    on = f" On {run.devices}." if run.devices else ""
    lines = [f"{state_sentence(run, now)}{on}", *remarks(run)]
    return "".join(f"<p>{text(line)}</p>" for line in lines)


def _tiles(run: History) -> str:
    tiles = [
        f'<div class="tile"><small>{text(one.label)}</small><b>{text(one.value)}</b>'
        f"<small>{text(one.detail)}</small></div>"
        for one in figures_of(run)
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """A table of cells that are HTML already; `header` may be empty."""
    lines = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    if header:
        lines.insert(0, f"<tr>{''.join(f'<th>{cell}</th>' for cell in header)}</tr>")
    return f'<div class="wide"><table class="{kind}">{"".join(lines)}</table></div>'


def _swatch(number: int) -> str:
    colour, border = f"var(--run-{number % COLOURS})", _BORDERS[number // COLOURS]
    style = f"border-color: {colour}; border-top-style: {border}"
    return f'<span class="swatch" style="{style}"></span>'


def _headers(runs: Sequence[History]) -> list[str]:
    """The names of runs over their columns, in their colours if there are several."""
    if len(runs) == 1:
        return ["", text(runs[0].name)]
    return ["", *(f"{_swatch(index)}{text(run.name)}" for index, run in enumerate(runs))]


def _side_by_side(runs: Sequence[History], now: datetime.datetime) -> str:
    columns = [{one.label: one for one in figures_of(run)} for run in runs]
    labels = dict.fromkeys(itertools.chain.from_iterable(columns))
    rows = [["state", *(text(run.state) for run in runs)]]
    for label in labels:
        cells = [column.get(label) for column in columns]
        rows.append(
            [
                text(label),
                *(
                    f"{text(cell.value)}<small>{text(cell.detail)}</small>" if cell else ""
                    for cell in cells
                ),
            ]
        )
    told = "".join(
        f"<p>{text(run.name)}: {text(line)}</p>"
        for run in runs
        for line in [state_sentence(run, now), *remarks(run)]
    )
    return f"{_table(_headers(runs), rows)}{told}"


def settings(run: History) -> dict[str, str]:
    """What config.json holds, flat, each value as JSON."""
    found: dict[str, str] = {}

    def add(value: Any, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                add(inner, f"{key}.{name}" if key else str(name))
        else:
            found[key] = json.dumps(value, ensure_ascii=False)

    add(run.record["config"], "")
    for name, value in run.record.items():
        if name != "config":
            add(value, "model as built" if name == "model" else name)
    return found


def _differences(runs: Sequence[History]) -> str:
    """The keys in which the runs are not all alike."""
    columns = [settings(run) for run in runs]
    keys = dict.fromkeys(itertools.chain.from_iterable(columns))
    rows = []
    for key in keys:
        values = [column.get(key) for column in columns]
        if len(set(values)) > 1:
            shown = [figures.NOT_KNOWN if value is None else text(value) for value in values]
            rows.append([text(key), *shown])
    if not rows:
        return "<h2>Settings that differ</h2><p>None: the runs have the same settings.</p>"
    return f"<h2>Settings that differ</h2>{_table(_headers(runs), rows, 'config')}"


def _curves(runs: Sequence[History]) -> str:
    legend = ""
    if len(runs) > 1:
        entries = [f"<span>{_swatch(i)}{text(run.name)}</span>" for i, run in enumerate(runs)]
        legend = f'<div class="legend">{"".join(entries)}</div>'
    drawn = [
        f"<figure><figcaption>{chart.title}<span>{_caption(chart, runs)}</span></figcaption>"
        f"{draw(chart, runs)}</figure>"
        for chart in charts_of(runs)
    ]
    lines = "".join(f"<p><small>{text(line)}</small></p>" for line in _how_to_read(runs))
    return f'<h2>Curves</h2>{legend}<div class="charts">{"".join(drawn)}</div>{lines}'


def _caption(chart: Chart, runs: Sequence[History]) -> str:
    if chart.key == "mfu":
        meanings = {mfu_meaning(run) for run in runs if run.training}
        return text(meanings.pop()) if len(meanings) == 1 else "of the peak named above"
    told = []
    if any(run.held_out_key(chart.key) for run in runs):
        told.append("circles: held out")
    if chart.key == "masked_accuracy" and len(runs) == 1 and told:
        told.append("dotted: always the commonest token")
    return "; ".join(told)


def _how_to_read(runs: Sequence[History]) -> list[str]:
    """What the lines stand for, where it is not the rows themselves."""
    points = points_of(len(runs))
    lines = []
    for run in runs:
        rows = thinned(run.column("step"), run.column("step"), points).rows
        whose = f"{run.name}: " if len(runs) > 1 else ""
        if rows > 1:
            lines.append(
                f"{whose}{len(run.training):,} rows are drawn as means of {rows:,} rows a point; "
                "the band is the least and the largest of them, cut off where it leaves the chart."
            )
        if len(run.evaluations) > points:
            lines.append(f"{whose}{points:,} of {len(run.evaluations):,} evaluations are drawn.")
    lines.append(
        "Time is that of training, without the pauses of a run that was stopped and resumed. "
        "A vertical dashed line is an event: the run was stopped, resumed, or what the table says."
    )
    return lines


def _evaluations(runs: Sequence[History]) -> str:
    """The last one of each run."""
    columns = [run.evaluations[-1] if run.evaluations else {} for run in runs]
    if not any(columns):
        return ""
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [
        [text(key.removeprefix("eval_").replace("_", " ")), *(_value(c.get(key)) for c in columns)]
        for key in keys
    ]
    return f"<h2>Last evaluation, on what is held out</h2>{_table(_headers(runs), rows)}"


def _scores(runs: Sequence[History]) -> str:
    """Of finetuning runs that have come to their end."""
    columns = [run.scores if isinstance(run.scores, dict) else {} for run in runs]
    keys = dict.fromkeys(key for column in columns for key in column)
    if not keys:
        return ""
    rows = [
        [text(key.replace("_", " ")), *(_value(column.get(key)) for column in columns)]
        for key in keys
    ]
    return f"<h2>Scores of results.json</h2>{_table(_headers(runs), rows)}"


def _value(value: Any) -> str:
    return figures.number(value, 5) if is_number(value) else figures.NOT_KNOWN


def _events(runs: Sequence[History]) -> str:
    parts = ["<h2>Events</h2>"]
    for run in runs:
        if len(runs) > 1:
            parts.append(f"<h3>{text(run.name)}</h3>")
        groups = [list(group) for _, group in itertools.groupby(run.events, lambda e: e["event"])]
        rows = [_event(group) for group in groups]
        told = "<p>metrics.jsonl has none.</p>"
        parts.append(_table(("event", "step", "UTC"), rows) if rows else told)
    return "".join(parts)


def _event(group: Sequence[dict[str, Any]]) -> list[str]:
    """A row for all events of a kind that follow each other, such as the saves between others."""
    first, last = group[0], group[-1]

    def when(event: dict[str, Any]) -> str:
        return text(str(event.get("time", figures.NOT_KNOWN)).replace("T", " ").removesuffix("Z"))

    more = {
        key: value for key, value in last.items() if key not in ("event", "step", "time")
    }  # of an event of any kind
    detail = "".join(f"<small>{text(key)}: {text(value)}</small>" for key, value in more.items())
    if len(group) == 1:
        return [text(first["event"]) + detail, figures.number(first["step"]), when(first)]
    return [
        f"{text(first['event'])} × {len(group):,}{detail}",
        f"{figures.number(first['step'])} to {figures.number(last['step'])}",
        f"{when(first)} to {when(last)}",
    ]


def _configs(runs: Sequence[History]) -> str:
    parts = ["<h2>Settings</h2>"]
    for run in runs:
        rows = [[text(key), text(value)] for key, value in settings(run).items()]
        parts.append(
            f"<details><summary>{text(run.name)}: {len(rows)} settings</summary>"
            f"{_table((), rows, 'config')}</details>"
        )
    return "".join(parts)


def _suite(suite: Suite, *, alone: bool, now: datetime.datetime) -> str:
    parts = [] if alone else [f"<h2>{text(suite.name)}</h2>"]
    if suite.steps:
        rows = [
            [
                figures.number(row["step"]),
                figures.large(row["tokens"]),
                figures.time(row["seconds"]),
                _percent(row["mean"]),
            ]
            for row in suite.steps
        ]
        header = ("step of pretraining", "real tokens", "time of training", "GLUE mean")
        parts.append(f"<h2>Score over pretraining</h2>{_table(header, rows)}")
    if suite.runs or not suite.parts:
        parts += [_suite_scores(suite), _suite_runs(suite, now)]
    return "".join(parts + [_suite(part, alone=False, now=now) for part in suite.parts])


def _suite_scores(suite: Suite) -> str:
    if not suite.tasks:
        return "<h3>Scores</h3><p>No task is done yet.</p>"
    rows = [
        [
            text(task.name),
            f"{task.seeds}",
            _percent(task.score),
            ", ".join(
                f"{text(key.replace('_', ' '))} {_percent(value)}"
                for key, value in task.metrics.items()
            ),
        ]
        for task in suite.tasks
    ]
    of = "all of GLUE" if suite.is_complete else f"{len(suite.tasks)} of GLUE's tasks"
    rows.append(["<b>mean</b>", "", f"<b>{_percent(suite.mean)}</b>", of])
    header = ("task", "seeds", "score, %", "means over the seeds, %")
    return f"<h3>Scores on the development sets</h3>{_table(header, rows)}"


def _percent(value: Any) -> str:
    return f"{100 * value:.2f}" if is_number(value) else figures.NOT_KNOWN


def _suite_runs(suite: Suite, now: datetime.datetime) -> str:
    rows = [
        [
            text(run.name),
            "done" if run.name in suite.done else text(run.state),
            figures.number(run.last("step")),
            figures.share(run.last("share")),
            figures.time(run.last("seconds")),
        ]
        for run in suite.runs
    ]
    if not rows:
        return "<h3>Runs</h3><p>None has begun.</p>"
    header = ("run", "state", "step", "completed", "time of training")
    return f"<h3>Runs</h3>{_table(header, rows)}"
