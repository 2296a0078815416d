"""What a service has: its views, the datasets of its store, and its runs."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from embedcache.service.binary import NPZ_TYPE
from embedcache.service.bodies import json_response
from embedcache.service.negotiation import choose_media_type
from embedcache.service.routing import add_operation
from embedcache.service.schemas import (
    DatasetsAnswer,
    OwnError,
    RunsAnswer,
    ViewsAnswer,
    error_answers,
)
from embedcache.service.served_view import ServedView
from embedcache.service.services import Services
from embedcache.store.store import FeatureStore
from embedcache.wire import json_array, pack_arrays

_TAG = "listings"
_BINARY = {"schema": {"type": "string", "format": "binary"}}


def add_listings(router: APIRouter, services: Services) -> None:
    """Add the operations that tell what a service has."""
    routes = ListingRoutes(services)
    errors = error_answers(OwnError)
    for path, endpoint, model, meaning in (
        ("/v1/views", routes.list_views, ViewsAnswer, "The views."),
        ("/v1/datasets", routes.list_datasets, DatasetsAnswer, "The datasets."),
        ("/v1/runs", routes.list_runs, RunsAnswer, "The runs."),
    ):
        add_operation(
            router,
            "GET",
            path,
            endpoint,
            tags=[_TAG],
            responses={200: {"model": model, "description": meaning}, **errors},
        )
    add_operation(
        router,
        "GET",
        # A dataset's name may have slashes.
        "/v1/datasets/{name:path}",
        routes.show_dataset,
        tags=[_TAG],
        # Not the JSON that a response without a model is taken to have.
        response_class=Response,
        responses={
            200: {"description": "An .npz.", "content": {NPZ_TYPE: _BINARY}},
            **error_answers(OwnError, 404, 406),
        },
    )


class ListingRoutes:
    """The operations that tell what a service has.

    The catalog is asked for datasets on another thread: a hit does not wait for SQL.

    Args:
        services: What they work with.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list_views(self, _request: Request) -> Response:
        """The views that are served, and what is stored under each."""
        features = self._services.features
        default = features.find_view(None).fingerprint if features.views else None
        records = [_record_of_view(view, default) for view in features.views]
        return json_response({"views": records})

    async def list_datasets(self, _request: Request) -> Response:
        """All versions of all registered datasets, oldest first."""
        records = await asyncio.to_thread(_dataset_records, self._services.features.store)
        return json_response({"datasets": records})

    async def show_dataset(self, request: Request, name: str) -> Response:
        """The keys, labels and splits of a dataset.

        `NAME`, which is its newest version, or `NAME@VERSION`. An .npz with the arrays `keys`,
        `label_codes`, `label_splits` and `split_codes`, and `record`, the UTF-8 bytes of a JSON
        object with `name`, `version`, `label_names`, `split_names` and `newest_view`.
        """
        choose_media_type(request.headers.get("accept"), (NPZ_TYPE,))
        body = await asyncio.to_thread(_packed_dataset, self._services.features.store, name)
        return Response(body, media_type=NPZ_TYPE)

    async def list_runs(self, _request: Request) -> Response:
        """The runs that predict, oldest first."""
        records = [
            {
                "run": run.run,
                "dataset": run.record.dataset,
                "version": run.record.version,
                "view": run.record.view,
                "labels": list(run.labels),
                "dev": run.record.record.get("dev"),
                "test": run.record.record.get("test"),
            }
            for run in self._services.predictions.runs
        ]
        return json_response({"runs": records})


def _record_of_view(served: ServedView, default: str | None) -> dict[str, Any]:
    record, size = served.record, served.size
    return {
        "fingerprint": record.fingerprint,
        "alias": served.alias,
        "module": record.handle,
        "preprocess": record.preprocess,
        "default": record.fingerprint == default,
        "texts": size.num_texts,
        "tokens": size.num_tokens,
        "bytes": size.num_bytes,
        "shards": size.num_shards,
        "view": orjson.loads(record.view.to_json()),
    }


def _dataset_records(store: FeatureStore) -> list[dict[str, Any]]:
    return [
        {
            "name": record.name,
            "version": record.version,
            "texts": record.num_documents,
            "unique": record.num_unique,
            "created_at": record.created_at,
            "newest_view": store.catalog.newest_view_of(record.version),
        }
        for record in store.catalog.datasets()
    ]


def _packed_dataset(store: FeatureStore, name: str) -> bytes:
    dataset = store.load_dataset(name)
    record = {
        "name": dataset.name,
        "version": dataset.version,
        "label_names": list(dataset.label_names),
        "split_names": list(dataset.split_names),
        "newest_view": store.catalog.newest_view_of(dataset.version),
    }
    return pack_arrays(
        {
            "keys": dataset.keys,
            "label_codes": dataset.label_codes,
            "label_splits": dataset.label_splits,
            "split_codes": dataset.split_codes,
            "record": json_array(record),
        }
    )
