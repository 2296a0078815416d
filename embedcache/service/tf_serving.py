"""TensorFlow Serving's REST interface: texts in, probabilities of a run's labels out.

Its API: https://www.tensorflow.org/tfx/serving/api_rest. A run has one version, 1, and one
signature, ``serving_default``, with the input ``text`` and one output.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from fastapi import APIRouter, Request, Response

from embedcache.service.bodies import json_response, texts_of
from embedcache.service.errors import ServiceProblem
from embedcache.service.foreign_schemas import (
    MetadataAnswer,
    OutputsAnswer,
    PredictionsAnswer,
    PredictRequest,
    StatusAnswer,
    TFServingError,
)
from embedcache.service.predicting import ServedRun
from embedcache.service.request_notes import notes_of
from embedcache.service.routing import add_operation
from embedcache.service.schemas import error_answers
from embedcache.service.services import Services

_TAG = "TensorFlow Serving"
_VERSION = "1"
_INPUT, _OUTPUT = "text", "probabilities"
_ENCODED = "b64"


def make_router(services: Services) -> APIRouter:
    """TensorFlow Serving's operations on a service."""
    router = APIRouter(tags=[_TAG])
    routes = TFServingRoutes(services)
    run, version = "/v1/models/{run}", "/v1/models/{run}/versions/{version}"
    probabilities = {
        200: {
            "model": PredictionsAnswer | OutputsAnswer,
            "description": "The probabilities: `predictions` by rows, `outputs` by columns.",
        },
        **error_answers(TFServingError, 404, 422, 429),
    }
    metadata = {
        200: {"model": MetadataAnswer, "description": "The signature, and the labels."},
        **error_answers(TFServingError, 404),
    }
    status = {
        200: {"model": StatusAnswer, "description": "The state of the run."},
        **error_answers(TFServingError, 404),
    }
    for method, path, endpoint, answers in (
        ("POST", f"{run}:predict", routes.predict, probabilities),
        ("POST", f"{version}:predict", routes.predict_version, probabilities),
        ("GET", f"{run}/metadata", routes.show_metadata, metadata),
        ("GET", f"{version}/metadata", routes.show_metadata_of_version, metadata),
        ("GET", version, routes.show_version, status),
    ):
        add_operation(router, method, path, endpoint, responses=answers)
    return router


class TFServingRoutes:
    """TensorFlow Serving's operations; a run's own state is at `OpenAIRoutes.show_model`.

    Args:
        services: What they work with.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def predict(self, request: Request, run: str, body: PredictRequest) -> Response:
        """The probability of each of a run's labels, for each text.

        Features that are not stored are computed and kept. Labels are in sorted order, as
        `GET /v1/runs` and the run's metadata list them.
        """
        found = self._services.predictions.find_run(run)
        is_by_row = body.instances is not None
        if is_by_row == (body.inputs is not None):
            raise ServiceProblem(
                422, "invalid_request", "give either instances (by rows) or inputs (by columns)"
            )
        field, given = ("instances", body.instances) if is_by_row else ("inputs", body.inputs)
        texts = texts_of(_texts_in(given), self._services.settings.limits, field=field)
        notes = notes_of(request)
        predictions = await self._services.predictions.predict(
            found,
            texts,
            may_compute=notes.may_compute,
            deadline=notes.deadline,
            on_features=lambda features: notes.add(hits=features.hits, misses=features.misses),
        )
        rows = [list(prediction.probabilities.values()) for prediction in predictions]
        return json_response({"predictions" if is_by_row else "outputs": rows})

    async def predict_version(
        self, request: Request, run: str, version: str, body: PredictRequest
    ) -> Response:
        """The same, with the run's version named: it has one, 1."""
        self._find_version(run, version)
        return await self.predict(request, run, body)

    async def show_metadata(self, _request: Request, run: str) -> Response:
        """What a run takes and gives."""
        found = self._services.predictions.find_run(run)
        num_labels = len(found.labels)
        signature = {
            "inputs": {_INPUT: _tensor("DT_STRING", _INPUT, -1)},
            "outputs": {_OUTPUT: _tensor("DT_FLOAT", _OUTPUT, -1, num_labels)},
            "method_name": "tensorflow/serving/predict",
        }
        return json_response(
            {
                "model_spec": {"name": found.run, "signature_name": "", "version": _VERSION},
                "metadata": {
                    "signature_def": {"signature_def": {"serving_default": signature}},
                    "labels": list(found.labels),
                },
            }
        )

    async def show_metadata_of_version(self, request: Request, run: str, version: str) -> Response:
        """The same, with the run's version named: it has one, 1."""
        self._find_version(run, version)
        return await self.show_metadata(request, run)

    async def show_version(self, _request: Request, run: str, version: str) -> Response:
        """Whether a run can be asked."""
        return json_response(status_of_run(self._find_version(run, version)))

    def _find_version(self, run: str, version: str) -> ServedRun:
        found = self._services.predictions.find_run(run)
        if version != _VERSION:
            raise ServiceProblem(
                404, "unknown_version", f"run {found.run} has one version: {_VERSION}"
            )
        return found


def status_of_run(run: ServedRun) -> dict[str, Any]:
    """A run's state, as TensorFlow Serving tells it: it is there, so it can be asked."""
    del run
    status = {"error_code": "OK", "error_message": ""}
    return {"model_version_status": [{"version": _VERSION, "state": "AVAILABLE", "status": status}]}


def _texts_in(given: Any) -> Any:
    """The texts of a named or an unnamed input, by rows or by columns; the rest as it is.

    Raises:
        ServiceProblem: 422, if an object has other names than the input's.
    """
    if isinstance(given, list):
        return [_text_in(_named(row)) for row in given]
    given = _named(given)
    return [_text_in(text) for text in given] if isinstance(given, list) else _text_in(given)


def _named(given: Any) -> Any:
    """What an object names as the input; the rest as it is."""
    if not isinstance(given, dict) or given.keys() == {_ENCODED}:
        return given
    if given.keys() != {_INPUT}:
        raise ServiceProblem(422, "invalid_request", f'there is one input: {{"{_INPUT}": …}}')
    return given[_INPUT]


def _text_in(given: Any) -> Any:
    """A text that is encoded as TensorFlow Serving encodes bytes; the rest as it is."""
    is_encoded = isinstance(given, dict) and given.keys() == {_ENCODED}
    return _decoded(given[_ENCODED]) if is_encoded else given


def _decoded(encoded: Any) -> str:
    """A text as TensorFlow Serving's clients send bytes.

    Raises:
        ServiceProblem: 422, if it is not the base64 of UTF-8.
    """
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (TypeError, ValueError, binascii.Error):
        raise ServiceProblem(
            422, "invalid_request", "b64 must be the base64 of a text in UTF-8"
        ) from None


def _tensor(dtype: str, name: str, *sizes: int) -> dict[str, Any]:
    dimensions = [{"size": str(size), "name": ""} for size in sizes]
    return {
        "dtype": dtype,
        "tensor_shape": {"dim": dimensions, "unknown_rank": False},
        "name": f"{name}:0",
    }
