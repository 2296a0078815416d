"""What a harness has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_TOLD = 12
MAX_LINE = 1600


@dataclass(slots=True)
class Findings:
    """Counts of what must not be, each with where it was seen.

    Attributes:
        lost: Acknowledged texts and datasets that are not there, and stores that do not open.
        wrong: Wrong numbers served, half a shard catalogued or seen, an error that misleads.
        crashed: Processes that ended by a signal, a traceback or not at all.
        told: The first few in words.
    """

    lost: int = 0
    wrong: int = 0
    crashed: int = 0
    told: list[str] = field(default_factory=list)

    def add_lost(self, where: str, reason: str, count: int = 1) -> None:
        self.lost += count
        self._tell(f"lost: {where}: {reason}")

    def add_wrong(self, where: str, reason: str, count: int = 1) -> None:
        self.wrong += count
        self._tell(f"wrong: {where}: {reason}")

    def add_crashed(self, where: str, reason: str) -> None:
        self.crashed += 1
        self._tell(f"crashed: {where}: {reason}")

    def merge(self, other: Findings) -> None:
        """Add what another has found."""
        self.lost += other.lost
        self.wrong += other.wrong
        self.crashed += other.crashed
        self.told = (self.told + other.told)[:MAX_TOLD]

    @property
    def count(self) -> int:
        return self.lost + self.wrong + self.crashed

    @property
    def is_clean(self) -> bool:
        return self.count == 0

    def _tell(self, line: str) -> None:
        if len(self.told) < MAX_TOLD:
            self.told.append(line if len(line) < MAX_LINE else f"{line[:MAX_LINE]}…")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a harness did and found.

    Attributes:
        done: In words, with counts.
        findings: What must not be.
        skipped: What was left out and why; empty if nothing was.
    """

    done: str
    findings: Findings = field(default_factory=Findings)
    skipped: str = ""

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Outcome:
        return cls(**{**record, "findings": Findings(**record["findings"])})
