"""ServiceRoute: FastAPI's description of an operation, without FastAPI's work at each request.

What an operation takes and gives is told by its function's annotations and by ``responses``,
as FastAPI documents it. Nothing of that is looked at when a request comes: the body is parsed
by `embedcache.service.bodies`, and the function makes the `Response` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, get_type_hints

from fastapi import APIRouter, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from embedcache.service.bodies import parse_body

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

BODY = "body"
"""The parameter of an operation's function that is the parsed body."""


class ServiceRoute(APIRoute):
    """A route whose function is called with the request, the path's parts, and the parsed body."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **settings: Any) -> None:
        super().__init__(path, endpoint, **settings)
        self._handler = self.get_route_handler()
        self.app = self._answer

    def get_route_handler(self) -> Handler:
        """The function that answers a request."""
        endpoint = self.endpoint
        model: type[BaseModel] | None = get_type_hints(endpoint).get(BODY)

        async def handle(request: Request) -> Response:
            arguments = dict(request.path_params)
            if model is not None:
                arguments[BODY] = parse_body(await request.body(), model)
            response: Response = await endpoint(request, **arguments)
            return response

        return handle

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Instead of FastAPI's own, which opens two exit stacks for dependencies."""
        response = await self._handler(Request(scope, receive, send))
        await response(scope, receive, send)


def _bearer() -> HTTPBearer:
    return HTTPBearer(
        auto_error=False,
        scheme_name="ApiKey",
        description="An API key, where the service has keys.",
    )


def add_operation(
    router: APIRouter, method: str, path: str, endpoint: Callable[..., Any], **settings: Any
) -> None:
    """Add one operation to a router; ``settings`` are those of FastAPI's routes.

    The summary is the first line of the function's docstring, the description the rest of it.
    """
    first, _, rest = (endpoint.__doc__ or "").strip().partition("\n")
    paragraphs = "\n".join(line.strip() for line in rest.splitlines()).strip()
    router.add_api_route(
        path,
        endpoint,
        methods=[method],
        summary=first.rstrip("."),
        description=paragraphs or first,
        response_model=None,
        # For the description alone: the middleware has looked at the key before.
        dependencies=[Security(_bearer())],
        route_class_override=ServiceRoute,
        **{"operation_id": endpoint.__name__, **settings},
    )
