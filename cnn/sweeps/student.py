"""The mean of a few seeds, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95
_BISECTIONS = 200
"""Enough to halve any interval down to one floating-point number."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score over several seeds.

    Attributes:
        mean: Of the n scores.
        deviation: Their standard deviation, with n − 1 in the denominator; None of one.
        interval: The 95 % interval of the mean, mean ± t·deviation/√n with t the 0.975
            quantile of Student's distribution with n − 1 degrees of freedom (Student 1908);
            None of one. It speaks of the seeds (weights, order of the texts, dropout), not of
            the texts that the score was taken on.
        count: n.
    """

    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    count: int

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"interval": list(self.interval) if self.interval else None}


def estimate(scores: Sequence[float]) -> Estimate:
    """The mean of scores, of one or more, with its deviation and interval."""
    count = len(scores)
    mean = math.fsum(scores) / count
    if count == 1:
        return Estimate(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (count - 1))
    half = t_quantile(0.5 + CONFIDENCE / 2, count - 1) * deviation / math.sqrt(count)
    return Estimate(mean, deviation, (mean - half, mean + half), count)


def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's distribution.

    Args:
        probability: Above a half and below 1.
        degrees: Of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while t_cumulative(high, degrees) < probability:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if t_cumulative(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return high


def t_cumulative(value: float, degrees: int) -> float:
    """The probability that Student's t is below a value of at least 0.

    The finite sums for whole degrees of freedom of Abramowitz and Stegun, Handbook of
    Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(value / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    if degrees % 2 == 0:
        return 0.5 + sine * _even_series(cosine, degrees) / 2
    inside = angle
    if degrees > 1:
        inside += sine * cosine * _odd_series(cosine, degrees)
    return 0.5 + inside / math.pi


def _even_series(cosine: float, degrees: int) -> float:
    """1 + 1/2·cos² + (1·3)/(2·4)·cos⁴ + … up to cos^(degrees − 2)."""
    term = total = 1.0
    for place in range(2, degrees - 1, 2):
        term *= cosine**2 * (place - 1) / place
        total += term
    return total


def _odd_series(cosine: float, degrees: int) -> float:
    """1 + 2/3·cos² + (2·4)/(3·5)·cos⁴ + … up to cos^(degrees − 3)."""
    term = total = 1.0
    for place in range(3, degrees - 1, 2):
        term *= cosine**2 * (place - 1) / place
        total += term
    return total
