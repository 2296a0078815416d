"""The contract of `EncoderContract`, on real modules of every kind and on fakes in NumPy."""

from __future__ import annotations

import inspect
import itertools
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcache
from embedcache.store.store import FeatureStore
from tests.embedcache.modules.computed import AnyEncoder, Computed, compute_texts
from tests.embedcache.modules.encoder_contract import EncoderContract, ReloadContract, Subject
from tests.embedcache.modules.fake_encoders import fake_sequence_subject, fake_token_subject
from tests.embedcache.modules.hub_subjects import HubModules, names_of, shared_hub_modules
from tests.hub_modules import bert_encoder
from tests.hub_modules.elmo import expected_elmo
from tests.hub_modules.transformer import TransformerRecipe, expected_layers
from tests.hub_modules.vocabulary import piece_ids, text_piece_ids

RECIPES = {"albert": bert_encoder.ALBERT, "electra": bert_encoder.ELECTRA}
ELMOS: dict[str, dict[str, Any]] = {
    "elmo": {},
    "elmo-train-graph": {},
    "elmo-like": {"dim": 12, "seed": 1},
}


@pytest.fixture(scope="session")
def hub(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HubModules:
    return shared_hub_modules(pytestconfig, tmp_path_factory)


class TestBagsOfWords(ReloadContract):
    @pytest.fixture(scope="class", params=names_of("bag-of-words"))
    @classmethod
    def subject(cls, request: pytest.FixtureRequest, hub: HubModules) -> Subject:
        return hub.subject(request.param)


class TestSentenceEncoders(ReloadContract):
    @pytest.fixture(scope="class", params=names_of("sentence-encoder"))
    @classmethod
    def subject(cls, request: pytest.FixtureRequest, hub: HubModules) -> Subject:
        return hub.subject(request.param)


class TestPartsOfTexts(EncoderContract):
    @pytest.fixture(
        scope="class",
        params=[("use", "window"), ("use", "token"), ("use-lite", "window"), ("nnlm", "sentence")],
        ids="-by-".join,
    )
    @classmethod
    def subject(cls, request: pytest.FixtureRequest, hub: HubModules) -> Subject:
        name, granularity = request.param
        return hub.subject(name, granularity=granularity)


class TestElmo(ReloadContract):
    @pytest.fixture(scope="class", params=ELMOS)
    @classmethod
    def name(cls, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, name: str, hub: HubModules) -> Subject:
        return hub.subject(name)

    def test_rows_are_those_of_a_bidirectional_model_in_numpy(
        self, computed: Computed, encoder: AnyEncoder, name: str
    ) -> None:
        for text, matrix in computed.matrices.items():
            words = [word.decode() for word in encoder.tokenize_texts([text.encode()]).tokens]
            if words:
                rows = expected_elmo(words, **ELMOS[name])["elmo"]
                np.testing.assert_allclose(matrix, rows, rtol=0, atol=2e-5, err_msg=text)


class TestPieceEncoders(EncoderContract):
    @pytest.fixture(scope="class", params=names_of("preprocessed-encoder", "tf1-bert"))
    @classmethod
    def name(cls, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, name: str, hub: HubModules) -> Subject:
        return hub.subject(name)

    def test_token_ids_are_those_of_berts_own_tokenizer(
        self, computed: Computed, name: str
    ) -> None:
        for text, ids in computed.token_ids.items():
            assert ids is not None
            expected = text_piece_ids(text, lower_case=name != "bert-cased")
            assert ids.tolist() == expected[: len(ids)], text

    def test_rows_are_those_of_a_transformer_in_numpy(self, computed: Computed, name: str) -> None:
        recipe = RECIPES.get(name, TransformerRecipe())
        start, end = piece_ids(["[CLS]"]), piece_ids(["[SEP]"])
        for text, ids in computed.token_ids.items():
            assert ids is not None
            rows = expected_layers([*start, *ids.tolist(), *end], recipe=recipe)[-1][1:-1]
            np.testing.assert_allclose(computed.matrices[text], rows, rtol=0, atol=2e-4)


class TestMeanOfLayers(EncoderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, hub: HubModules) -> Subject:
        return hub.subject("elmo", layer="mean")


def test_every_good_module_is_under_the_contract() -> None:
    kinds = ("bag-of-words", "sentence-encoder", "preprocessed-encoder", "tf1-bert")
    assert sorted([*names_of(*kinds), *ELMOS]) == sorted(names_of())


class TestFakeTokenEncoder(ReloadContract):
    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls) -> Subject:
        return fake_token_subject()


class TestFakeSequenceEncoder(ReloadContract):
    @pytest.fixture(scope="class", params=[(1, 1), (0, 1), (2, 0)], ids=str)
    @classmethod
    def subject(cls, request: pytest.FixtureRequest) -> Subject:
        return fake_sequence_subject(special=request.param)


@pytest.mark.parametrize(
    ("fault", "broken"),
    [
        ("state", "test_rows_of_a_text_alone_are_those_among_others"),
        ("batch", "test_rows_of_a_text_alone_are_those_among_others"),
        ("padding", "test_what_lies_after_a_sequence_does_not_change_its_rows"),
        ("padding", "test_a_sample_computed_again_shows_no_difference"),
        ("place", "test_order_of_the_texts_and_size_of_the_batches_do_not_matter"),
        ("load", "test_two_fresh_loads_agree"),
        ("trace", "test_batches_of_many_shapes_are_traced_once"),
        ("shift", "test_spans_ascend_within_the_text_and_are_what_the_tokens_stand_for"),
        ("id", "test_token_ids_are_entries_of_the_vocabulary"),
        ("same", "test_rows_are_finite_and_as_wide_as_the_view_says"),
        ("surplus", "test_texts_of_spaces_have_rows_only_where_empty_tokens_count"),
    ],
)
def test_contract_finds_a_fault(fault: str, broken: str, tmp_path: Path) -> None:
    numbers = itertools.count()
    with ExitStack() as stores:

        def new_store() -> FeatureStore:
            return stores.enter_context(embedcache.open_store(tmp_path / str(next(numbers))))

        subject = fake_sequence_subject(fault=fault)
        encoder, store = subject.source.load_encoder(subject.view()), new_store()
        computed = compute_texts(store, encoder, subject.view())
        fixtures = {"computed": computed, "encoder": encoder, "subject": subject}
        fixtures |= {"store": store, "new_store": new_store}
        test = getattr(ReloadContract(), broken)
        with pytest.raises(AssertionError):
            test(**{name: fixtures[name] for name in inspect.signature(test).parameters})
