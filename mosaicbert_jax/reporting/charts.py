"""Curves of runs as SVG that takes its colours and its font from the page around it."""

import dataclasses
import io
import re
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mosaicbert_jax.reporting.history import History, numbers
from mosaicbert_jax.training.metrics import FINISHED, SAVING, STARTED

COLOURS = 8  # runs beyond have these again, dashed, and then dotted
MOST_RUNS = 3 * COLOURS
_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)))
_POINTS = 125  # of a curve
_ALL_POINTS = 2000  # of a chart
_INCHES = (5.6, 3.0)
_FONT = 9.5
_NICE = (1, 2, 2.5, 5, 10)  # between ticks
# Colours that stand for the page's own until the drawing is done.
_INK, _GRID, _PAPER = "#010101", "#020202", "#030303"


@dataclasses.dataclass(frozen=True)
class Chart:
    """What is drawn over what.

    Attributes:
      key: of the training rows, and with eval_ before it of the evaluations.
      over: "tokens" or "seconds".
      tick: a value of the upright axis as text.
      from_zero: whether that axis begins at 0.
    """

    key: str
    title: str
    over: str
    tick: Callable[[float], str]
    from_zero: bool = True

    @property
    def name(self) -> str:
        """Unique in a page."""
        return f"{self.key}-over-{self.over}"


@dataclasses.dataclass(frozen=True)
class Curve:
    """A curve of at most so many points.

    Attributes:
      rows: of metrics.jsonl in each point but the last, which may have fewer.
      x_K, y_K: means; y is NaN where a row had no value.
      low_K, high_K: the least and the largest of the rows.
    """

    rows: int
    x_K: Float[np.ndarray, "K"]
    y_K: Float[np.ndarray, "K"]
    low_K: Float[np.ndarray, "K"]
    high_K: Float[np.ndarray, "K"]


def thinned(x_R: Float[np.ndarray, "R"], y_R: Float[np.ndarray, "R"], points: int) -> Curve:
    """Means of as many rows in a row as leave at most `points`."""
    rows = max(1, -(-len(x_R) // points))
    starts = np.arange(0, len(x_R), rows)
    if not len(starts):
        return Curve(rows, x_R, y_R, y_R, y_R)
    sizes = np.diff(np.append(starts, len(x_R)))
    return Curve(
        rows,
        np.add.reduceat(x_R, starts) / sizes,
        np.add.reduceat(y_R, starts) / sizes,
        np.minimum.reduceat(y_R, starts),
        np.maximum.reduceat(y_R, starts),
    )


def points_of(runs: int) -> int:
    """How many a curve has in a chart of so many runs."""
    return max(_ALL_POINTS // max(runs, _ALL_POINTS // _POINTS), 1)


def charts_of(histories: Sequence[History]) -> list[Chart]:
    """Those that there are rows for, in the page's order."""
    plain, share = (lambda x: f"{x:,g}"), (lambda x: f"{100 * x:,g} %")
    both = ("tokens", "seconds")
    charts = [Chart("loss", "Loss", over, plain, from_zero=False) for over in both]
    for key, title, tick in (
        ("masked_accuracy", "Masked accuracy", share),
        ("accuracy", "Accuracy", share),
        ("mean_absolute_error", "Mean absolute error", plain),
    ):
        charts += [Chart(key, title, over, tick) for over in both]
    charts += [
        Chart("learning_rate", "Learning rate", "tokens", plain),
        Chart("grad_norm", "Gradient norm", "tokens", plain),
        Chart("tokens_per_second", "Real tokens a second", "seconds", plain),
        Chart("mfu", "MFU", "seconds", share),
        Chart("packing_efficiency", "Packing efficiency", "seconds", share),
        Chart("data_wait_fraction", "Time waited for data", "seconds", share),
    ]
    there = {key for history in histories for row in history.training for key in row}
    return [chart for chart in charts if chart.key in there]


def draw(chart: Chart, histories: Sequence[History]) -> str:
    """An SVG element; alike for the same input, byte for byte."""
    figure = Figure(figsize=_INCHES, layout="constrained")
    axis = figure.subplots()
    scale, axis_name = _scale(chart, histories)
    points = points_of(len(histories))
    seen = [0.0] if chart.from_zero else []
    for number, history in enumerate(histories):
        seen += _draw_run(axis, chart, history, number, scale, points)
    if len(histories) == 1 and chart.key == "masked_accuracy":
        commonest = numbers(histories[0].evaluations, "eval_commonest_accuracy")
        for value in commonest[np.isfinite(commonest)][-1:]:
            axis.axhline(value, color=_INK, linewidth=0.9, linestyle=(0, (1, 2)))
    _limit(axis, seen)
    axis.set_xlabel(axis_name)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: chart.tick(value)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_major_locator(MaxNLocator(7, steps=_NICE))
    axis.yaxis.set_major_locator(MaxNLocator(6, steps=_NICE))
    axis.spines[:].set_visible(False)
    axis.grid(color=_GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelsize=_FONT, labelcolor=_INK)
    axis.xaxis.label.set(color=_INK, size=_FONT)
    return _svg(figure, chart)


def _scale(chart: Chart, histories: Sequence[History]) -> tuple[float, str]:
    """What the lower axis is divided by, and its name."""
    largest = max((history.last(chart.over) or 0.0 for history in histories), default=0.0)
    if chart.over == "tokens":
        sizes = ((1e9, "billion real tokens"), (1e6, "million real tokens"))
        smallest = (1.0, "real tokens")
    else:
        sizes = ((2 * 3600.0, "hours of training"), (120.0, "minutes of training"))
        smallest = (1.0, "seconds of training")
    size, name = next((entry for entry in sizes if largest >= entry[0]), smallest)
    return {2 * 3600.0: 3600.0, 120.0: 60.0}.get(size, size), name


def _draw_run(
    axis: Axes, chart: Chart, history: History, number: int, scale: float, points: int
) -> list[float]:
    """Draws a run's curve, evaluations and events; returns the heights that must be seen."""
    colour = f"#0001{number % COLOURS:02x}"
    x_R, y_R = history.column(chart.over) / scale, history.column(chart.key)
    curve = thinned(x_R, y_R, points)
    style = _STYLES[number // COLOURS]
    axis.plot(curve.x_K, curve.y_K, color=colour, linewidth=1.5, linestyle=style, zorder=3)
    if curve.rows > 1:
        axis.fill_between(
            curve.x_K, curve.low_K, curve.high_K, color=colour, alpha=0.18, linewidth=0
        )
    known_K = np.isfinite(np.pad(curve.y_K, 1, constant_values=np.nan))
    alone_K = known_K[1:-1] & ~known_K[:-2] & ~known_K[2:]
    axis.plot(curve.x_K[alone_K], curve.y_K[alone_K], ".", color=colour, markersize=4, zorder=3)
    held_out_K = _draw_evaluations(axis, chart, history, colour, scale, points)
    steps = [e["step"] for e in history.events if e["event"] not in (STARTED, SAVING, FINISHED)]
    at = np.unique(np.round(history.at_steps(np.array(steps, float), chart.over) / scale, 3))
    # The sentence in the page says what these are.
    axis.vlines(
        at[np.isfinite(at)][-points:], 0, 1, transform=axis.get_xaxis_transform(), color=colour,
        linewidth=0.8, linestyle=(0, (3, 3)), alpha=0.7,
    )  # fmt: skip
    heights = np.concatenate([curve.y_K, held_out_K])
    return heights[np.isfinite(heights)].tolist()


def _draw_evaluations(
    axis: Axes, chart: Chart, history: History, colour: str, scale: float, points: int
) -> Float[np.ndarray, "K"]:
    """Draws at most `points` of the evaluations, evenly taken, as dots; returns their heights."""
    key = history.held_out_key(chart.key)
    if key is None:
        return np.empty(0)
    count = len(history.evaluations)
    chosen = np.unique(np.linspace(0, count - 1, min(count, points)).astype(int))
    rows = [history.evaluations[index] for index in chosen]
    x_K = history.at_steps(numbers(rows, "step"), chart.over) / scale
    y_K = numbers(rows, key)
    axis.plot(
        x_K, y_K, "o", color=colour, markersize=5, markeredgewidth=1.5,
        markerfacecolor=_PAPER, zorder=4, clip_on=False,
    )  # fmt: skip
    return y_K


def _limit(axis: Axes, heights: list[float]) -> None:
    """Shows all curves; a band beyond them, as of a single bad row, is cut off."""
    low, high = min(heights, default=0.0), max(heights, default=1.0)
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    axis.set_ylim(low - (room if low else 0.0), high + room)
    axis.margins(x=0.02)


def _svg(figure: Figure, chart: Chart) -> str:
    """As an element that can stand in a page beside others."""
    file = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": chart.name}
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(settings):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would hold for the whole page
    svg = re.sub(r'(<svg .*?)width="\S+" height="\S+" ', r"\1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{chart.title}" ', 1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for mark, name in ((_INK, "ink"), (_GRID, "grid"), (_PAPER, "paper")):
        svg = svg.replace(mark, f"var(--{name})")
    svg = re.sub(r"#0001(0\d)", lambda found: f"var(--run-{int(found[1])})", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{chart.name}-", svg)
    return re.sub(r'\bd="[^"]*"', _rounded, svg)


def _rounded(path: re.Match) -> str:
    """The points of a path to a hundredth, and on one line: half as long."""
    shorter = re.sub(r"(\.\d\d)\d+", r"\1", path[0])
    return re.sub(r"\s+", " ", shorter)
