"""What a sweep trains: points, each under a view, and seeds."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any

from cnn.config import TrainConfig
from embedcache.errors import TrainingError

LINEAR = "linear"
RANDOM = "random"
_NAME_CHARACTERS = 24
_SWEEP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One configuration, trained once for each seed.

    Attributes:
        settings: Fields of `TrainConfig` with their values, the seed left aside.
        view: Fingerprint of the view.
        label: How the point named its view: ``{"view": …}`` or ``{"layer": …}`` as it was
            asked for; empty where the grid has neither.
        baseline: ``"linear"`` or ``"random"`` of what is there to compare with; empty else.
    """

    settings: Mapping[str, Any]
    view: str
    label: Mapping[str, str]
    baseline: str = ""

    def config(self, seed: int) -> TrainConfig:
        """What a training of this point gets."""
        return TrainConfig(**dict(self.settings), seed=seed)

    @property
    def shown(self) -> dict[str, Any]:
        """What it was asked for by: its view's name and its settings."""
        return {**self.label, **self.settings}

    @property
    def identity(self) -> tuple[str, str]:
        """What tells it from other points: its view, and what it trains with all defaults."""
        return self.view, json.dumps(self.config(0).resolved().to_record(), sort_keys=True)

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "settings": _plain(self.settings),
            "view": self.view,
            "label": dict(self.label),
            "baseline": self.baseline,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SweepPoint:
        """The point of `to_record`'s value."""
        settings = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record["settings"].items()
        }
        return cls(settings, record["view"], record["label"], record["baseline"])


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a sweep.

    Attributes:
        point: What is trained.
        seed: With which seed.
        version: The dataset's whole version.
    """

    point: SweepPoint
    seed: int
    version: str

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that name it.

        Of the dataset's version, the view and the fields of the configuration that are not
        `TrainConfig`'s defaults: a field that a later version adds changes no trial that does
        not use it.
        """
        config = self.point.config(self.seed)
        settings = {
            field.name: getattr(config, field.name)
            for field in fields(config)
            if getattr(config, field.name) != field.default
        }
        identity = {"version": self.version, "view": self.point.view, "config": _plain(settings)}
        text = json.dumps(identity, sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """All that a sweep trains.

    Attributes:
        name: What it is called.
        dataset: The dataset's name.
        version: Its whole version: a sweep never mixes two.
        points: What is trained, baselines among them.
        seeds: With which seeds, each point.
        notes: Lines about what could not be compared, such as a baseline that there is not.
        majority: Whether the majority class is compared with.
    """

    name: str
    dataset: str
    version: str
    points: tuple[SweepPoint, ...]
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()
    majority: bool = True

    @property
    def trials(self) -> list[Trial]:
        """Every point with every seed.

        The first seed of all points first: a sweep that is cut short has seen every point.
        """
        return [Trial(point, seed, self.version) for seed in self.seeds for point in self.points]

    def with_added(self, other: SweepPlan) -> SweepPlan:
        """This plan with the points and seeds of another that it lacks."""
        return replace(
            self,
            points=distinct_points([*self.points, *other.points]),
            seeds=tuple(dict.fromkeys([*self.seeds, *other.seeds])),
            notes=tuple(dict.fromkeys([*self.notes, *other.notes])),
        )

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "name": self.name,
            "dataset": self.dataset,
            "version": self.version,
            "points": [point.to_record() for point in self.points],
            "seeds": list(self.seeds),
            "notes": list(self.notes),
            "majority": self.majority,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SweepPlan:
        """The plan of `to_record`'s value."""
        return cls(
            record["name"],
            record["dataset"],
            record["version"],
            tuple(map(SweepPoint.from_record, record["points"])),
            tuple(record["seeds"]),
            tuple(record["notes"]),
            record["majority"],
        )


def distinct_points(points: Sequence[SweepPoint]) -> tuple[SweepPoint, ...]:
    """The points without those that would train what an earlier one does."""
    found: dict[tuple[str, str], SweepPoint] = {}
    for point in points:
        found.setdefault(point.identity, point)
    return tuple(found.values())


def new_sweep_name(dataset: str) -> str:
    """A name that sorts by time and says what it is: ``20261122-064512-sst2-3f9a``; UTC."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    plain = re.sub(r"[^a-z0-9_.]+", "-", dataset.lower())[:_NAME_CHARACTERS].strip("-.")
    return f"{stamp}-{plain or 'dataset'}-{secrets.token_hex(2)}"


def checked_sweep_name(name: str) -> str:
    """The name, if a folder may have it.

    Raises:
        TrainingError: if not.
    """
    if not _SWEEP_NAME.fullmatch(name):
        raise TrainingError(
            f"{name!r} cannot name a sweep; use 1 to 100 letters, digits, _ . + and -, of which"
            " the first is a letter, a digit or _"
        )
    return name


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()
    }
