"""StreamState: where a training stands in its stream; O(1) in size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from embedcache.errors import TrainingError


@dataclass(frozen=True, slots=True)
class StreamState:
    """Names the next batch of a stream.

    Attributes:
        seed: The stream's seed.
        epoch: Number of the epoch, from 0 on.
        step: Number of the batch in it, from 0 on; the same for all workers.
        order: What the order of the texts rests on, as `FeatureStream.order_digest` says it;
            empty: not known, and not compared.
    """

    seed: int
    epoch: int
    step: int
    order: str = ""

    def __post_init__(self) -> None:
        for name in ("seed", "epoch", "step"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} must be an integer, at least 0: got {value!r}")

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> StreamState:
        """The state of `to_record`'s values.

        Raises:
            TrainingError: if they are no state.
        """
        try:
            return cls(**record)
        except (TypeError, ValueError) as error:
            raise TrainingError(
                f"the stream's state cannot be read ({error}); start the training anew, without"
                " --resume"
            ) from None
