"""What several rooms' tests share: real stores, and small real SavedModels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import embedcache

# The same examples each time, and no limit on time: a machine may be busy.
settings.register_profile(
    "fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fixed")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[embedcache.FeatureStore]:
    with embedcache.open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture(scope="session")
def kim_data() -> Path:
    """The folder of Kim's (2014) data sets."""
    if not SHARED_DATA.is_dir():
        pytest.skip("Kim's (2014) data sets are not beside this checkout (../shared/data)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def make_module(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a SavedModel with nnlm's interface and ways.

    Punctuation is removed, tokens end at single spaces (so there are empty ones), every word
    has a row, and a text's vector is a combination of its tokens'. Keyword arguments:
    ``combiner``; ``dim``; ``seed``; ``dtype`` of the output; ``interface``: "both", "call"
    (as TF Hub's exporter writes it: no signatures) or "signature"; ``twist``: "none", "nan"
    (the word "nan" has a NaN row), "huge" (the word "huge" is beyond float16), "encoder"
    (a text's vector is no combination), "splits" (its tokenize splits its own tokens).
    """
    import tensorflow as tf

    def make(
        *,
        combiner: str = "sqrtn",
        dim: int = 8,
        seed: int = 0,
        dtype: str = "float32",
        interface: str = "both",
        twist: str = "none",
    ) -> Path:
        path = tmp_path_factory.mktemp("module")
        module = _BagOfWords(combiner, dim, seed, dtype, twist)
        if twist == "splits":
            module.tokenize = tf.function(  # type: ignore[attr-defined]
                lambda text: tf.strings.bytes_split(text), input_signature=[_strings()]
            )
        call = module.__call__.get_concrete_function()
        signatures = {"default": module.named.get_concrete_function()}
        if interface == "signature":
            holder = tf.Module()
            holder.module = module
            tf.saved_model.save(holder, str(path), signatures)
        else:
            del call
            tf.saved_model.save(module, str(path), signatures if interface == "both" else None)
        return path

    def _strings() -> Any:
        return tf.TensorSpec([None], tf.string)

    class _BagOfWords(tf.Module):  # type: ignore[misc]
        def __init__(self, combiner: str, dim: int, seed: int, dtype: str, twist: str) -> None:
            super().__init__()
            self._combiner, self._dtype, self._twist = combiner, dtype, twist
            rows = tf.random.stateless_normal([1009, dim], [seed, 1])
            self._rows = tf.Variable(rows, trainable=False)

        @tf.function(input_signature=[_strings()])
        def __call__(self, text: Any) -> Any:
            words = tf.strings.regex_replace(text, r"\pP", "")
            tokens = tf.strings.split(words, " ")
            buckets = tf.strings.to_hash_bucket_fast(tokens.flat_values, 1009)
            rows = tf.gather(self._rows, buckets)
            if self._twist in ("nan", "huge"):
                bad = float("nan") if self._twist == "nan" else 1e6
                rows = tf.where((tokens.flat_values == self._twist)[:, None], bad, rows)
            total = tf.math.segment_sum(rows, tokens.value_rowids())
            count = tf.cast(tokens.row_lengths(), tf.float32)[:, None]
            if self._combiner != "sum":
                total /= tf.sqrt(count) if self._combiner == "sqrtn" else count
            if self._twist == "encoder":
                total = tf.tanh(total) + count
            return tf.cast(total, self._dtype)

        @tf.function(input_signature=[_strings()])
        def named(self, text: Any) -> Any:
            return {"default": self(text)}

    return make
