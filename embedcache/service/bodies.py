"""What a request's body holds, and the features that it asks for.

Bodies are parsed by orjson, which follows RFC 8259: it refuses what is no JSON for other
programs, such as NaN, a lone surrogate, or bytes that are no UTF-8, and nesting beyond 1,024
levels.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import orjson
from fastapi import Request, Response
from pydantic import BaseModel, ValidationError

from embedcache.keys import KEY_BYTES, Keys, utf8_of_text
from embedcache.service.binary import JSON_TYPE
from embedcache.service.errors import ServiceProblem
from embedcache.service.request_notes import notes_of

if TYPE_CHECKING:
    from embedcache.service.features import Features
    from embedcache.service.served_view import ServedView
    from embedcache.service.services import Services
    from embedcache.service.settings import Limits

BodyModel = TypeVar("BodyModel", bound=BaseModel)
Result = TypeVar("Result")

SMALL_BYTES = 1 << 21
"""Of matrices that are gathered and packed in the event loop, which takes about a millisecond. On
another thread they take twice as long, as memory is not kept there from one answer to the next."""

POOLING_COST = 2
JSON_COST = 32
"""How much longer than packing it takes to pool numbers, and to write them as decimals."""

TOKEN_BYTES = 1 << 10
"""What listing a token costs, in bytes that are packed: about half a microsecond."""


def parse_body(raw: bytes, model: type[BodyModel]) -> BodyModel:
    """A JSON body as what an operation takes.

    Raises:
        ServiceProblem: 422, if it is no JSON or not what the operation takes.
    """
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ServiceProblem(
            422, "invalid_json", f"the body is no JSON: {error.msg} (at character {error.pos + 1})"
        ) from None
    try:
        return model.model_validate(parsed)
    except ValidationError as error:
        raise ServiceProblem(422, "invalid_request", _first_fault(error, model)) from None


def _first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    """Where the body is not what it should be, and why; it shows nothing of what was sent."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    known = ", ".join(model.model_fields)
    if fault["type"] == "extra_forbidden":
        return f"the body has a field that is not known here; there are {known}"
    place = ".".join(str(part) for part in fault["loc"]) or "the body"
    if fault["type"] == "missing":
        return f"{place} is missing; there are {known}"
    message = fault["msg"]
    return f"{place}: {message[0].lower()}{message[1:]}"


def texts_of(value: Any, limits: Limits, *, field: str) -> list[str]:
    """The texts of a field that holds one text or a list of texts.

    Raises:
        ServiceProblem: 422, if it holds something else, or a text that is too long; 413 for too
            many texts.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise _not_texts(field, "one text or a list of texts")
    if not texts:
        raise ServiceProblem(422, "no_texts", f"{field}: the list is empty; give one text or more")
    if len(texts) > limits.max_texts:
        raise ServiceProblem(
            413,
            "too_many_texts",
            f"{field}: {len(texts)} texts; this server takes up to {limits.max_texts} a request",
        )
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            if isinstance(text, int | list):
                raise _not_texts(field, "texts, as this server has no way back from token ids")
            raise _not_texts(f"{field}.{place}", "a text")
        # No character takes more than four bytes of UTF-8: most texts need not be encoded here.
        if 4 * len(text) > limits.max_text_bytes:
            num_bytes = len(utf8_of_text(text))
            if num_bytes > limits.max_text_bytes:
                raise ServiceProblem(
                    422,
                    "text_too_long",
                    f"{field}.{place}: {num_bytes} bytes of UTF-8; this server takes up to"
                    f" {limits.max_text_bytes} a text",
                )
    return texts


def _not_texts(place: str, wanted: str) -> ServiceProblem:
    return ServiceProblem(422, "invalid_request", f"{place} must be {wanted}")


def keys_of_body(raw: bytes, limits: Limits) -> Keys:
    """The keys of a binary body: 16 bytes each, one after the other, (n, 16).

    Raises:
        ServiceProblem: 422, if it does not consist of keys; 413 for too many.
    """
    if len(raw) % KEY_BYTES:
        raise ServiceProblem(
            422, "invalid_keys", f"{len(raw)} bytes are no list of keys of {KEY_BYTES} bytes each"
        )
    if len(raw) > KEY_BYTES * limits.max_keys:
        raise ServiceProblem(
            413,
            "too_many_keys",
            f"{len(raw) // KEY_BYTES} keys; this server takes up to {limits.max_keys} a request",
        )
    return np.frombuffer(raw, np.uint8).reshape(-1, KEY_BYTES)


def key_of_hex(digits: str) -> Keys:
    """One key, (1, 16), of its 32 hexadecimal digits.

    Raises:
        ServiceProblem: 422, if they are something else.
    """
    try:
        raw = bytes.fromhex(digits)
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES or len(digits) != 2 * KEY_BYTES:
        raise ServiceProblem(
            422, "invalid_keys", f"a key has {2 * KEY_BYTES} hexadecimal digits, as `get` shows it"
        )
    return np.frombuffer(raw, np.uint8).reshape(1, KEY_BYTES)


async def features_of_texts(
    services: Services, request: Request, view: ServedView, texts: Sequence[str]
) -> Features:
    """The features of texts, computed where they are missing and may be.

    Raises:
        ServiceProblem: as `FeatureService.features` does.
    """
    notes = notes_of(request)
    features = await services.features.features(
        view, texts, may_compute=notes.may_compute, deadline=notes.deadline
    )
    notes.add(hits=features.hits, misses=features.misses)
    return features


async def build(request: Request, function: Callable[[], Result], *, cost_bytes: int) -> Result:
    """Run a function that builds an answer: a long one aside, so that short ones pass it.

    Args:
        request: Whose answer it is.
        function: What to run.
        cost_bytes: How many bytes could be packed in the same time; see `JSON_COST`.

    Raises:
        ServiceProblem: 504, if the request's deadline passes.
    """
    if cost_bytes <= SMALL_BYTES:
        return function()
    remaining_s = notes_of(request).deadline - time.monotonic()
    try:
        async with asyncio.timeout(max(0.0, remaining_s)):
            return await asyncio.to_thread(function)
    except TimeoutError:
        raise ServiceProblem(
            504, "deadline", "the answer was not ready in time; ask for fewer texts at once"
        ) from None


def json_response(value: Any) -> Response:
    """An answer of JSON; NumPy's arrays and numbers are taken too."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type=JSON_TYPE)


def require_answer_fits(features: Features, limits: Limits) -> int:
    """Refuse matrices that are more than an answer holds.

    Returns:
        How many bytes they take.

    Raises:
        ServiceProblem: 413.
    """
    num_bytes = num_bytes_of(features)
    if num_bytes > limits.max_response_bytes:
        raise ServiceProblem(
            413,
            "answer_too_large",
            f"the matrices are {num_bytes} bytes, an answer holds up to"
            f" {limits.max_response_bytes}; ask for fewer at once",
        )
    return num_bytes


def num_bytes_of(features: Features) -> int:
    """How many bytes the matrices of some features take."""
    reader = features.reader
    return features.num_rows * int(reader.view.dim) * reader.dtype.itemsize
