"""TrainConfig: what of a training can be chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

PRESETS = ("kim", "basic", "linear")
EMBEDDINGS = ("static", "rand", "nonstatic", "multichannel")
OPTIMIZERS = ("adam", "adadelta")
CLASS_WEIGHTS = ("none", "balanced")
ON_LEAK = ("warn", "drop", "error")
TASKS = ("auto", "single", "multilabel")

_MAX_SEED = 2**32 - 1
_CHOICES = {
    "preset": PRESETS,
    "embedding": EMBEDDINGS,
    "optimizer": OPTIMIZERS,
    "class_weights": CLASS_WEIGHTS,
    "on_leak": ON_LEAK,
    "task": TASKS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What of a training can be chosen; None: the preset's default (see `resolved`).

    Attributes:
        preset: ``"kim"``, the network of Kim (2014): several kernel widths side by side,
            maximum over time, dropout, softmax. ``"basic"``: one width, maximum over time, a
            dense layer of 16, softmax. ``"linear"``: the mean over time and softmax, the
            baseline: logistic regression on pooled features.
        embedding: What a token's vector is. ``"static"``: the cached one. The others are for
            views with a dictionary only, and are Kim's (2014) other models: ``"rand"``, a
            random one that is trained; ``"nonstatic"``, the cached one, trained on;
            ``"multichannel"``, static and nonstatic side by side.
        epochs: Passes over the training texts, at most.
        batch_size: Texts in a step. By default no more than there are training texts.
        batch_tokens: Padded tokens in a step, at most; None: as many as there are.
        length_buckets: Whether texts of like length share batches.
        optimizer: ``"adam"``, or ``"adadelta"`` with ρ = 0.95 as in Kim (2014).
        learning_rate: Of the optimizer. By default 0.001 with Adam (0.01 for ``linear``) and
            1 with Adadelta, which is then Zeiler's (2012), without a rate of its own.
        max_norm: Largest 2-norm of a class's weights, to which they are scaled back after
            each step; 0: none.
        dropout: Share of the pooled features that a training step drops, in [0, 1).
        kernel_sizes: Widths of the convolutions, in tokens; not with ``linear``.
        filters: Filters of each width; not with ``linear``.
        class_weights: ``"balanced"``: rare classes weigh more in the loss (see
            `cnn.losses.balanced_class_weights`). ``"none"``: every text weighs the same.
        task: ``"single"``: a text has one label of two or more. ``"multilabel"``: any
            number. ``"auto"``: multilabel if a text of the dataset has several labels.
        seed: What the initial weights, the dropout, the order of the texts and the split
            into parts depend on.
        dev_fraction: Share of the training texts set aside to choose the epoch by, in
            (0, 1); only where the dataset has no dev split of its own.
        patience: Epochs without a better dev accuracy after which training stops.
        folds: Cross-validate over so many folds instead of training once.
        on_leak: What to do about dev and test texts that are among the training texts:
            ``"warn"``, ``"drop"`` them from the training texts, or ``"error"``.
        near_duplicates: Cosine similarity of pooled vectors, in (0, 1], from which on a text
            counts as another's copy too; None: only equal texts count.

    Raises:
        ValueError: if a field has no legal value.
    """

    preset: str = "kim"
    embedding: str = "static"
    epochs: int | None = None
    batch_size: int | None = None
    batch_tokens: int | None = None
    length_buckets: bool = False
    optimizer: str = "adam"
    learning_rate: float | None = None
    max_norm: float | None = None
    dropout: float | None = None
    kernel_sizes: Sequence[int] | None = None
    filters: int | None = None
    class_weights: str = "none"
    task: str = "auto"
    seed: int = 0
    dev_fraction: float = 0.1  # Kim's (2014) share where a data set has no dev split.
    patience: int | None = None
    folds: int | None = None
    on_leak: str = "warn"
    near_duplicates: float | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
                raise ValueError(f"{name} must be {listed}: got {getattr(self, name)!r}")
        checked: dict[str, Any] = {
            name: _checked_integer(name, getattr(self, name), low=1)
            for name in ("epochs", "batch_size", "batch_tokens", "filters", "patience")
        }
        checked["folds"] = _checked_integer("folds", self.folds, low=2)
        checked["seed"] = _checked_integer("seed", self.seed, low=0, high=_MAX_SEED)
        checked["learning_rate"] = _checked_real("learning_rate", self.learning_rate)
        checked["max_norm"] = _checked_real("max_norm", self.max_norm, zero=True)
        checked["dev_fraction"] = _checked_real("dev_fraction", self.dev_fraction, below=1.0)
        checked["dropout"] = _checked_real("dropout", self.dropout, below=1.0, zero=True)
        checked["near_duplicates"] = _checked_cosine(self.near_duplicates)
        checked["kernel_sizes"] = _checked_sizes(self.kernel_sizes)
        checked["length_buckets"] = _checked_truth("length_buckets", self.length_buckets)
        self._check_linear()
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
        if self.optimizer == "adadelta":
            chosen.setdefault("learning_rate", _ADADELTA_RATE)
        return replace(defaults, **chosen)

    def _check_linear(self) -> None:
        for name in ("kernel_sizes", "filters"):
            if self.preset == "linear" and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} must be left out with preset linear, which has no convolutions:"
                    f" got {getattr(self, name)!r}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """A `TrainConfig` in which every field has its value.

    Only ``folds``, ``batch_tokens`` and ``near_duplicates`` may be None. With the preset
    ``linear``, ``kernel_sizes`` is empty and ``filters`` 0; a ``max_norm`` of 0 is none.

    The fields that have a default here are those that runs of older versions lack; the
    default is what those versions did.
    """

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
    embedding: str = "static"
    optimizer: str = "adam"
    max_norm: float = 0.0
    class_weights: str = "none"
    task: str = "auto"
    length_buckets: bool = False
    batch_tokens: int | None = None
    on_leak: str = "warn"
    near_duplicates: float | None = None

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"kernel_sizes": list(self.kernel_sizes)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ResolvedConfig:
        """The configuration that `to_record` wrote, by this version or an older one.

        Raises:
            ValueError: if a field is missing that every version has written, or one is there
                that this version does not know.
        """
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(record) - set(known))
        if unknown:
            raise ValueError(
                f"a configuration has the unknown field {unknown[0]!r}: it was written by a"
                " newer version of embedcache"
            )
        required = {name for name, field in known.items() if field.default is MISSING}
        missing = sorted(required - set(record))
        if missing:
            raise ValueError(f"a configuration lacks the field {missing[0]!r}")
        return cls(**{**record, "kernel_sizes": tuple(record["kernel_sizes"])})


_ADADELTA_RATE = 1.0
"""With it Keras's Adadelta, which multiplies its step by a rate, is Zeiler's (2012)."""

_DEFAULTS = {
    "kim": ResolvedConfig(
        preset="kim",
        epochs=25,  # Kim's own code. Patience ends on SST-2 and TREC after 13 to 24.
        batch_size=50,  # Kim (2014), section 3.1.
        learning_rate=1e-3,  # Adam's own default.
        dropout=0.5,  # Kim (2014), section 3.1.
        kernel_sizes=(3, 4, 5),  # Kim (2014), section 3.1.
        filters=100,  # Kim (2014), section 3.1.
        patience=5,
        max_norm=3.0,  # Kim (2014), section 3.1.
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
    "linear": ResolvedConfig(
        preset="linear",
        epochs=50,
        batch_size=50,
        # On SST-2 dev 0.001, 0.003, 0.01, 0.03 gave 76.6, 78.3, 79.3, 79.5 %, slow to fast.
        learning_rate=1e-2,
        dropout=0.0,
        kernel_sizes=(),
        filters=0,
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


def _checked_cosine(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, Real) and not isinstance(value, bool) and 0.0 < float(value) <= 1.0:
        return float(value)
    raise ValueError(f"near_duplicates must be greater than 0 and at most 1: got {value!r}")


def _checked_truth(name: str, value: object) -> bool:
    # NumPy's own truth values, as a sweep gives, are no ``bool``.
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return bool(value)
    raise ValueError(f"{name} must be True or False: got {value!r}")


def _checked_sizes(sizes: object) -> tuple[int, ...] | None:
    if sizes is None:
        return None
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or len(sizes) == 0:
        raise ValueError(f"kernel_sizes must be one or more whole numbers: got {sizes!r}")
    checked = [_checked_integer("each of kernel_sizes", size, low=1) for size in sizes]
    return tuple(size for size in checked if size is not None)


_OPTIONAL = frozenset(field.name for field in fields(TrainConfig) if field.default is None)
