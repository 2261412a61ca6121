"""Training curves as SVG that takes its colors and its font from the page around it."""

import dataclasses
import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mosaicbert_jax.reporting.formatting import text
from mosaicbert_jax.reporting.history import History, numbers
from mosaicbert_jax.training.metrics import FINISHED, SAVING, STARTED

COLORS = 8  # further runs repeat them, dashed, and then dotted
MOST_RUNS = 3 * COLORS
MOST_CIRCLES = 50  # evaluations drawn of a run
SPAN = 0.1  # of the moving average: a share of the rows so far
_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)))
_DASHES, _DOTS = (0, (3, 3)), (0, (1, 2))
_POINTS, _ALL_POINTS = 200, 2000  # of a curve, of a chart
_INCHES = (5.6, 3.0)
_FONT = 9.5
_NICE = (1, 2, 2.5, 5, 10)  # between ticks
# Placeholders for the page's own colors.
_INK, _GRID, _PAPER = "#010101", "#020202", "#030303"


@dataclasses.dataclass(frozen=True)
class Chart:
    """What is drawn.

    Attributes:
      key: of the training rows, and with eval_ before it of the evaluations.
      axes: choices for the horizontal axis: ("tokens" or "seconds", "linear" or "log").
      is_share: whether values are shown in percent.
      from_zero: whether the vertical axis begins at 0.
      is_noisy: whether a moving average is drawn over the rows.
    """

    key: str
    title: str
    axes: tuple[tuple[str, str], ...]
    is_share: bool = False
    from_zero: bool = True
    is_noisy: bool = True

    def shown(self, value: float) -> str:
        """A value of the vertical axis as text."""
        rounded = float(f"{100 * value if self.is_share else value:.4g}")
        return f"{rounded:,.10g}{'%' if self.is_share else ''}"


_TOKENS, _SECONDS = (("tokens", "linear"),), (("seconds", "linear"),)
_ALL = (*_TOKENS, ("tokens", "log"), *_SECONDS, ("seconds", "log"))
_CHARTS = (
    Chart("loss", "Loss", _ALL, from_zero=False),
    Chart("masked_accuracy", "Masked accuracy", _ALL, is_share=True),
    Chart("accuracy", "Accuracy", _ALL, is_share=True),
    Chart("mean_absolute_error", "Mean absolute error", _ALL),
    Chart("learning_rate", "Learning rate", _TOKENS, is_noisy=False),
    Chart("grad_norm", "Gradient norm", _TOKENS),
    Chart("tokens_per_second", "Real tokens per second", _SECONDS),
    Chart("mfu", "MFU", _SECONDS, is_share=True),
    Chart("packing_efficiency", "Packing efficiency", _SECONDS, is_share=True),
    Chart("data_wait_fraction", "Time waiting for data", _SECONDS, is_share=True),
)


def charts_of(histories: Sequence[History]) -> list[Chart]:
    """The charts that there are rows for, in the page's order."""
    there = {key for history in histories for row in history.training for key in row}
    return [chart for chart in _CHARTS if chart.key in there]


@dataclasses.dataclass(frozen=True)
class Curve:
    """K points of a curve, each for one or more rows of metrics.jsonl.

    Attributes:
      last_K: index of the last row of each point.
      y_K: the moving average at that row, or its value; NaN if a row of the point has no value.
      low_K, high_K: the lowest and highest value of the point's rows.
    """

    last_K: Int[np.ndarray, "K"]
    y_K: Float[np.ndarray, "K"]
    low_K: Float[np.ndarray, "K"]
    high_K: Float[np.ndarray, "K"]


def curves_of(chart: Chart, histories: Sequence[History]) -> list[Curve]:
    """A curve of each run; the rows of a point are the same in all charts."""
    points = min(_POINTS, _ALL_POINTS // len(histories))
    curves = []
    for history in histories:
        y_R = history.column(chart.key)
        starts_K = _starts(len(y_R), points)
        ends_K = np.append(starts_K, len(y_R))[1:]
        low_K, high_K = np.full((2, len(starts_K)), np.nan)
        if len(starts_K):
            low_K, high_K = (f.reduceat(y_R, starts_K) for f in (np.minimum, np.maximum))
        drawn_R = moving_average(y_R) if chart.is_noisy else y_R
        y_K = np.where(np.isnan(high_K), np.nan, drawn_R[ends_K - 1])
        curves.append(Curve(ends_K - 1, y_K, low_K, high_K))
    return curves


def _starts(rows: int, points: int) -> Int[np.ndarray, "K"]:
    """The first row of each point; a third of them are evenly spaced on a logarithmic axis."""
    if rows <= points:
        return np.arange(rows)
    logarithmic = np.geomspace(1, rows, points // 3, endpoint=False) - 1
    linear = np.linspace(0, rows, points - points // 3, endpoint=False)
    return np.unique(np.append(logarithmic, linear).astype(int))


def moving_average(y_R: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
    """An exponential moving average whose span is SPAN of the rows so far; NaN where y is."""
    found, mean, count = np.full(len(y_R), np.nan), 0.0, 0
    for index, y in enumerate(y_R.tolist()):
        if np.isfinite(y):
            count += 1
            mean += 2 / (max(SPAN * count, 1.0) + 1) * (y - mean)
            found[index] = mean
    return found


def draw(
    chart: Chart, histories: Sequence[History], curves: Sequence[Curve], over: str, scale: str
) -> str:
    """An SVG element; the same bytes for the same input.

    Args:
      curves: see `curves_of`.
      over, scale: one of the chart's `axes`.
    """
    figure = Figure(figsize=_INCHES, layout="constrained")
    axis = figure.subplots()
    size, unit = _unit(over, histories)
    axis.set_xscale(scale)
    seen, ends = [0.0] if chart.from_zero else [], []
    runs = list(enumerate(zip(histories, curves, strict=True)))
    for number, (history, curve) in runs:
        _draw_curve(axis, chart, curve, history.column(over)[curve.last_K] / size, number)
        seen += _draw_evaluations(axis, chart, history, over, size, number)
        known = curve.y_K[np.isfinite(curve.y_K)]
        if len(known):
            seen += [*known, *np.nanpercentile([curve.low_K, curve.high_K], (2, 98))]
            ends.append(f"{history.name} {chart.shown(known[0])} to {chart.shown(known[-1])}")
    _limit(axis, seen)
    for number, (history, _) in runs:
        _draw_events(axis, history, over, size, number)
    if len(histories) == 1 and chart.key == "masked_accuracy":
        commonest = numbers(histories[0].evaluations, "eval_commonest_accuracy")
        for value in commonest[np.isfinite(commonest)][-1:]:
            axis.axhline(value, color=_INK, linewidth=0.9, linestyle=_DOTS)
    _dress(axis, chart, unit)
    svg = _svg(figure, f"{chart.key}-{over}-{scale}")
    # With the label for screen readers, what the page's script finds the nearest values by.
    (low, high), box = axis.get_xlim(), axis.get_position()
    label = f"{chart.title} over {unit}; first and last value: {'; '.join(ends)}"
    attributes = (
        f'role="img" aria-label="{text(label)}" class="{over} {scale}" data-key="{chart.key}" '
        f'data-over="{over}" data-size="{size:g}" data-unit="{unit}" '
        f'data-axis="[{box.x0:.4f}, {box.x1:.4f}, {low:.6g}, {high:.6g}]"'
    )
    return svg.replace("<svg ", f"<svg {attributes} ", 1)


def _unit(over: str, histories: Sequence[History]) -> tuple[float, str]:
    """What the horizontal axis is divided by, and its name."""
    largest = max((history.last(over) or 0.0 for history in histories), default=0.0)
    if over == "tokens":
        units = ((1e9, 1e9, "billion tokens"), (1e6, 1e6, "million tokens"), (0, 1.0, "tokens"))
    else:
        units = ((7200, 3600.0, "hours"), (120, 60.0, "minutes"), (0, 1.0, "seconds"))
    return next((size, name) for least, size, name in units if largest >= least)


def _style(number: int) -> dict[str, str]:
    return {"color": f"#0001{number % COLORS:02x}", "gid": f"run{number}"}


def _draw_curve(
    axis: Axes, chart: Chart, curve: Curve, x_K: Float[np.ndarray, "K"], number: int
) -> None:
    """The rows faint, the average strong, a dot where a point has no neighbor."""
    style = _style(number)
    if chart.is_noisy:
        axis.fill_between(x_K, curve.low_K, curve.high_K, alpha=0.35, linewidth=1, **style)
    line = _STYLES[number // COLORS]
    axis.plot(x_K, curve.y_K, linewidth=1.6, linestyle=line, zorder=3, **style)
    known_K = np.isfinite(np.pad(curve.y_K, 1, constant_values=np.nan))
    alone_K = known_K[1:-1] & ~known_K[:-2] & ~known_K[2:]
    axis.plot(x_K[alone_K], curve.y_K[alone_K], ".", markersize=4, zorder=3, **style)


def _draw_evaluations(
    axis: Axes, chart: Chart, history: History, over: str, size: float, number: int
) -> list[float]:
    """Draws evenly chosen evaluations as circles; returns their heights."""
    key = history.held_out_key(chart.key)
    if key is None:
        return []
    count = len(history.evaluations)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_CIRCLES)).astype(int))
    rows = [history.evaluations[index] for index in chosen]
    x_K, y_K = history.at_steps(numbers(rows, "step"), over) / size, numbers(rows, key)
    circle = {"markersize": 5, "markeredgewidth": 1.5, "markerfacecolor": _PAPER}
    axis.plot(x_K, y_K, "o", zorder=4, clip_on=False, **circle, **_style(number))
    return y_K[np.isfinite(y_K)].tolist()


def _draw_events(axis: Axes, history: History, over: str, size: float, number: int) -> None:
    """Dashed lines; a sentence in the page says what these are."""
    steps = [e["step"] for e in history.events if e["event"] not in (STARTED, SAVING, FINISHED)]
    at = np.unique(np.round(history.at_steps(np.array(steps, float), over) / size, 3))
    at = at[np.isfinite(at)][-_POINTS:]
    x, y = np.repeat(at, 3), np.tile([0.0, 1.0, np.nan], len(at))  # one path is shorter than many
    style = {"linewidth": 0.8, "linestyle": _DASHES, "alpha": 0.7, **_style(number)}
    axis.plot(x, y, transform=axis.get_xaxis_transform(), **style)


def _limit(axis: Axes, heights: list[float]) -> None:
    """Shows the curves and nearly all rows; a single outlier is cut off."""
    low, high = min(heights, default=0.0), max(heights, default=1.0)
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    axis.set_ylim(low - (room if low else 0.0), high + room)
    axis.margins(x=0.02)
    first, last = axis.get_xlim()
    if axis.get_xscale() == "log" and last < 1.001 * first:  # a single row
        axis.set_xlim(first / 2, 2 * first)


def _dress(axis: Axes, chart: Chart, unit: str) -> None:
    """Ticks, grid and the name of the horizontal axis."""
    axis.xaxis.set_major_locator(MaxNLocator(7, steps=_NICE))
    if axis.get_xscale() == "log":
        low, high = axis.get_xlim()
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_locator(MaxNLocator(6, steps=_NICE))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: chart.shown(value)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.spines[:].set_visible(False)
    axis.grid(color=_GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", length=0, pad=5, labelsize=_FONT, labelcolor=_INK)
    axis.set_xlabel(unit, color=_INK, size=_FONT)


def _svg(figure: Figure, name: str) -> str:
    """As an element that can stand in a page beside others; `name` is unique in the page."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would hold for the whole page
    svg = re.sub(r'(<svg .*?)width="\S+" height="\S+" ', r"\1", svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for mark, color in ((_INK, "ink"), (_GRID, "grid"), (_PAPER, "paper")):
        svg = svg.replace(mark, f"var(--{color})")
    svg = re.sub(r"#0001(0\d)", lambda found: f"var(--run-{int(found[1])})", svg)
    svg = re.sub(r'id="(run\d+)"', r'class="run \1"', svg)  # of several elements, so no id
    svg = re.sub(r'<g id="[^"]*"/>\s*|(?<=<g) id="[^"]*"| transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub(r'\bd="[^"]*"', _rounded, re.sub(r"\n\s*", "\n", svg))


def _rounded(path: re.Match) -> str:
    """The points of a path to four digits, and on one line: less than half as long."""
    shorter = re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.4g}", path[0])
    return re.sub(r"\s+", " ", shorter)
