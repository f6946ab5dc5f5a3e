"""Curves in a terminal and as PNG."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from miles_core.loggers.curves import png_plot, terminal_plot

LONG = [(float(i), i / 100) for i in range(101)]
FEW = [(0.0, 1.0), (50.0, 0.5), (100.0, 0.0)]


def column(line: str, mark: str) -> int:
    assert mark in line, line
    return line.index(mark)


def test_curves_axes_and_legend_are_where_they_belong() -> None:
    lines = terminal_plot({"rising": LONG, "falling": FEW}, "a title", width=60, height=10, colour=False).splitlines()
    assert lines[0].strip() == "a title"
    assert lines[1].startswith("1.0 ┤▲")
    assert lines[10].startswith("0.0 ┤")
    assert lines[10].endswith("▲")
    middle = next(line for line in lines[2:10] if "▲" in line)
    assert abs(column(middle, "▲") - len(lines[10]) / 2) <= 3
    assert lines[1].rstrip()[-1] != "▲", "the rising curve ends above, and has no marks"
    assert re.fullmatch(r"\s+0 +20 +40 +60 +80 +100", lines[12])
    assert lines[13].strip() == "rollout"
    assert [line.strip() for line in lines[14:]] == ["⠤⠒ rising", "▲ falling"]
    assert max(map(len, lines)) <= 60


def test_a_line_rises_over_the_whole_width() -> None:
    lines = terminal_plot({"rising": LONG}, "", width=40, height=8, colour=False).splitlines()[1:9]
    areas = [re.split("[┤│]", line)[1] for line in lines]
    starts = [len(area) - len(area.lstrip()) for area in areas]
    assert starts == sorted(starts, reverse=True)
    assert starts[-1] == 0
    assert starts[0] > 25


@pytest.mark.parametrize(
    "points",
    [[(3.0, 0.5)], [(0.0, -120.0), (10.0, -3.0)], [(0.0, 5.0), (1.0, 5.0)], [(0.0, 1e-9), (1.0, 3e9)], [(0.5, 0.0), (0.75, 0.0)]],
)
def test_any_range_of_numbers_can_be_drawn(points: list[tuple[float, float]]) -> None:
    plot = terminal_plot({"curve": points}, "t", width=40, height=6, colour=False)
    assert plot.count("●") >= 1 + 1
    assert max(map(len, plot.splitlines())) <= 44


def test_points_that_are_not_numbers_are_left_out() -> None:
    bad = [(0.0, math.nan), (1.0, math.inf)]
    assert terminal_plot({"bad": bad}, "t", colour=False) == "t\n(no points)"
    both = terminal_plot({"bad": bad, "good": FEW}, "t", colour=False)
    assert "bad" not in both
    assert both == terminal_plot({"good": FEW}, "t", colour=False)


def test_colours_only_where_asked_for() -> None:
    assert "\x1b[" not in terminal_plot({"a": FEW}, "t")
    assert "\x1b[34m●\x1b[0m a" in terminal_plot({"a": FEW}, "t", colour=True)


def test_the_png_is_a_picture_of_the_curves(tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = png_plot(tmp_path / "new" / "curve.png", {"rising": LONG, "falling": FEW}, "title")
    picture = imread(path)
    assert picture.shape[:2] == (675, 1200)
    blue = (abs(picture[..., :3] - [0x34 / 255, 0x65 / 255, 0xA4 / 255]).max(axis=-1) < 0.02).sum()
    orange = (abs(picture[..., :3] - [0xE6 / 255, 0x61 / 255, 0x00 / 255]).max(axis=-1) < 0.02).sum()
    assert blue > 500
    assert orange > 500
    assert png_plot(tmp_path / "empty.png", {}, "nothing yet").stat().st_size > 0
