"""RequestNotes: what the middleware knows of a request, and what a route tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedcache.service.errors import ServiceProblem

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

SCOPE_KEY = "embedcache"
"""Where the notes lie in a request's ASGI scope."""


@dataclass(slots=True)
class RequestNotes:
    """Of one request; routes read the first three and add to the counts.

    Attributes:
        request_id: What it is called in the log and in the answer's ``X-Request-ID``.
        scopes: What its key allows: some of ``"read"``, ``"compute"``, ``"admin"``.
        deadline: When it is answered 504, as `time.monotonic` has it.
        texts: Texts or keys in it, for the access log.
        hits: Of these, those that were stored.
        misses: Of these, those that were not.
    """

    request_id: str
    scopes: frozenset[str]
    deadline: float
    texts: int = 0
    hits: int = 0
    misses: int = 0

    @property
    def may_compute(self) -> bool:
        """Whether texts that are not stored may be computed for it."""
        return "compute" in self.scopes

    def require(self, scope: str) -> None:
        """Refuse the request if its key does not allow this.

        Raises:
            ServiceProblem: 403, code ``"<scope>_scope"``.
        """
        if scope not in self.scopes:
            raise ServiceProblem(
                403, f"{scope}_scope", f"this API key does not have the scope {scope}"
            )

    def add(self, *, hits: int, misses: int) -> None:
        """Count texts of the request that were stored, and that were not."""
        self.texts += hits + misses
        self.hits += hits
        self.misses += misses


def notes_of(request: HTTPConnection) -> RequestNotes:
    """The notes of a request that came through the middleware."""
    notes: RequestNotes = request.scope[SCOPE_KEY]
    return notes
