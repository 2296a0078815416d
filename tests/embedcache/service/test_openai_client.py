"""OpenAI's own Python package, unmodified, against a started server."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openai
import pytest

from tests.embedcache.service import route_store
from tests.embedcache.service.conftest import KEYS
from tests.embedcache.service.route_store import LONG_TEXT, MISSING, SILENT_VIEW, TEXTS, VIEW
from tests.embedcache.service.serving import ServerProcess, start_server


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, key_file: Path, write_config: Callable[[str], Path]
) -> Iterator[ServerProcess]:
    store = route_store.make_route_store(tmp_path_factory.mktemp("openai") / "store")
    config = write_config("[limits]\nmax_queued_texts = 1\nmax_text_bytes = 1000\n")
    options = ["--view", f"films={VIEW.fingerprint}", "--view", SILENT_VIEW.fingerprint]
    options += ["--api-key-file", str(key_file), "--config", str(config)]
    with start_server(store.path, *options) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=KEYS["computer"], max_retries=0
    ) as opened:
        yield opened


def test_a_list_of_texts_gets_their_normalised_means_in_order(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="films", input=list(TEXTS), encoding_format="float")
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    for text, item in zip(TEXTS, answer.data, strict=True):
        np.testing.assert_allclose(item.embedding, route_store.mean_of(text), atol=1e-6)


def test_a_single_text_gets_one_embedding(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="films", input=TEXTS[0])
    assert answer.object == "list"
    assert answer.model == "films"
    assert len(answer.data) == 1
    np.testing.assert_allclose(answer.data[0].embedding, route_store.mean_of(TEXTS[0]), atol=1e-6)


def test_base64_holds_the_bits_of_the_floats(client: openai.OpenAI) -> None:
    as_floats = client.embeddings.create(model="films", input=TEXTS[1], encoding_format="float")
    encoded = client.embeddings.create(model="films", input=TEXTS[1], encoding_format="base64")
    text = encoded.data[0].embedding
    assert isinstance(text, str), "asked for by name, it is not decoded by the client"
    numbers = np.frombuffer(base64.b64decode(text), "<f4")
    assert numbers.tobytes() == np.array(as_floats.data[0].embedding, np.float32).tobytes()


def test_usage_counts_rows(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="films", input=list(TEXTS))
    expected = sum(len(route_store.words_of(text)) for text in TEXTS)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == expected


def test_a_view_is_named_by_its_fingerprint_too(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=SILENT_VIEW.fingerprint, input=TEXTS[0])
    expected = route_store.mean_of(TEXTS[0], SILENT_VIEW)
    np.testing.assert_allclose(answer.data[0].embedding, expected, atol=1e-6)


def test_without_a_model_it_is_the_default_one(server: ServerProcess) -> None:
    answer = server.request("POST", "/v1/embeddings", {"input": TEXTS[0]}, token=KEYS["reader"])
    assert json.loads(answer.body)["model"] == "films"


def test_dimensions_may_be_the_views_own(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(
        model="films", input=TEXTS[0], dimensions=route_store.DIM, user="somebody"
    )
    assert len(answer.data[0].embedding) == route_store.DIM


def test_other_dimensions_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="not shortened") as caught:
        client.embeddings.create(model="films", input=TEXTS[0], dimensions=2)
    assert caught.value.code == "dimensions"


def test_the_models_are_the_views(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["films", SILENT_VIEW.fingerprint]
    assert models[1].owned_by == route_store.SILENT_HANDLE
    assert client.models.retrieve("films").id == "films"


def test_a_model_that_is_not_there_is_told_as_the_package_knows_it(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert caught.value.code == "unknown_view"
    assert caught.value.type == "not_found_error"


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]])
def test_arrays_of_token_ids_are_refused(client: openai.OpenAI, tokens: object) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="token ids"):
        client.embeddings.create(model="films", input=tokens)  # type: ignore[arg-type]


def test_too_many_texts_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="up to 32") as caught:
        client.embeddings.create(model="films", input=[TEXTS[0]] * 33)
    assert caught.value.status_code == 413
    assert len(client.embeddings.create(model="films", input=[TEXTS[0]] * 32).data) == 32


def test_a_text_that_is_too_long_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match=r"input\.1.*1002 bytes") as caught:
        client.embeddings.create(model="films", input=[LONG_TEXT, "é" * 501])
    assert caught.value.code == "text_too_long"


def test_a_wrong_key_is_an_authentication_error(server: ServerProcess) -> None:
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_a_key_that_may_only_read_gets_what_is_stored_and_no_more(server: ServerProcess) -> None:
    key = KEYS["reader"]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as reader:
        assert len(reader.embeddings.create(model="films", input=TEXTS[0]).data) == 1
        with pytest.raises(openai.PermissionDeniedError) as caught:
            reader.embeddings.create(model="films", input=MISSING)
    assert caught.value.code == "compute_scope"


def test_a_full_queue_is_a_rate_limit_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        client.embeddings.create(model="films", input=[MISSING, f"{MISSING} either"])
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_the_async_client_is_answered_too(server: ServerProcess) -> None:
    import asyncio

    async def ask() -> list[float]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=KEYS["computer"], max_retries=0
        ) as opened:
            answer = await opened.embeddings.create(model="films", input=TEXTS[0])
        return answer.data[0].embedding

    np.testing.assert_allclose(asyncio.run(ask()), route_store.mean_of(TEXTS[0]), atol=1e-6)
