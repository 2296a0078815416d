"""Many trainings from one command: sweeps, their leaderboard, and the bake-off of modules.

``grid`` says which points there are, ``plan`` what a sweep trains, ``journal`` what of it is
done, ``workers`` runs trials in processes of their own, ``leaderboard`` sums them up;
``sweeping`` and ``bakeoff`` put these together. The names are resolved when they are first
used, as `cnn`'s.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn.sweeps.bakeoff.contest import BakeoffListener, BakeoffOptions, BakeoffReport
    from cnn.sweeps.grid import Range
    from cnn.sweeps.leaderboard import Leaderboard, LeaderboardRow
    from cnn.sweeps.student import Estimate
    from cnn.sweeps.sweeping import SweepOptions, SweepProgress, load_leaderboard

_HOMES = {
    "BakeoffListener": "cnn.sweeps.bakeoff.contest",
    "BakeoffOptions": "cnn.sweeps.bakeoff.contest",
    "BakeoffReport": "cnn.sweeps.bakeoff.contest",
    "Estimate": "cnn.sweeps.student",
    "Leaderboard": "cnn.sweeps.leaderboard",
    "LeaderboardRow": "cnn.sweeps.leaderboard",
    "Range": "cnn.sweeps.grid",
    "SweepOptions": "cnn.sweeps.sweeping",
    "SweepProgress": "cnn.sweeps.sweeping",
    "load_leaderboard": "cnn.sweeps.sweeping",
}

__all__ = [
    "BakeoffListener",
    "BakeoffOptions",
    "BakeoffReport",
    "Estimate",
    "Leaderboard",
    "LeaderboardRow",
    "Range",
    "SweepOptions",
    "SweepProgress",
    "load_leaderboard",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cnn.sweeps' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
