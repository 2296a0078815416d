"""TrainConfig: what of a training can be chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

PRESETS = ("kim", "basic")
_MAX_SEED = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What of a training can be chosen; None: the preset's default (see `resolved`).

    Attributes:
        preset: ``"kim"``, the network of Kim (2014): several kernel widths side by side,
            maximum over time, dropout, softmax. Or ``"basic"``: one width, maximum over
            time, a dense layer of 16, softmax.
        epochs: Passes over the training texts, at most.
        batch_size: Texts in a step. By default no more than there are training texts.
        learning_rate: Of Adam.
        dropout: Share of the pooled features that a training step drops, in [0, 1).
        kernel_sizes: Widths of the convolutions, in tokens.
        filters: Filters of each width.
        seed: What the initial weights, the dropout, the order of the texts and the split
            into parts depend on.
        dev_fraction: Share of the training texts set aside to choose the epoch by, in
            (0, 1); only where the dataset has no dev split of its own.
        patience: Epochs without a better dev accuracy after which training stops.
        folds: Cross-validate over so many folds instead of training once.

    Raises:
        ValueError: if a field has no legal value.
    """

    preset: str = "kim"
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    dropout: float | None = None
    kernel_sizes: Sequence[int] | None = None
    filters: int | None = None
    seed: int = 0
    dev_fraction: float = 0.1  # Kim's (2014) share where a data set has no dev split.
    patience: int | None = None
    folds: int | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be {' or '.join(PRESETS)}: got {self.preset!r}")
        checked: dict[str, Any] = {
            name: _checked_integer(name, getattr(self, name), low=1)
            for name in ("epochs", "batch_size", "filters", "patience")
        }
        checked["folds"] = _checked_integer("folds", self.folds, low=2)
        checked["seed"] = _checked_integer("seed", self.seed, low=0, high=_MAX_SEED)
        checked["learning_rate"] = _checked_real("learning_rate", self.learning_rate)
        checked["dev_fraction"] = _checked_real("dev_fraction", self.dev_fraction, below=1.0)
        checked["dropout"] = _checked_real("dropout", self.dropout, below=1.0, zero=True)
        checked["kernel_sizes"] = _checked_sizes(self.kernel_sizes)
        for name, value in checked.items():
            # A NumPy number, as a sweep gives, becomes Python's: JSON knows no other.
            object.__setattr__(self, name, value)

    def resolved(self) -> ResolvedConfig:
        """The same with the preset's default for each field that is None."""
        defaults = _DEFAULTS[self.preset]
        chosen: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) is not None
        }
        return replace(defaults, **chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """A `TrainConfig` in which every field has its value; only ``folds`` may be None."""

    preset: str
    epochs: int
    batch_size: int
    learning_rate: float
    dropout: float
    kernel_sizes: tuple[int, ...]
    filters: int
    patience: int
    seed: int = 0
    dev_fraction: float = 0.1
    folds: int | None = None

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"kernel_sizes": list(self.kernel_sizes)}


_DEFAULTS = {
    "kim": ResolvedConfig(
        preset="kim",
        epochs=25,  # Kim's own code. Patience ends on SST-2 and TREC after 13 to 24.
        batch_size=50,  # Kim (2014), section 3.1.
        learning_rate=1e-3,  # Adam's own default; Kim's Adadelta has none to speak of.
        dropout=0.5,  # Kim (2014), section 3.1.
        kernel_sizes=(3, 4, 5),  # Kim (2014), section 3.1.
        filters=100,  # Kim (2014), section 3.1.
        patience=5,
    ),
    "basic": ResolvedConfig(
        preset="basic",
        epochs=25,
        batch_size=64,
        learning_rate=1e-3,
        dropout=0.0,  # One width of 64 filters is small enough to do without.
        kernel_sizes=(3,),
        filters=64,
        patience=5,
    ),
}


def _checked_integer(name: str, value: object, *, low: int, high: int | None = None) -> int | None:
    """The number as an ``int``; None, where None is legal."""
    if value is None and name in _OPTIONAL:
        return None
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if low <= number and (high is None or number <= high):
            return number
    bounds = f"at least {low}" if high is None else f"from {low} to {high}"
    raise ValueError(f"{name} must be a whole number, {bounds}: got {value!r}")


def _checked_real(
    name: str, value: object, *, below: float = math.inf, zero: bool = False
) -> float | None:
    """The number as a ``float`` in (0, below), or with ``zero`` in [0, below)."""
    if value is None and name in _OPTIONAL:
        return None
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        if 0.0 < number < below or (zero and number == 0.0):
            return number
    above = "at least 0" if zero else "greater than 0"
    limit = "finite" if below == math.inf else f"less than {below:g}"
    raise ValueError(f"{name} must be {above} and {limit}: got {value!r}")


def _checked_sizes(sizes: object) -> tuple[int, ...] | None:
    if sizes is None:
        return None
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or len(sizes) == 0:
        raise ValueError(f"kernel_sizes must be one or more whole numbers: got {sizes!r}")
    checked = [_checked_integer("each of kernel_sizes", size, low=1) for size in sizes]
    return tuple(size for size in checked if size is not None)


_OPTIONAL = frozenset(field.name for field in fields(TrainConfig) if field.default is None)
