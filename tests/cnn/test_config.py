"""TrainConfig: what is legal, and what the presets say."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from cnn import TrainConfig


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


def test_what_was_chosen_stays() -> None:
    config = TrainConfig(kernel_sizes=[2], dropout=0.0, seed=0, folds=3).resolved()
    assert (config.kernel_sizes, config.dropout, config.folds) == ((2,), 0.0, 3)


def test_numpy_numbers_are_legal_and_become_json() -> None:
    config = TrainConfig(epochs=np.int64(3), learning_rate=np.float32(0.5), seed=np.uint32(9))  # type: ignore[arg-type]
    record = json.loads(json.dumps(config.resolved().to_record()))
    assert (record["epochs"], record["learning_rate"], record["seed"]) == (3, 0.5, 9)


def test_it_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainConfig().seed = 1  # type: ignore[misc]
