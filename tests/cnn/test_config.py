"""TrainConfig: what is legal, and what the presets say."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from cnn import TrainConfig
from cnn.config import PRESETS, ResolvedConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("preset", "resnet"),
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", True),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("kernel_sizes", ()),
        ("kernel_sizes", (3, 0)),
        ("kernel_sizes", "345"),
        ("kernel_sizes", 3),
        ("filters", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", None),
        ("dev_fraction", 0.0),
        ("dev_fraction", 1.0),
        ("dev_fraction", None),
        ("patience", 0),
        ("folds", 1),
        ("folds", 0),
        ("embedding", "glove"),
        ("embedding", None),
        ("optimizer", "sgd"),
        ("max_norm", -1.0),
        ("max_norm", float("inf")),
        ("class_weights", "heavy"),
        ("task", "binary"),
        ("on_leak", "ignore"),
        ("near_duplicates", 0.0),
        ("near_duplicates", 1.1),
        ("near_duplicates", float("nan")),
        ("batch_tokens", 0),
        ("length_buckets", 1),
        ("length_buckets", None),
    ],
)
def test_an_illegal_value_is_refused_in_one_line_that_names_the_field(
    field: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        TrainConfig(**{field: value})
    assert "\n" not in str(caught.value)


def test_presets_fill_in_what_was_not_chosen() -> None:
    kim = TrainConfig().resolved()
    assert (kim.kernel_sizes, kim.filters, kim.dropout) == ((3, 4, 5), 100, 0.5)
    basic = TrainConfig(preset="basic").resolved()
    assert (basic.kernel_sizes, basic.filters, basic.dropout) == ((3,), 64, 0.0)


def test_linear_has_no_convolutions_and_takes_none() -> None:
    linear = TrainConfig(preset="linear").resolved()
    assert (linear.kernel_sizes, linear.filters, linear.max_norm) == ((), 0, 0.0)
    for field, value in (("kernel_sizes", (3,)), ("filters", 8)):
        with pytest.raises(ValueError, match=f"{field} must be left out with preset linear"):
            TrainConfig(preset="linear", **{field: value})  # type: ignore[arg-type]


def test_the_norm_is_bounded_for_kim_alone_unless_one_says_so() -> None:
    assert TrainConfig().resolved().max_norm == 3.0
    assert TrainConfig(max_norm=0).resolved().max_norm == 0.0
    assert TrainConfig(preset="basic").resolved().max_norm == 0.0
    assert TrainConfig(preset="basic", max_norm=2).resolved().max_norm == 2.0


@pytest.mark.parametrize("preset", PRESETS)
def test_adadelta_has_the_rate_that_makes_it_zeilers(preset: str) -> None:
    assert TrainConfig(preset=preset, optimizer="adadelta").resolved().learning_rate == 1.0
    chosen = TrainConfig(preset=preset, optimizer="adadelta", learning_rate=0.5).resolved()
    assert chosen.learning_rate == 0.5
    assert TrainConfig(preset=preset).resolved().learning_rate < 0.1


def test_what_was_chosen_stays() -> None:
    config = TrainConfig(kernel_sizes=[2], dropout=0.0, seed=0, folds=3).resolved()
    assert (config.kernel_sizes, config.dropout, config.folds) == ((2,), 0.0, 3)


def test_numpy_numbers_are_legal_and_become_json() -> None:
    config = TrainConfig(epochs=np.int64(3), learning_rate=np.float32(0.5), seed=np.uint32(9))  # type: ignore[arg-type]
    record = json.loads(json.dumps(config.resolved().to_record()))
    assert (record["epochs"], record["learning_rate"], record["seed"]) == (3, 0.5, 9)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_record_makes_the_same_configuration_again(preset: str) -> None:
    config = TrainConfig(
        preset=preset, optimizer="adadelta", embedding="nonstatic", near_duplicates=0.99,
        batch_tokens=np.int64(4096), length_buckets=np.bool_(True), task="multilabel", folds=3,
    ).resolved()  # type: ignore[arg-type]  # fmt: skip
    record = json.loads(json.dumps(config.to_record()))
    assert ResolvedConfig.from_record(record) == config


def test_a_record_of_version_0_1_is_what_that_version_did() -> None:
    record = {
        "preset": "kim", "epochs": 25, "batch_size": 50, "learning_rate": 0.001, "dropout": 0.5,
        "kernel_sizes": [3, 4, 5], "filters": 100, "patience": 5, "seed": 3, "dev_fraction": 0.1,
        "folds": None,
    }  # fmt: skip
    config = ResolvedConfig.from_record(record)
    assert (config.embedding, config.optimizer, config.max_norm) == ("static", "adam", 0.0)
    assert (config.seed, config.kernel_sizes) == (3, (3, 4, 5))


def test_a_record_with_other_fields_is_refused() -> None:
    record = TrainConfig().resolved().to_record()
    with pytest.raises(ValueError, match="'heads': it was written by a newer version"):
        ResolvedConfig.from_record({**record, "heads": 4})
    del record["filters"]
    with pytest.raises(ValueError, match="lacks the field 'filters'"):
        ResolvedConfig.from_record(record)


def test_it_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainConfig().seed = 1  # type: ignore[misc]
