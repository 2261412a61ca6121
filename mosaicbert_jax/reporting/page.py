"""The page: one self-contained HTML file on runs and suites."""

import datetime
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mosaicbert_jax.markdown import printable
from mosaicbert_jax.reporting.charts import (
    COLORS,
    MOST_CIRCLES,
    SPAN,
    Chart,
    Curve,
    charts_of,
    curves_of,
    draw,
)
from mosaicbert_jax.reporting.formatting import NOT_KNOWN, duration, large, number, share, text
from mosaicbert_jax.reporting.history import History, is_number
from mosaicbert_jax.reporting.overview import key_numbers, mfu_meaning, remarks, state_sentence
from mosaicbert_jax.reporting.script import SCRIPT, SCRIPT_HASH
from mosaicbert_jax.reporting.settings import all_settings, changed, setup
from mosaicbert_jax.reporting.style import STYLE
from mosaicbert_jax.reporting.suites import Suite

_BORDERS = ("solid", "dashed", "dotted")  # as the curves' styles


_CHOICES = """<div class="choices">
<fieldset><legend>Over</legend><label><input type="radio" name="over" id="over-tokens" checked>
tokens</label><label><input type="radio" name="over" id="over-seconds"> time</label></fieldset>
<fieldset><legend>Axis</legend><label><input type="radio" name="scale" id="scale-linear" checked>
linear</label><label><input type="radio" name="scale" id="scale-log"> logarithmic</label></fieldset>
</div>"""


def page(runs: Sequence[History], suites: Sequence[Suite], now: datetime.datetime) -> str:
    """HTML; the same bytes for the same input.

    Args:
      now: when it is written.
    """
    names = [*(run.name for run in runs), *(suite.name for suite in suites)]
    title = names[0] if len(names) == 1 else f"{len(names)} runs"
    state = f'<span class="state">{text(runs[0].state)}</span>' if names == [title] and runs else ""
    parts = [f"<h1>{text(title)}{state}</h1>"]
    parts.append(f'<p class="quiet">Written {now:%Y-%m-%d %H:%M:%S} UTC by mosaicbert_jax.</p>')
    parts += [_suite(suite, alone=len(names) == 1) for suite in suites]
    if len(runs) == 1:
        parts.append(_one(runs[0], now))
    elif runs:
        parts += [_side_by_side(runs, now), _differences(runs)]
    if any(run.training for run in runs):
        parts.append(_curves(runs))
    evaluations = [run.evaluations[-1] if run.evaluations else {} for run in runs]
    parts.append(_values("Last evaluation on held-out data", runs, evaluations))
    scores = [run.scores if isinstance(run.scores, dict) else {} for run in runs]
    parts.append(_values("Scores in results.json", runs, scores))
    parts += [_events(runs), _configs(runs)] if runs else []
    body = "\n".join(part for part in parts if part)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src '{SCRIPT_HASH}'"
    # The policy lets a browser fetch nothing and run no other script, whatever a name holds.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _one(run: History, now: datetime.datetime) -> str:
    """A bar for the progress, sentences, the setup and the key numbers."""
    done = run.last("share")
    width = f"{100 * min(max(done or 0.0, 0.0), 1.0):.1f}%"
    bar = "" if done is None else f'<div class="bar"><div style="width: {width}"></div></div>'
    on = f" On {run.devices}." if run.devices else ""
    lines = [f"{state_sentence(run, now)}{on}", *remarks(run)]
    sentences = "".join(f"<p>{text(line)}</p>" for line in lines)
    rows = [[label, text(value)] for label, value in setup(run).items()]
    rows.append(["settings (default)", _changed(run.record["config"])])
    tiles = "".join(
        f'<div class="tile"><small>{text(one.label)}</small><b>{text(one.value)}</b>'
        f"<small>{text(one.detail)}</small></div>"
        for one in key_numbers(run)
    )
    return f'{bar}{sentences}{_table((), rows, "setup")}<div class="tiles">{tiles}</div>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """A table of cells that are HTML already; `header` may be empty."""
    lines = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    if header:
        lines.insert(0, f"<tr>{''.join(f'<th>{cell}</th>' for cell in header)}</tr>")
    width = f"min-width: {7.5 * max(map(len, [header, *rows]))}rem"
    return f'<div class="wide"><table class="{kind}" style="{width}">{"".join(lines)}</table></div>'


def _swatch(number: int) -> str:
    color, border = f"var(--run-{number % COLORS})", _BORDERS[number // COLORS]
    style = f"border-color: {color}; border-top-style: {border}"
    return f'<span class="swatch" style="{style}"></span>'


def _headers(runs: Sequence[History]) -> list[str]:
    """The names of runs over their columns, in their colors if there are several."""
    if len(runs) == 1:
        return ["", text(runs[0].name)]
    return ["", *(f"{_swatch(index)}{text(run.name)}" for index, run in enumerate(runs))]


def _changed(config: dict[str, Any], *, is_suite: bool = False) -> str:
    """The settings that differ from the defaults, each with its default."""
    found = changed(config, is_suite=is_suite).items()
    told = [
        f"<code>{text(k)} = {text(v)} <i>({text(default)})</i></code>" for k, (v, default) in found
    ]
    return "\n".join(told) or "the defaults"


def _side_by_side(runs: Sequence[History], now: datetime.datetime) -> str:
    setups = [setup(run) for run in runs]
    rows = [[label, *(text(one[label]) for one in setups)] for label in setups[0]]
    rows.append(["state", *(text(run.state) for run in runs)])
    columns = [{one.label: one for one in key_numbers(run)} for run in runs]
    for label in dict.fromkeys(itertools.chain.from_iterable(columns)):
        cells = [column.get(label) for column in columns]
        shown = (f"{text(c.value)}<small>{text(c.detail)}</small>" if c else "" for c in cells)
        rows.append([text(label), *shown])
    told = "".join(
        f"<p>{text(run.name)}: {text(line)}</p>"
        for run in runs
        for line in [state_sentence(run, now), *remarks(run)]
    )
    return f"{_table(_headers(runs), rows, 'setup')}{told}"


def _differences(runs: Sequence[History]) -> str:
    """The settings that are not the defaults or not the same in all runs."""
    columns = [all_settings(run) for run in runs]
    defaults = {}
    for run in runs:
        defaults |= {key: default for key, (_, default) in changed(run.record["config"]).items()}
    rows = []
    for key in dict.fromkeys(itertools.chain.from_iterable(columns)):
        values = [column.get(key) for column in columns]
        twin = key.replace("model as built.", "model.")  # says the same, mostly
        is_told = twin != key and values == [column.get(twin) for column in columns]
        if key in defaults or (len(set(values)) > 1 and not is_told):
            shown = [NOT_KNOWN if value is None else value for value in values]
            rows.append([text(cell) for cell in (key, defaults.get(key, NOT_KNOWN), *shown)])
    header = ["", "default", *_headers(runs)[1:]]
    title = "Settings that differ from the defaults or between the runs"
    return f"<h2>{title}</h2>{_table(header, rows, 'config')}"


def _curves(runs: Sequence[History]) -> str:
    legend = ""
    if len(runs) > 1:
        entries = [
            f'<button type="button" aria-pressed="false">{_swatch(i)}{text(run.name)}</button>'
            for i, run in enumerate(runs)
        ]
        legend = f'<div class="legend">{"".join(entries)}</div>'
    drawn = {chart: curves_of(chart, runs) for chart in charts_of(runs)}
    figures = {True: "", False: ""}  # whether the axis can be chosen
    for chart, curves in drawn.items():
        svgs = "".join(draw(chart, runs, curves, over, scale) for over, scale in chart.axes)
        figures[len(chart.axes) > 1] += (
            f"<figure><figcaption>{chart.title}<span>{_caption(chart, runs)}</span></figcaption>"
            f"<div>{svgs}</div></figure>"
        )
    lines = "".join(f"<p><small>{text(line)}</small></p>" for line in _how_to_read(runs, drawn))
    return (
        f'<h2>Loss and accuracy</h2>{_CHOICES}{legend}<div class="charts chosen">{figures[True]}'
        f'</div><h2>Optimizer and speed</h2><div class="charts">{figures[False]}</div>{lines}'
        f'<script type="application/json" id="curves">{_data(runs, drawn)}</script>'
        f"<script>{SCRIPT}</script>"
    )


def _data(runs: Sequence[History], drawn: dict[Chart, list[Curve]]) -> str:
    """The points of all curves as JSON, for the script."""

    def values(array: np.ndarray) -> list[float | None]:
        return [float(f"{x:.4g}") if np.isfinite(x) else None for x in array]

    points = zip(runs, next(iter(drawn.values())), strict=True)  # the same rows in every chart
    found = {
        "names": [printable(run.name) for run in runs],
        "runs": [
            {over: values(run.column(over)[curve.last_K]) for over in ("tokens", "seconds")}
            for run, curve in points
        ],
        "charts": {
            chart.key: {"isShare": chart.is_share, "values": [values(c.y_K) for c in curves]}
            for chart, curves in drawn.items()
        },
    }
    return json.dumps(found, separators=(",", ":")).replace("<", "\\u003c")


def _caption(chart: Chart, runs: Sequence[History]) -> str:
    if chart.key == "mfu":
        meanings = {mfu_meaning(run) for run in runs if run.training}
        return text(meanings.pop()) if len(meanings) == 1 else "relative to the peaks named above"
    told = []
    if any(run.held_out_key(chart.key) for run in runs):
        told.append("circles: held-out")
    if chart.key == "masked_accuracy" and len(runs) == 1 and told:
        told.append("dotted: most common token")
    return "; ".join(told)


def _how_to_read(runs: Sequence[History], drawn: dict[Chart, list[Curve]]) -> list[str]:
    """What the lines mean."""
    lines = [
        "Strong line: exponential moving average of the training rows, with a span of "
        f"{SPAN:.0%} of the rows so far (learning rate: the value itself). Faint: the rows; "
        "single outliers are cut off.",
        "Time is training time, without pauses between stopping and resuming. Vertical dashed "
        "lines are events: stopped, resumed, or others in the table of events.",
    ]
    for run, curve in zip(runs, next(iter(drawn.values())), strict=True):
        whose = f"{run.name}: " if len(runs) > 1 else ""
        rows, points, evaluations = len(run.training), len(curve.last_K), len(run.evaluations)
        if rows > points:
            lines.append(
                f"{whose}{rows:,} rows are drawn as {points} points; the faint band is from the "
                "lowest to the highest row of each."
            )
        if evaluations > MOST_CIRCLES:
            lines.append(f"{whose}{MOST_CIRCLES} of {evaluations:,} evaluations are drawn.")
    return lines


def _values(title: str, runs: Sequence[History], columns: Sequence[dict[str, Any]]) -> str:
    """A table of what each run has by the same keys."""
    rows = []
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [column.get(key) for column in columns]
        shown = (number(value, 5) if is_number(value) else NOT_KNOWN for value in values)
        rows.append([text(key.removeprefix("eval_").replace("_", " ")), *shown])
    return f"<h2>{title}</h2>{_table(_headers(runs), rows)}" if rows else ""


def _events(runs: Sequence[History]) -> str:
    parts = ["<h2>Events</h2>"]
    for run in runs:
        if len(runs) > 1:
            parts.append(f"<h3>{text(run.name)}</h3>")
        groups = [list(group) for _, group in itertools.groupby(run.events, lambda e: e["event"])]
        rows = [_event(group) for group in groups]
        told = "<p>No events in metrics.jsonl.</p>"
        parts.append(_table(("event", "step", "UTC"), rows) if rows else told)
    return "".join(parts)


def _event(group: Sequence[dict[str, Any]]) -> list[str]:
    """A row for consecutive events of one kind, such as saves."""
    ends = group[:1] if len(group) == 1 else (group[0], group[-1])
    times = [
        str(event.get("time", NOT_KNOWN)).replace("T", " ").removesuffix("Z") for event in ends
    ]
    more = {k: v for k, v in group[-1].items() if k not in ("event", "step", "time")}
    detail = "".join(f"<small>{text(key)}: {text(value)}</small>" for key, value in more.items())
    count = f" × {len(group):,}" if len(group) > 1 else ""
    return [
        f"{text(group[0]['event'])}{count}{detail}",
        " to ".join(number(event["step"]) for event in ends),
        text(" to ".join(times)),
    ]


def _configs(runs: Sequence[History]) -> str:
    parts = ["<h2>Settings</h2>"]
    for run in runs:
        rows = [[text(key), text(value)] for key, value in all_settings(run).items()]
        parts.append(
            f"<details><summary>{text(run.name)}: {len(rows)} settings</summary>"
            f"{_table((), rows, 'config')}</details>"
        )
    return "".join(parts)


def _suite(suite: Suite, *, alone: bool) -> str:
    parts = [] if alone else [f"<h2>{text(suite.name)}</h2>"]
    if suite.settings:
        rows = [["settings (default)", _changed(suite.settings, is_suite=True)]]
        parts.append(_table((), rows, "setup"))
    if suite.steps:
        rows = [
            [
                number(row["step"]),
                large(row["tokens"]),
                duration(row["seconds"]),
                _percent(row["mean"]),
            ]
            for row in suite.steps
        ]
        header = ("pretraining step", "real tokens", "training time", "GLUE mean")
        parts.append(f"<h2>Score over pretraining</h2>{_table(header, rows)}")
    if suite.runs or not suite.parts:
        parts += [_suite_scores(suite), _suite_runs(suite)]
    return "".join(parts + [_suite(part, alone=False) for part in suite.parts])


def _suite_scores(suite: Suite) -> str:
    if not suite.tasks:
        return "<h3>Scores</h3><p>No task has finished.</p>"
    rows = []
    for task in suite.tasks:
        means = (f"{text(k.replace('_', ' '))} {_percent(v)}" for k, v in task.metrics.items())
        rows.append([text(task.name), f"{task.seeds}", _percent(task.score), ", ".join(means)])
    of = "all of GLUE" if suite.is_complete else f"{len(suite.tasks)} of GLUE's tasks"
    rows.append(["<b>mean</b>", "", f"<b>{_percent(suite.mean)}</b>", of])
    header = ("task", "seeds", "score, %", "means over the seeds, %")
    return f"<h3>Scores on the development sets</h3>{_table(header, rows)}"


def _percent(value: Any) -> str:
    return f"{100 * value:.2f}" if is_number(value) else NOT_KNOWN


def _suite_runs(suite: Suite) -> str:
    rows = []
    for run in suite.runs:
        state = "finished" if run.name in suite.done else text(run.state)
        step, done, seconds = (run.last(key) for key in ("step", "share", "seconds"))
        rows.append([text(run.name), state, number(step), share(done), duration(seconds)])
    if not rows:
        return "<h3>Runs</h3><p>No run has started.</p>"
    header = ("run", "state", "step", "progress", "training time")
    return f"<h3>Runs</h3>{_table(header, rows)}"
