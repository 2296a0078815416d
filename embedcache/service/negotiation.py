"""Which of several media types an ``Accept`` header asks for."""

from __future__ import annotations

from collections.abc import Sequence

from embedcache.service.errors import ServiceProblem


def choose_media_type(accept: str | None, offered: Sequence[str]) -> str:
    """The offered type that is wanted most; the first one where nothing is said.

    A type is weighed by the range that fits it most closely: its own name, ``type/*`` or
    ``*/*`` (RFC 9110, 12.5.1). Parameters other than ``q`` are passed over.

    Raises:
        ServiceProblem: 406, if none is wanted.
    """
    if not accept or accept == "*/*":
        return offered[0]
    if accept in offered:
        return accept
    weights = _weights_of_ranges(accept)
    best, best_weight = "", 0.0
    for media_type in offered:
        main = media_type.split("/")[0]
        fitting = (weights.get(name) for name in (media_type, f"{main}/*", "*/*"))
        weight = next((found for found in fitting if found is not None), 0.0)
        if weight > best_weight:
            best, best_weight = media_type, weight
    if not best:
        raise ServiceProblem(
            406, "not_acceptable", f"only {', '.join(offered)} can be had here; set Accept to one"
        )
    return best


def _weights_of_ranges(accept: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                weight = _weight(parameter[2:])
        weights[name] = weight
    return weights


def _weight(text: str) -> float:
    """A quality value; one that is none counts as 1, as if it had not been there."""
    try:
        weight = float(text)
    except ValueError:
        return 1.0
    return weight if 0 <= weight <= 1 else 1.0
