"""Charts show what they are given, inside their frame."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.report.charts import Bin, Line, calibration_chart, line_chart, nice_ticks, thinned

WIDTH, HEIGHT = 460, 260
FINITE = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 6))


def points_of(chart: str, style: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(chart)
    return [
        [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
        for line in root.iter("polyline")
        if line.attrib["class"] == style
    ]  # type: ignore[misc]


def draw(*lines: Line) -> str:
    return line_chart("loss", "Loss", lines, format_y=lambda value: f"{value:.3g}")


@given(st.lists(FINITE, min_size=1, max_size=30), st.lists(FINITE, min_size=1, max_size=30))
def test_every_point_lies_inside_the_picture(train: list[float], dev: list[float]) -> None:
    chart = draw(
        Line("train", list(enumerate(train, 1)), "train"),
        Line("dev", list(enumerate(dev, 1)), "dev", marks=[(1, dev[0])]),
    )
    root = ElementTree.fromstring(chart)
    places = [pair for style in ("train", "dev") for line in points_of(chart, style)
              for pair in line]  # fmt: skip
    places += [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in root.iter("circle")]
    assert places
    for x, y in places:
        assert 50 <= x <= WIDTH
        assert 20 <= y <= HEIGHT - 30


def test_higher_numbers_are_higher_and_later_epochs_further_right() -> None:
    (line,) = points_of(draw(Line("dev", [(1, 0.2), (2, 0.9), (3, 0.5)], "dev")), "dev")
    assert line[0][0] < line[1][0] < line[2][0]
    assert line[1][1] < line[2][1] < line[0][1]


def test_lines_of_several_folds_share_their_entry_in_the_legend() -> None:
    chart = draw(*(Line("dev", [(1, 1.0), (2, fold)], "dev") for fold in range(3)))
    assert len(points_of(chart, "dev")) == 3
    root = ElementTree.fromstring(chart)
    assert [text.text for text in root.iter("text")].count("dev") == 1


def test_charts_say_what_they_show_to_who_cannot_see_them() -> None:
    root = ElementTree.fromstring(draw(Line("dev", [(1, 0.9), (2, 0.4)], "dev")))
    assert root.attrib["role"] == "img"
    named = {child.attrib["id"]: child.text for child in root if "id" in child.attrib}
    assert [named[name] for name in root.attrib["aria-labelledby"].split()] == [
        "Loss",
        "Loss over the epochs: dev from 0.9 to 0.4",
    ]


@given(FINITE, FINITE)
def test_ticks_are_round_and_span_the_numbers(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-9 * abs(low)
    assert ticks[-1] >= high - 1e-9 * abs(high)
    assert 2 <= len(ticks) <= 8
    leading = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(leading - round_one) for round_one in (1, 2, 5, 10)) < 1e-3


def test_ticks_of_accuracies() -> None:
    assert nice_ticks(0.52, 0.87) == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])


def test_long_lines_are_thinned_and_keep_their_ends() -> None:
    points = [(float(x), float(x)) for x in range(5000)]
    few = thinned(points)
    assert len(few) == 200
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert thinned(points[:200]) == points[:200]


def test_bars_of_a_calibration_diagram_are_as_high_as_the_share_that_was_right() -> None:
    bins = [
        Bin(0.0, 0.5, 0, None, None),
        Bin(0.5, 0.75, 10, 0.6, 0.5),
        Bin(0.75, 1.0, 30, 0.9, 1.0),
    ]
    root = ElementTree.fromstring(calibration_chart("c", "Calibration", bins))
    found = [
        (bar.attrib["class"], float(bar.attrib["height"]))
        for bar in root.iter("rect") if float(bar.attrib["width"]) > 20
    ]  # fmt: skip
    rights = [height for style, height in found if style == "right"]
    counts = [height for style, height in found if style == "count"]
    assert len(rights) == len(counts) == 2
    assert rights[1] == pytest.approx(2 * rights[0], abs=0.2)
    assert counts[1] == pytest.approx(3 * counts[0], abs=0.2)


def test_no_chart_has_a_number_that_is_none() -> None:
    chart = calibration_chart("c", "Calibration", [Bin(0.0, 1.0, 0, None, None)])
    chart += draw(Line("dev", [(1, 0.0)], "dev"))
    assert not re.search(r"nan|inf\b|None", chart)
