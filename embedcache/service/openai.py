"""OpenAI's interface: ``POST /v1/embeddings`` and ``GET /v1/models``.

A model is a view. A text's embedding is the mean of its rows, divided by its length.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from embedcache.service.bodies import features_of_texts, json_response, texts_of
from embedcache.service.errors import ServiceProblem
from embedcache.service.foreign_schemas import StatusAnswer
from embedcache.service.routing import add_operation
from embedcache.service.schemas import (
    EmbeddingsAnswer,
    EmbeddingsRequest,
    Model,
    ModelsAnswer,
    OpenAIError,
    error_answers,
)
from embedcache.service.served_view import ServedView
from embedcache.service.services import Services
from embedcache.service.tf_serving import status_of_run
from embedcache.service.vectors import check_dimensions, pool

_TAG = "OpenAI"


def make_router(services: Services) -> APIRouter:
    """OpenAI's operations on a service."""
    router = APIRouter(tags=[_TAG])
    routes = OpenAIRoutes(services)
    add_operation(
        router,
        "POST",
        "/v1/embeddings",
        routes.create_embeddings,
        responses={
            200: {"model": EmbeddingsAnswer, "description": "The embeddings."},
            **error_answers(OpenAIError, 404, 422, 429),
        },
    )
    add_operation(
        router,
        "GET",
        "/v1/models",
        routes.list_models,
        responses={
            200: {"model": ModelsAnswer, "description": "The views."},
            **error_answers(OpenAIError),
        },
    )
    add_operation(
        router,
        "GET",
        "/v1/models/{model}",
        routes.show_model,
        responses={
            200: {
                "model": Model | StatusAnswer,
                "description": "The view, or the state of the run.",
            },
            **error_answers(OpenAIError, 404),
        },
    )
    return router


class OpenAIRoutes:
    """OpenAI's operations.

    Args:
        services: What they work with.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create_embeddings(self, request: Request, body: EmbeddingsRequest) -> Response:
        """One vector for each text.

        The mean of the rows of the text's matrix, divided by its Euclidean length; zeros for a
        text without rows. `usage` counts rows. Arrays of token ids are refused: a view's features
        are those of texts.
        """
        texts = texts_of(body.input, self._services.settings.limits, field="input")
        view = self._services.features.find_view(body.model)
        check_dimensions(view, body.dimensions)
        features = await features_of_texts(self._services, request, view, texts)
        vectors = await pool(request, features, normalize=True)
        encode = _encode if body.encoding_format == "base64" else _as_is
        return json_response(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": encode(vector)}
                    for index, vector in enumerate(vectors)
                ],
                "model": body.model or view.alias or view.fingerprint,
                "usage": {
                    "prompt_tokens": features.num_rows,
                    "total_tokens": features.num_rows,
                },
            }
        )

    async def list_models(self, _request: Request) -> Response:
        """The views that are served, as models."""
        models = [_record_of_view(view) for view in self._services.features.views]
        return json_response({"object": "list", "data": models})

    async def show_model(self, _request: Request, model: str) -> Response:
        """One view, or one run.

        The name of a view is answered in OpenAI's form, that of a run in TensorFlow Serving's:
        both interfaces have this path.
        """
        try:
            view = self._services.features.find_view(model)
        except ServiceProblem as problem:
            if problem.status != 404:
                raise
            run = self._services.predictions.find_run(model)
            return json_response(status_of_run(run))
        return json_response(_record_of_view(view))


def _record_of_view(view: ServedView) -> dict[str, Any]:
    return {
        "id": view.alias or view.record.fingerprint,
        "object": "model",
        "created": 0,
        "owned_by": view.record.handle,
    }


def _encode(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4", copy=False).data).decode("ascii")


def _as_is(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector
