"""What points a grid has, and what is said of one that cannot be."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from cnn.config import TrainConfig
from cnn.sweeps.grid import (
    Range,
    check_grid,
    choose_points,
    config_of_point,
    parse_grid,
    show_value,
)


def test_values_have_the_types_of_the_fields() -> None:
    grid = parse_grid(
        [
            "filters=50,100", "dropout=0,0.5", "kernel_sizes=3+4+5,2", "preset=kim,basic",
            "length_buckets=true,false", "view=ab12", "layer=3+4,mean",
        ]
    )  # fmt: skip
    assert grid == {
        "filters": (50, 100),
        "dropout": (0.0, 0.5),
        "kernel_sizes": ((3, 4, 5), (2,)),
        "preset": ("kim", "basic"),
        "length_buckets": (True, False),
        "view": ("ab12",),
        "layer": ("3+4", "mean"),
    }
    assert [type(value) for value in grid["filters"]] == [int, int]
    assert [type(value) for value in grid["dropout"]] == [float, float]


def test_every_field_of_the_configuration_can_be_swept() -> None:
    plain = TrainConfig().resolved().to_record()
    for field in fields(TrainConfig):
        value = plain[field.name]
        word = show_value(value)
        assert parse_grid([f"{field.name}={word}"])[field.name] == (
            tuple(value) if isinstance(value, list) else value,
        )


def test_default_stands_for_the_presets_value() -> None:
    assert parse_grid(["dropout=default,0.2"])["dropout"] == (None, 0.2)
    with pytest.raises(ValueError, match="preset must be kim, basic or linear: got 'default'"):
        parse_grid(["preset=default"])


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("nope=1", "a grid has no field 'nope'; there are: preset, embedding"),
        ("nope=1", "near_duplicates, view, layer"),
        ("preset=kin", "preset must be kim, basic or linear: got 'kin'"),
        ("filters=many", "filters must be a whole number: got 'many'"),
        ("filters=0", "filters must be a whole number, at least 1: got 0"),
        ("dropout=1", "dropout must be at least 0 and less than 1"),
        ("dropout=half", "dropout must be a number: got 'half'"),
        ("kernel_sizes=3x4", "with + between them, such as 3+4+5: got '3x4'"),
        ("length_buckets=yes", "length_buckets must be true or false: got 'yes'"),
        ("filters", "'filters' must be NAME=VALUE,VALUE…"),
        ("filters=", "'filters=' must be NAME=VALUE,VALUE…"),
        ("preset=kim,,basic", "preset has an empty value"),
        ("preset=kim..basic", "preset takes no range"),
        ("learning_rate=0..1", "drawn log-uniformly; begin above 0"),
        ("filters=9..3", "a range is two whole numbers that rise"),
        ("filters=1.5..3", "a range is two whole numbers that rise"),
        ("dropout=0.5..1.5", "dropout must be at least 0 and less than 1"),
    ],
)
def test_grid_that_cannot_be_is_refused_in_one_line(argument: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        parse_grid([argument])
    assert said in str(caught.value)


def test_field_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="filters is given twice"):
        parse_grid(["filters=1", "filters=2"])


def test_grid_of_python_is_checked_as_that_of_the_command_line() -> None:
    assert check_grid({"kernel_sizes": [[3, 4], (3, 4), (5,)]}) == {"kernel_sizes": ((3, 4), (5,))}
    for wrong in ({"nope": [1]}, {"filters": []}, {"filters": "12"}, {"filters": [0]}):
        with pytest.raises(ValueError, match=r"nope|filters"):
            check_grid(wrong)
    with pytest.raises(ValueError, match="takes no range"):
        check_grid({"preset": Range(1, 2)})


def test_without_random_all_of_the_product_is_trained_once() -> None:
    grid = parse_grid(["filters=8,16,8", "dropout=0,0.5"])
    points = choose_points(grid, count=None, seed=0)
    assert [tuple(point.values()) for point in points] == [
        (8, 0.0), (8, 0.5), (16, 0.0), (16, 0.5),
    ]  # fmt: skip
    assert choose_points({}, count=None, seed=0) == [{}], "no grid: the defaults"


def test_drawn_points_are_distinct_and_the_same_each_time() -> None:
    grid = parse_grid(["filters=1,2,3,4,5", "dropout=0,0.1,0.2,0.3"])
    points = choose_points(grid, count=12, seed=3)
    assert points == choose_points(grid, count=12, seed=3)
    assert points != choose_points(grid, count=12, seed=4)
    assert len({tuple(point.values()) for point in points}) == 12
    assert all(point["filters"] in grid["filters"] for point in points)


def test_more_draws_begin_with_those_of_fewer() -> None:
    grid = parse_grid(["filters=1,2,3,4,5", "learning_rate=1e-4..1e-2"])
    many = choose_points(grid, count=20, seed=1)
    assert choose_points(grid, count=7, seed=1) == many[:7]


def test_of_a_small_grid_no_more_is_drawn_than_there_is() -> None:
    grid = parse_grid(["filters=1,2"])
    assert choose_points(grid, count=9, seed=0) == [{"filters": 1}, {"filters": 2}]
    few = parse_grid(["filters=1..3"])
    assert {point["filters"] for point in choose_points(few, count=9, seed=0)} == {1, 2, 3}


def test_range_without_random_is_refused() -> None:
    with pytest.raises(ValueError, match="filters is a range, of which points must be drawn"):
        choose_points(parse_grid(["filters=1..9"]), count=None, seed=0)


def test_learning_rates_are_drawn_log_uniformly_and_dropouts_uniformly() -> None:
    grid = parse_grid(["learning_rate=1e-4..1e-2", "dropout=0.2..0.6"])
    points = choose_points(grid, count=400, seed=0)
    logs = [math.log10(point["learning_rate"]) for point in points]
    assert -4 <= min(logs) < -3.9 < -2.1 < max(logs) <= -2
    assert abs(sum(log < -3 for log in logs) / 400 - 0.5) < 0.1, "half below the geometric mean"
    dropouts = [point["dropout"] for point in points]
    assert 0.2 <= min(dropouts) < 0.22
    assert abs(sum(dropouts) / 400 - 0.4) < 0.02


@pytest.mark.parametrize(
    ("value", "shown"),
    [((3, 4, 5), "3+4+5"), (None, "default"), (0.001, "0.001"), (True, "true"), (50, "50")],
)
def test_values_are_shown_as_they_are_given(value: Any, shown: str) -> None:
    assert show_value(value) == shown


def test_values_that_do_not_fit_each_other_are_refused() -> None:
    config_of_point({"preset": "linear", "view": "ab"})
    with pytest.raises(ValueError, match="filters must be left out with preset linear"):
        config_of_point({"preset": "linear", "filters": 8})
