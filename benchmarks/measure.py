"""Interleaved rounds, medians and quartiles; outputs compared before anything counts."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

SLOW_SECONDS = 20.0
SLOW_ROUNDS = 3

Role = str
"""``"ours"``, ``"peer"`` or ``"limit"``."""


class WrongAnswerError(Exception):
    """Two contenders put out different things: their times are no result."""


def _do_nothing(_number: int) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to do the work of a benchmark.

    Attributes:
        name: What it is called in the table.
        role: ``"ours"``, ``"peer"`` or ``"limit"``.
        run: The timed work of a round, given the round's number; returns how much it was, in
            texts or bytes.
        before: What has to be done before each run; not timed.
        check: What is to be looked at after each run; not timed. It raises
            `WrongAnswerError` if what was put out is wrong.
        inspect: Digests of what it puts out, by what they are of; not timed. Contenders
            must agree on every digest that both have. None: it puts out nothing.
    """

    name: str
    role: Role
    run: Callable[[int], float]
    before: Callable[[int], None] = _do_nothing
    check: Callable[[int], None] = _do_nothing
    inspect: Callable[[], Mapping[str, str]] | None = None


@dataclass(slots=True)
class Series:
    """What was measured of one contender: one value a round.

    Attributes:
        name: As the contender's.
        role: As the contender's.
        values: One a round, in the report's unit.
        probes: Of a limit: its value before and after the rounds.
    """

    name: str
    role: Role
    values: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile over the rounds."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high


def rate(amount: float, seconds: float) -> float:
    """Work per second."""
    return amount / max(seconds, 1e-9)


def elapsed(_amount: float, seconds: float) -> float:
    """Seconds of one run."""
    return seconds


def measure(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    min_seconds: float = 0.0,
    value: Callable[[float, float], float] = rate,
) -> list[Series]:
    """Time the contenders in turn, round after round; the limits once more before and after.

    The first turn moves on by one each round. Who takes more than `SLOW_SECONDS` a round has
    `SLOW_ROUNDS` only.

    Args:
        contenders: What to compare.
        rounds: How many.
        min_seconds: A fast contender repeats its work until a round has taken so long.
        value: Amount and seconds → the value that is kept.

    Raises:
        WrongAnswerError: if their outputs differ.
    """
    pairs = [(contender, Series(contender.name, contender.role)) for contender in contenders]
    slow: set[str] = set()

    def time_one(contender: Contender, number: int) -> float:
        amount, seconds = _time(contender, number, min_seconds)
        if seconds > SLOW_SECONDS:
            slow.add(contender.name)
        return value(amount, seconds)

    gc.freeze()  # what is there by now need not be searched before each run
    _probe_limits(pairs, time_one)
    compare_outputs(contenders)
    for number in range(rounds):
        start = number % len(pairs)
        for contender, series in pairs[start:] + pairs[:start]:
            if contender.name not in slow or len(series.values) < SLOW_ROUNDS:
                series.values.append(time_one(contender, number))
    _probe_limits(pairs, time_one)
    gc.unfreeze()
    return [series for _, series in pairs]


def _probe_limits(
    pairs: Sequence[tuple[Contender, Series]], time_one: Callable[[Contender, int], float]
) -> None:
    for contender, series in pairs:
        if contender.role == "limit":
            series.probes.append(time_one(contender, 0))


def _time(contender: Contender, number: int, min_seconds: float) -> tuple[float, float]:
    """Run until enough time has passed: the amount and the seconds of one run, on average."""
    amount = seconds = 0.0
    runs = 0
    while runs == 0 or seconds < min_seconds:
        contender.before(number)
        gc.collect()
        started = time.perf_counter()
        amount += contender.run(number)
        seconds += time.perf_counter() - started
        contender.check(number)
        runs += 1
    return amount / runs, seconds / runs


def compare_outputs(contenders: Sequence[Contender]) -> None:
    """Run each contender once and compare what they put out.

    Raises:
        WrongAnswerError: if two disagree on a digest.
    """
    known: dict[str, tuple[str, str]] = {}
    for contender in contenders:
        if contender.inspect is None:
            continue
        contender.before(0)
        contender.run(0)
        for what, digest in contender.inspect().items():
            first, expected = known.setdefault(what, (contender.name, digest))
            if digest != expected:
                raise WrongAnswerError(
                    f"{contender.name!r} and {first!r} differ in {what}: {digest} and {expected}"
                )


def ratio(ours: Series, other: Series) -> float:
    """Median over the rounds of ours ÷ other: what slows the machine for a while slows both."""
    return statistics.median(
        mine / theirs for mine, theirs in zip(ours.values, other.values, strict=False)
    )
