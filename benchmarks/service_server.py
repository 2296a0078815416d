"""B12's server: the service as `embedcache serve` runs it, with one more route that is its limit.

python -m benchmarks.service_server STORE CONFIG

``POST /constant/SIZE`` reads the request's body, as every route does, and answers so many bytes
that were made before. It stands first among the routes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.service_peers import end_with_stdin
from embedcache.service import server
from embedcache.service.app import Services, create_app
from embedcache.service.settings import load_settings

CONSTANT = "/constant/"
"""Where the limit is; the size of the answer follows."""


class Constant:
    """Answers of bytes that are made once for each size."""

    def __init__(self) -> None:
        self._answers: dict[int, bytes] = {}

    async def answer(self, request: Request) -> Response:
        """As many bytes as the path says."""
        await request.body()
        size: int = request.path_params["size"]
        answer = self._answers.get(size)
        if answer is None:
            # Not zeros: those might be one page of memory, again and again.
            answer = self._answers[size] = (bytes(range(256)) * (size // 256 + 1))[:size]
        return Response(answer, media_type="application/octet-stream")


def create_app_with_constant(services: Services) -> FastAPI:
    """The application of the service, and the constant before all its routes."""
    app = create_app(services)
    app.router.routes.insert(
        0, Route(f"{CONSTANT}{{size:int}}", Constant().answer, methods=["POST"])
    )
    return app


def main() -> int:
    """Serve until a signal, or until whoever has started this is gone."""
    end_with_stdin()
    with patch.object(server, "create_app", create_app_with_constant):
        return server.run_server(Path(sys.argv[1]), load_settings(Path(sys.argv[2])))


if __name__ == "__main__":
    sys.exit(main())
