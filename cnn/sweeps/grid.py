"""The points of a sweep: a grid over the fields of `TrainConfig`, or points drawn from it.

Types and choices are those of the dataclass: a field that `TrainConfig` gets is one that can
be swept.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import numpy as np

from cnn.config import TrainConfig

VIEW_AXES = ("view", "layer")
SEED_AXIS = "seed"
DEFAULT_WORD = "default"
"""What stands for a field's own default, None, where values are written as text."""

_LOG_FIELDS = ("learning_rate",)
"""Fields whose ranges are drawn log-uniformly: what matters of a learning rate is its order of
magnitude (Bergstra and Bengio 2012, section 2.4)."""
_DIGITS = 4
"""Significant digits of a number that is drawn: enough, and it can be typed again."""
_MAX_MISSES = 10_000
"""Draws in a row that give a known point, after which there are taken to be no more."""

Point = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from which values are drawn.

    Attributes:
        low: The least.
        high: The greatest; above ``low``.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range LOW..HIGH must rise: got {self.low:g}..{self.high:g}")


Values = Sequence[Any] | Range
Grid = Mapping[str, Values]


def parse_grid(arguments: Sequence[str]) -> dict[str, Values]:
    """What ``--grid NAME=V,V…`` says, given any number of times.

    Raises:
        ValueError: for a name that is no field, a value that is none of its type, or a name
            that is given twice; the message lists what there is.
    """
    grid: dict[str, Values] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        name = name.strip()
        if not equals or not text.strip():
            raise ValueError(f"{argument!r} must be NAME=VALUE,VALUE…, such as filters=50,100")
        _check_name(name)
        if name in grid:
            raise ValueError(f"{name} is given twice; write all its values in one: {name}=V,V…")
        low, dots, high = text.partition("..")
        if dots:
            grid[name] = _parse_range(name, low, high)
        else:
            words = dict.fromkeys(word.strip() for word in text.split(","))
            grid[name] = tuple(_parse_value(name, word) for word in words)
    return grid


def check_grid(grid: Grid) -> dict[str, Values]:
    """A grid given from Python, with every value checked and repeated values once.

    Raises:
        ValueError: for a name that is no field, or an axis without values.
    """
    checked: dict[str, Values] = {}
    for name, values in grid.items():
        _check_name(name)
        if isinstance(values, Range):
            _kind_of_range(name)
            checked[name] = values
            continue
        if isinstance(values, str) or not len(values):
            raise ValueError(f"{name} needs a list of one or more values: got {values!r}")
        plain = [tuple(value) if isinstance(value, list) else value for value in values]
        for value in plain:
            _check_value(name, value)
        checked[name] = tuple(dict.fromkeys(plain))
    return checked


def choose_points(grid: Grid, *, count: int | None, seed: int) -> list[Point]:
    """The points of a grid: all of its product, or so many distinct ones drawn from it.

    Of two counts with one seed, the points of the smaller are the first of the larger's.

    Args:
        grid: From `parse_grid` or `check_grid`.
        count: How many to draw; None: all.
        seed: What the draws depend on.

    Returns:
        Points in the order of the product or of the draws; of a grid with fewer points than
        ``count``, all of them.

    Raises:
        ValueError: for a range without a count.
    """
    if count is None:
        ranges = [name for name, values in grid.items() if isinstance(values, Range)]
        if ranges:
            raise ValueError(
                f"{ranges[0]} is a range, of which points must be drawn: say how many with"
                " --random N, or list its values"
            )
        return list(_product(grid))
    return list(_draw(grid, count, seed))


def config_of_point(point: Point) -> TrainConfig:
    """The training of a point, its view left aside.

    Raises:
        ValueError: if its values do not fit each other.
    """
    return TrainConfig(**{name: value for name, value in point.items() if name not in VIEW_AXES})


def show_value(value: Any) -> str:
    """A value as `parse_grid` takes it: ``(3, 4, 5)`` is ``3+4+5``, None is ``default``."""
    if value is None:
        return DEFAULT_WORD
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return str(value)


def _product(grid: Grid) -> Iterator[Point]:
    lists = [axis for axis in grid.values() if not isinstance(axis, Range)]
    for values in product(*lists):
        yield dict(zip(grid, values, strict=True))


def _draw(grid: Grid, count: int, seed: int) -> Iterator[Point]:
    generator = np.random.default_rng(seed)
    total = math.prod(math.inf if isinstance(axis, Range) else len(axis) for axis in grid.values())
    if count >= total:
        yield from _product(grid)
        return
    seen: set[tuple[Any, ...]] = set()
    misses = 0
    while len(seen) < count and misses < _MAX_MISSES:
        # Every axis draws each time, so that the draws before do not change with the count.
        point = {name: _draw_value(name, axis, generator) for name, axis in grid.items()}
        if tuple(point.values()) in seen:
            misses += 1
            continue
        misses = 0
        seen.add(tuple(point.values()))
        yield point


def _draw_value(name: str, axis: Values, generator: np.random.Generator) -> Any:
    if not isinstance(axis, Range):
        return axis[int(generator.integers(len(axis)))]
    if _kind_of_range(name) is int:
        return int(generator.integers(round(axis.low), round(axis.high) + 1))
    if name in _LOG_FIELDS:
        drawn = math.exp(generator.uniform(math.log(axis.low), math.log(axis.high)))
    else:
        drawn = generator.uniform(axis.low, axis.high)
    return float(f"{drawn:.{_DIGITS}g}")


def _check_name(name: str) -> None:
    known = [field.name for field in fields(TrainConfig)]
    if name not in known and name not in VIEW_AXES:
        there_are = ", ".join([*known, *VIEW_AXES])
        raise ValueError(f"a grid has no field {name!r}; there are: {there_are}")


def _kinds(name: str) -> tuple[Any, bool]:
    """The type of a field's values, and whether None is one of them."""
    if name in VIEW_AXES:
        return str, False
    hint = typing.get_type_hints(TrainConfig)[name]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0], len(kinds) < len(typing.get_args(hint))
    return hint, False


def _kind_of_range(name: str) -> type:
    kind, _ = _kinds(name)
    if kind not in (int, float):
        raise ValueError(f"{name} takes no range, for its values are no numbers; list them")
    return typing.cast("type", kind)


def _parse_range(name: str, low: str, high: str) -> Range:
    kind = _kind_of_range(name)
    try:
        found = Range(kind(low), kind(high))
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(
            f"{name}={low}..{high}: a range is two {what} that rise, LOW..HIGH"
        ) from error
    if name in _LOG_FIELDS and found.low <= 0:
        raise ValueError(f"{name}={low}..{high}: is drawn log-uniformly; begin above 0")
    for value in (kind(low), kind(high)):
        _check_value(name, value)
    return found


def _parse_value(name: str, word: str) -> Any:
    kind, is_optional = _kinds(name)
    if is_optional and word == DEFAULT_WORD:
        return None
    value = _read_word(name, kind, word)
    _check_value(name, value)
    return value


def _read_word(name: str, kind: Any, word: str) -> Any:
    if kind is bool:
        if word in ("true", "false"):
            return word == "true"
        raise ValueError(f"{name} must be true or false: got {word!r}")
    try:
        if kind in (int, float):
            return kind(word)
        if typing.get_origin(kind) is not None:
            return tuple(int(part) for part in word.split("+"))
    except ValueError:
        what = {int: "a whole number", float: "a number"}.get(
            kind, "whole numbers with + between them, such as 3+4+5"
        )
        raise ValueError(f"{name} must be {what}: got {word!r}") from None
    if not word:
        raise ValueError(f"{name} has an empty value; leave the comma out")
    return word


def _check_value(name: str, value: Any) -> None:
    """Raise unless `TrainConfig` takes the value; its message says what it takes."""
    if name not in VIEW_AXES:
        TrainConfig(**{name: value})
