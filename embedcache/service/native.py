"""The service's own interface: matrices of texts, by text or by key, and what there is.

``lookup`` and ``gather`` take keys and not texts: a client that has a data set's keys reads its
features without any text going over the wire.
"""

from __future__ import annotations

import numpy as np
from fastapi import APIRouter, Request, Response

from embedcache.keys import Keys
from embedcache.service.binary import (
    ARROW_TYPE,
    JSON_TYPE,
    NPZ_TYPE,
    to_bytes,
)
from embedcache.service.bodies import (
    JSON_COST,
    build,
    features_of_texts,
    key_of_hex,
    keys_of_body,
    require_answer_fits,
    texts_of,
)
from embedcache.service.errors import ServiceProblem
from embedcache.service.features import Features
from embedcache.service.listings import add_listings
from embedcache.service.negotiation import choose_media_type
from embedcache.service.request_notes import notes_of
from embedcache.service.routing import add_operation
from embedcache.service.schemas import (
    FeaturesAnswer,
    FeaturesRequest,
    OwnError,
    error_answers,
)
from embedcache.service.served_view import ServedView
from embedcache.service.services import Services
from embedcache.store.refs import FeatureRefs
from embedcache.wire import pack_arrays

_TAG = "features"
_MATRIX_TYPES = (JSON_TYPE, ARROW_TYPE, NPZ_TYPE)
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_KEYS_BODY = {
    "requestBody": {
        "required": True,
        "description": "Keys of 16 bytes each, one after the other.",
        "content": {"application/octet-stream": _BINARY},
    }
}


def make_router(services: Services) -> APIRouter:
    """The service's own operations."""
    router = APIRouter()
    routes = FeatureRoutes(services)
    matrices = {
        200: {
            "model": FeaturesAnswer,
            "description": "The matrices, as JSON, as an Arrow IPC stream, or as an .npz.",
            "content": {ARROW_TYPE: _BINARY, NPZ_TYPE: _BINARY},
        }
    }
    arrays = {200: {"description": "An .npz.", "content": {NPZ_TYPE: _BINARY}}}
    add_operation(
        router,
        "POST",
        "/v1/features",
        routes.create_features,
        tags=[_TAG],
        responses={**matrices, **error_answers(OwnError, 404, 406, 422, 429)},
    )
    for name, endpoint in (("lookup", routes.look_up), ("gather", routes.gather)):
        add_operation(
            router,
            "POST",
            f"/v1/features/{{view}}/{name}",
            endpoint,
            tags=[_TAG],
            # Not the JSON that a response without a model is taken to have.
            response_class=Response,
            responses={**arrays, **error_answers(OwnError, 404, 422)},
            openapi_extra=_KEYS_BODY,
        )
    add_operation(
        router,
        "GET",
        "/v1/features/{view}/{key}",
        routes.show_feature,
        tags=[_TAG],
        responses={**matrices, **error_answers(OwnError, 404, 406, 422)},
    )
    add_listings(router, services)
    return router


class FeatureRoutes:
    """The service's own operations on features.

    Args:
        services: What they work with.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create_features(self, request: Request, body: FeaturesRequest) -> Response:
        """The matrices of texts, one row for each token.

        Texts that are not stored are computed and kept, before they are answered. `Accept` chooses
        the form: JSON (the default), `application/vnd.apache.arrow.stream`, with the columns
        `key`, `truncated` and `values`, or `application/x-npz`, with the arrays `keys`,
        `row_splits`, `values` and `truncated`.
        """
        media_type = choose_media_type(request.headers.get("accept"), _MATRIX_TYPES)
        texts = texts_of(body.texts, self._services.settings.limits, field="texts")
        view = self._services.features.find_view(body.view)
        features = await features_of_texts(self._services, request, view, texts)
        return await self._matrices(request, view, features, media_type)

    async def show_feature(self, request: Request, view: str, key: str) -> Response:
        """The matrix of one stored text, by its key.

        The key is the 16-byte BLAKE2b of the text's UTF-8 bytes. The answer has the form of
        `POST /v1/features`.
        """
        media_type = choose_media_type(request.headers.get("accept"), _MATRIX_TYPES)
        served = self._services.features.find_view(view)
        features = self._stored(request, served, key_of_hex(key))
        return await self._matrices(request, served, features, media_type)

    async def look_up(self, request: Request, view: str) -> Response:
        """Which keys are stored, and how many rows each has.

        The arrays `num_tokens` (-1: not stored), `truncated` and `windowed`.
        """
        served = self._services.features.find_view(view)
        refs = self._locate(request, served, await self._keys(request))
        num_tokens = np.where(refs.shards < 0, -1, refs.lengths)
        arrays = {
            "num_tokens": num_tokens,
            "truncated": refs.truncated,
            "windowed": refs.windowed,
        }
        return Response(pack_arrays(arrays), media_type=NPZ_TYPE)

    async def gather(self, request: Request, view: str) -> Response:
        """The matrices of stored texts, by their keys.

        The arrays `keys`, `row_splits`, `values` and `truncated`. All keys must be stored.
        """
        served = self._services.features.find_view(view)
        features = self._stored(request, served, await self._keys(request))
        return await self._matrices(request, served, features, NPZ_TYPE)

    async def _keys(self, request: Request) -> Keys:
        return keys_of_body(await request.body(), self._services.settings.limits)

    def _locate(self, request: Request, view: ServedView, keys: Keys) -> FeatureRefs:
        refs = self._services.features.locate(view, keys)
        num_missing = int(np.count_nonzero(refs.shards < 0))
        notes_of(request).add(hits=len(refs) - num_missing, misses=num_missing)
        return refs

    def _stored(self, request: Request, view: ServedView, keys: Keys) -> Features:
        """Stored features, if all are there.

        Raises:
            ServiceProblem: 404.
        """
        refs = self._locate(request, view, keys)
        num_missing = int(np.count_nonzero(refs.shards < 0))
        self._services.metrics.count_texts(
            view.fingerprint, hits=len(refs) - num_missing, misses=num_missing
        )
        _require_all(refs)
        return Features(refs, view.reader, keys, len(refs), 0)

    async def _matrices(
        self, request: Request, view: ServedView, features: Features, media_type: str
    ) -> Response:
        """An answer that holds the matrices of some features.

        Raises:
            ServiceProblem: 413, if one answer does not hold them.
        """
        num_bytes = require_answer_fits(features, self._services.settings.limits)

        def build_body() -> bytes | memoryview:
            return to_bytes(view.fingerprint, features, media_type)

        cost = JSON_COST if media_type == JSON_TYPE else 1
        body = await build(request, build_body, cost_bytes=cost * num_bytes)
        return Response(body, media_type=media_type)


def _require_all(refs: FeatureRefs) -> None:
    """Refuse texts of which one is not stored.

    Raises:
        ServiceProblem: 404, which names the first one's place.
    """
    missing = np.flatnonzero(refs.shards < 0)
    if len(missing):
        raise ServiceProblem(
            404,
            "not_stored",
            f"{len(missing)} of {len(refs)} keys have no features under this view (the first: key"
            f" {missing[0] + 1}); POST /v1/features with their texts computes them",
        )
