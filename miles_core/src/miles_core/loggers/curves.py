"""Curves of metrics, for a terminal and as PNG."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Points ``(x, y)`` by the name of the curve. Points that are not finite are left out."""

COLOURS = ("#3465a4", "#e66100", "#2e8b57", "#a347ba", "#c01c28")
_ANSI = ("34", "33", "32", "35", "31")
_MARKS = "●▲■◆✚"
FEW = 30
"""Curves of up to this many points show each point."""
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLANK = 0x2800


def terminal_plot(
    series: Series,
    title: str,
    *,
    width: int = 78,
    height: int = 16,
    x_label: str = "rollout",
    colour: bool | None = None,
) -> str:
    """A plot in characters: lines of Braille dots, with marks where points are few.

    Args:
        width, height: of the whole and of the plotting area, in characters.
        colour: use ANSI colours; when standard output is a terminal if None.
    """
    curves = _finite(series)
    if colour is None:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if not curves:
        return f"{title}\n(no points)"
    x_ticks, y_ticks = _axes(curves, height)
    labels = [_number(y, y_ticks) for y in y_ticks]
    margin = max(len(label) for label in labels)
    canvas = _Canvas(max(10, width - margin - 2), max(4, height), (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    for number, points in enumerate(curves.values()):
        canvas.line(number, points)
    for number, points in enumerate(curves.values()):
        if len(points) <= FEW:
            canvas.marks(number, points)
    rows = dict(zip((canvas.row(y) for y in y_ticks), labels, strict=True))
    lines = [title.center(width).rstrip()]
    for row in range(canvas.height):
        label = rows.get(row)
        lines.append(f"{label or '':>{margin}} {'┤' if label else '│'}{canvas.text(row, colour)}")
    lines.append(f"{'':{margin}} └{''.join(_ruler(canvas, x_ticks))}")
    lines.append(f"{'':{margin}}  {_ruler_labels(canvas, x_ticks)}".rstrip())
    lines.append(f"{'':{margin}}  {x_label.center(canvas.width)}".rstrip())
    for number, (name, points) in enumerate(curves.items()):
        mark = _MARKS[number % len(_MARKS)] if len(points) <= FEW else "⠤⠒"
        lines.append(f"{'':{margin}}  {_paint(mark, number, colour)} {name}")
    return "\n".join(lines)


def png_plot(path: Path, series: Series, title: str, *, x_label: str = "rollout", y_label: str = "reward, accuracy") -> Path:
    """Write the curves as a PNG file and return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(_finite(series).items()):
        xs, ys = zip(*points, strict=True)
        colour = COLOURS[number % len(COLOURS)]
        if len(points) <= FEW:
            axes.plot(xs, ys, color=colour, label=name, marker="o", markersize=4.5, linewidth=1.8, zorder=3)
        else:
            axes.plot(xs, ys, color=colour, alpha=0.3, linewidth=1.0)
            axes.plot(xs, _smooth(ys), color=colour, label=f"{name}, smoothed", linewidth=2.0)
    axes.set_title(title, fontsize=12, pad=10)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    low, high = axes.get_ylim()
    if low >= -0.1 and high <= 1.1:
        axes.set_ylim(0.0, 1.02)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


class _Canvas:
    """Characters with 2 x 4 dots each; row 0 is the top one."""

    def __init__(self, width: int, height: int, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self.width, self.height = width, height
        self._x, self._y = x_range, y_range
        self._dots: dict[tuple[int, int], int] = {}
        self._owner: dict[tuple[int, int], int] = {}
        self._marks: dict[tuple[int, int], int] = {}

    def column(self, x: float) -> int:
        return self._dot_x(x) // 2

    def row(self, y: float) -> int:
        return self._dot_y(y) // 4

    def line(self, number: int, points: Sequence[tuple[float, float]]) -> None:
        """Join the points by dots."""
        places = [(self._dot_x(x), self._dot_y(y)) for x, y in points]
        for (x0, y0), (x1, y1) in zip(places, places[1:] or places, strict=False):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for step in range(steps + 1):
                x, y = round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)
                cell = (y // 4, x // 2)
                self._dots[cell] = self._dots.get(cell, 0) | _DOTS[y % 4][x % 2]
                self._owner[cell] = number

    def marks(self, number: int, points: Sequence[tuple[float, float]]) -> None:
        """Mark each point."""
        for x, y in points:
            self._marks[self.row(y), self.column(x)] = number

    def text(self, row: int, colour: bool) -> str:
        cells = []
        for column in range(self.width):
            cell = (row, column)
            if cell in self._marks:
                cells.append(_paint(_MARKS[self._marks[cell] % len(_MARKS)], self._marks[cell], colour))
            elif cell in self._dots:
                cells.append(_paint(chr(_BLANK + self._dots[cell]), self._owner[cell], colour))
            else:
                cells.append(" ")
        return "".join(cells).rstrip()

    def _dot_x(self, x: float) -> int:
        return round((x - self._x[0]) / (self._x[1] - self._x[0]) * (2 * self.width - 1))

    def _dot_y(self, y: float) -> int:
        return round((self._y[1] - y) / (self._y[1] - self._y[0]) * (4 * self.height - 1))


def _finite(series: Series) -> dict[str, list[tuple[float, float]]]:
    found = {name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()}
    return {name: points for name, points in found.items() if points}


def _axes(curves: Mapping[str, Sequence[tuple[float, float]]], height: int) -> tuple[list[float], list[float]]:
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    y_low, y_high = min(ys), max(ys)
    if y_low >= 0 and y_high <= 1:
        y_low, y_high = 0.0, 1.0
    whole = all(x == int(x) for x in xs)
    return _ticks(min(xs), max(xs), 6, 1.0 if whole else 0.0), _ticks(y_low, y_high, max(1, min(5, height // 2)))


def _ticks(low: float, high: float, count: int, least: float = 0.0) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, about ``count`` of them, at least ``least`` apart."""
    span = high - low or abs(low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * count >= span * (1 - 1e-9))
    step = max(step, least)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _number(value: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    if not math.isclose(round(step, places), step):
        places += 1
    return f"{value:.{places}f}" if abs(value) < 1e6 else f"{value:.2e}"


def _ruler(canvas: _Canvas, ticks: Sequence[float]) -> list[str]:
    ruler = ["─"] * canvas.width
    for tick in ticks:
        ruler[canvas.column(tick)] = "┬"
    return ruler


def _ruler_labels(canvas: _Canvas, ticks: Sequence[float]) -> str:
    line = [" "] * canvas.width
    end = -1
    for tick in ticks:
        label = _number(tick, ticks)
        start = min(max(0, canvas.column(tick) - len(label) // 2), canvas.width - len(label))
        if start > end:
            line[start : start + len(label)] = label
            end = start + len(label)
    return "".join(line)


def _smooth(values: Sequence[float]) -> list[float]:
    """Centred running mean over a tenth of the points."""
    reach = max(1, len(values) // 20)
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _paint(text: str, number: int, colour: bool) -> str:
    return f"\x1b[{_ANSI[number % len(_ANSI)]}m{text}\x1b[0m" if colour else text
