"""The web application: all routes, and the middleware around them."""

from __future__ import annotations

from typing import NoReturn

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from embedcache.service import native, openai, operations, tei, tf_serving
from embedcache.service.errors import ServiceProblem
from embedcache.service.middleware import ServiceMiddleware
from embedcache.service.services import Services

__all__ = ["Services", "create_app"]

_DESCRIPTION = """
Features of texts, computed once and read by everybody, and predictions of trained runs.

Four interfaces: its own (`/v1/features`), OpenAI's (`/v1/embeddings`), that of
text-embeddings-inference (`/embed`) and TensorFlow Serving's (`/v1/models/{run}:predict`).
"""

_CODES = {404: "no_route", 405: "method_not_allowed"}


def create_app(services: Services) -> FastAPI:
    """The application of a service; nothing is opened or started.

    Args:
        services: What its routes work with, open.
    """
    from embedcache import __version__

    app = FastAPI(
        title="embedcache",
        summary="A feature store for frozen text embeddings.",
        description=_DESCRIPTION,
        version=__version__,
        redoc_url=None,
        # Asked at each request otherwise, whether somebody has configured it.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
        middleware=[Middleware(ServiceMiddleware, services=services)],
        exception_handlers={
            HTTPException: _raise_http_problem,
            RequestValidationError: _raise_validation_problem,
        },
        redirect_slashes=False,
    )
    rooms = (native, openai, tei, tf_serving, operations)
    # Not included but put first: routes are tried in turn, 1.3 µs each, and a router within a
    # router is searched anew at each request.
    app.router.routes[:0] = [route for room in rooms for route in room.make_router(services).routes]
    return app


async def _raise_http_problem(_request: Request, error: HTTPException) -> NoReturn:
    """What the framework refuses itself: no such path, or not with this method."""
    code = _CODES.get(error.status_code, "refused")
    message, headers = str(error.detail), dict(error.headers or {})
    if code == "no_route":
        message = "there is no such path; /docs and /openapi.json list those there are"
    elif code == "method_not_allowed":
        message = f"this path takes {headers.get('Allow', 'another method')}; /docs says how"
    raise ServiceProblem(error.status_code, code, message, headers=headers) from None


async def _raise_validation_problem(_request: Request, error: RequestValidationError) -> NoReturn:
    """A parameter of the wrong kind: told by its place and why, never by its value."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    raise ServiceProblem(422, "bad_request", f"{place}: {first['msg']}") from None
