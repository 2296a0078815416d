"""The interface of Hugging Face's text-embeddings-inference, of its version 1.

Its requests name no model: they are answered under the default view.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response

from embedcache.service.binary import JSON_TYPE
from embedcache.service.bodies import (
    JSON_COST,
    TOKEN_BYTES,
    build,
    features_of_texts,
    json_response,
    require_answer_fits,
    texts_of,
)
from embedcache.service.errors import ServiceProblem
from embedcache.service.features import Features
from embedcache.service.foreign_schemas import (
    EmbedAllRequest,
    EmbedRequest,
    InfoAnswer,
    TeiError,
    Token,
    TokenizeRequest,
)
from embedcache.service.routing import add_operation
from embedcache.service.schemas import Matrix, error_answers
from embedcache.service.served_view import ServedView
from embedcache.service.services import Services
from embedcache.service.tokens import token_list
from embedcache.service.vectors import check_dimensions, pool

_TAG = "text-embeddings-inference"


def make_router(services: Services) -> APIRouter:
    """The operations of text-embeddings-inference on a service."""
    router = APIRouter(tags=[_TAG])
    routes = TeiRoutes(services)
    errors = error_answers(TeiError, 404, 422, 429)
    vectors = {200: {"model": Matrix, "description": "A vector for each text."}, **errors}
    add_operation(router, "POST", "/embed", routes.embed, responses=vectors)
    add_operation(
        router, "POST", "/", routes.embed, responses=vectors, operation_id="embed_at_root"
    )
    add_operation(
        router,
        "POST",
        "/embed_all",
        routes.embed_all,
        responses={
            200: {"model": list[Matrix], "description": "A matrix for each text."},
            **errors,
        },
    )
    add_operation(
        router,
        "POST",
        "/tokenize",
        routes.tokenize,
        responses={
            200: {"model": list[list[Token]], "description": "The tokens of each text."},
            **errors,
        },
    )
    add_operation(
        router,
        "GET",
        "/info",
        routes.show_info,
        responses={
            200: {"model": InfoAnswer, "description": "The default view."},
            **error_answers(TeiError, 404),
        },
    )
    return router


class TeiRoutes:
    """The operations of text-embeddings-inference.

    Args:
        services: What they work with.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def embed(self, request: Request, body: EmbedRequest) -> Response:
        """One vector for each text.

        The mean of the rows of the text's matrix, divided by its Euclidean length unless
        `normalize` is false.
        """
        view = self._services.features.find_view(None)
        check_dimensions(view, body.dimensions)
        features = await self._features(request, view, body)
        normalize = body.normalize is not False
        return json_response(await pool(request, features, normalize=normalize))

    async def embed_all(self, request: Request, body: EmbedAllRequest) -> Response:
        """All rows of each text, as they are stored: not pooled, not normalised."""
        view = self._services.features.find_view(None)
        features = await self._features(request, view, body)
        num_bytes = require_answer_fits(features, self._services.settings.limits)

        def build_json() -> bytes:
            option = orjson.OPT_SERIALIZE_NUMPY
            matrices = features.reader.gather(features.refs)
            return b"[%s]" % b",".join(orjson.dumps(matrix, option=option) for matrix in matrices)

        body_bytes = await build(request, build_json, cost_bytes=JSON_COST * num_bytes)
        return Response(body_bytes, media_type=JSON_TYPE)

    async def tokenize(self, request: Request, body: TokenizeRequest) -> Response:
        """The tokens of each text, one for each row of its features.

        A text that is not stored is computed, as its tokens are found on the way. Where the
        module does not tell the ids or the places of its tokens, these are null, and `text` is
        empty: the number of tokens is right all the same. `start` and `stop` count characters
        (Unicode code points).
        """
        texts = texts_of(body.inputs, self._services.settings.limits, field="inputs")
        view = self._services.features.find_view(None)
        features = await features_of_texts(self._services, request, view, texts)
        keeps_special = body.add_special_tokens is not False

        def list_tokens() -> list[list[dict[str, Any]]]:
            records = features.reader.token_records(features.refs)
            lengths = features.refs.lengths.tolist()
            return [
                token_list(text, record, num_tokens=length, keeps_special=keeps_special)
                for text, record, length in zip(texts, records, lengths, strict=True)
            ]

        cost_bytes = TOKEN_BYTES * features.num_rows
        return json_response(await build(request, list_tokens, cost_bytes=cost_bytes))

    async def show_info(self, _request: Request) -> Response:
        """The default view and the server's limits."""
        from embedcache import __version__

        limits = self._services.settings.limits
        record = self._services.features.find_view(None).record
        return json_response(
            {
                "model_id": record.handle,
                "model_sha": record.view.module_digest,
                "model_dtype": record.view.dtype,
                "model_type": {"embedding": {"pooling": "mean"}},
                "max_concurrent_requests": limits.max_queued_texts,
                "max_input_length": record.view.max_tokens,
                "max_batch_tokens": limits.max_batch_tokens,
                "max_batch_requests": None,
                "max_client_batch_size": limits.max_texts,
                "max_text_bytes": limits.max_text_bytes,
                "auto_truncate": record.view.overflow == "truncate",
                "tokenization_workers": 1,
                "version": __version__,
                "sha": None,
                "docker_label": None,
            }
        )

    async def _features(
        self, request: Request, view: ServedView, body: EmbedAllRequest
    ) -> Features:
        """The features of a request's texts, unless one was cut that must not be, or on its left.

        Raises:
            ServiceProblem: 422, or as `FeatureService.features` does.
        """
        texts = texts_of(body.inputs, self._services.settings.limits, field="inputs")
        features = await features_of_texts(self._services, request, view, texts)
        is_left = body.truncation_direction in ("left", "Left")
        if body.truncate is not False and not is_left:
            return features
        cut = np.flatnonzero(features.refs.truncated).tolist()
        if cut:
            limit = view.record.view.max_tokens
            advice = "leave truncation_direction out" if is_left else "leave truncate out"
            raise ServiceProblem(
                422,
                "text_too_long",
                f"inputs.{cut[0]}: the text has more than {limit} rows and was cut at its end;"
                f" {advice} to take it so",
            )
        return features
