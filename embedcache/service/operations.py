"""What a supervisor asks: is it alive, is it ready, what has it counted, look again."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from embedcache.service.errors import ServiceProblem
from embedcache.service.services import Services

_JSON = "application/json"
_METRICS_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Counters, in Prometheus's text format",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}


class Health(BaseModel):
    """That the process lives."""

    status: str = Field(examples=["ok"])


class Readiness(BaseModel):
    """That requests are taken."""

    status: str = Field(examples=["ready"])
    queue: int = Field(description="Missing texts that wait to be computed", ge=0)


class Reloaded(BaseModel):
    """What is served now."""

    views: list[str] = Field(description="Fingerprints of the views")


def make_router(services: Services) -> APIRouter:
    """``GET /health``, ``/ready`` and ``/metrics``, ``POST /v1/reload``."""
    router = APIRouter(tags=["operations"])

    @router.get("/health", response_model=Health, summary="Whether the process lives")
    async def health() -> Response:
        """Answers as long as the process does, also while it starts or ends; needs no key."""
        return _json({"status": "ok"})

    @router.get("/", include_in_schema=False)
    async def show_docs() -> Response:
        """Where a browser is sent that asks for the address alone."""
        return Response(status_code=307, headers={"Location": "/docs"})

    @router.get("/ready", response_model=Readiness, summary="Whether requests are taken")
    async def ready() -> Response:
        """503 while the service starts and while it ends; needs no key."""
        if services.state.is_draining or not services.features.is_ready:
            what = "ending" if services.state.is_draining else "starting"
            raise ServiceProblem(503, "not_ready", f"the service is {what}", retry_after_s=1.0)
        return _json({"status": "ready", "queue": services.features.queue_depth})

    @router.get("/metrics", responses=_METRICS_ANSWER, response_class=Response,
                summary="Counters for Prometheus")  # fmt: skip
    async def metrics() -> Response:
        """Needs the scope admin, where the service has keys."""
        # As a header of its own: the framework would add a charset to it.
        headers = {"Content-Type": services.metrics.content_type}
        return Response(services.metrics.render(), headers=headers)

    @router.post("/v1/reload", response_model=Reloaded, summary="Look at the store again")
    async def reload() -> Response:
        """Serves new views, runs and features at once, and forgets what was removed.

        The service does so by itself every second. Needs the scope admin, where it has keys.
        """
        await services.features.refresh()
        return _json({"views": [view.fingerprint for view in services.features.views]})

    return router


def _json(record: dict[str, object]) -> Response:
    return Response(orjson.dumps(record), media_type=_JSON)
