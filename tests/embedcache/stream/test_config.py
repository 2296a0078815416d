"""StreamConfig and StreamState: what they take, and one clear line for what they do not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from embedcache.errors import TrainingError
from embedcache.stream import StreamConfig, StreamState


def test_defaults_are_batches_of_64_shuffled() -> None:
    config = StreamConfig()
    assert (config.batch_size, config.shuffle, config.seed) == (64, "auto", 0)
    assert (config.batch_tokens, config.window_texts, config.length_buckets) == (None, None, False)
    assert (config.worker, config.num_workers) == (0, 1)


def test_shuffle_may_be_said_by_a_truth_value() -> None:
    assert StreamConfig(shuffle=True) == StreamConfig(shuffle="auto")
    assert StreamConfig(shuffle=False) == StreamConfig(shuffle="none")


def test_numpy_numbers_become_pythons() -> None:
    config = StreamConfig(batch_size=np.int64(8), seed=np.uint32(3), batch_tokens=np.int32(64))
    assert [type(value) for value in (config.batch_size, config.seed, config.batch_tokens)] == [
        int,
        int,
        int,
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1: got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer: got 2.5"),
        ({"batch_size": True}, "batch_size must be an integer: got True"),
        ({"batch_tokens": 7}, "batch_tokens must be at least 8: got 7"),
        ({"batch_tokens": "many"}, "batch_tokens must be an integer: got 'many'"),
        ({"shuffle": "yes"}, "shuffle must be one of auto, full, block, none: got 'yes'"),
        ({"shuffle": None}, "shuffle must be one of auto, full, block, none: got None"),
        ({"window_texts": 0, "length_buckets": True}, "window_texts must be at least 1: got 0"),
        ({"seed": -1}, "seed must be at least 0: got -1"),
        ({"seed": None}, "seed must be an integer: got None"),
        ({"num_workers": 0}, "num_workers must be at least 1: got 0"),
        ({"worker": 2, "num_workers": 2}, "worker must be from 0 to 1: got 2"),
        ({"worker": 1}, "worker must be from 0 to 0: got 1"),
        ({"shuffle": False, "length_buckets": True}, "length_buckets changes the order and"),
        ({"shuffle": "full", "window_texts": 9}, "window_texts is for shuffle='block' and for"),
        ({"shuffle": False, "window_texts": 9}, "leave it out with shuffle='none'"),
    ],
)
def test_wrong_field_is_one_clear_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        StreamConfig(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"shuffle": "full", "window_texts": 9, "length_buckets": True},
        {"shuffle": "block", "window_texts": 9},
        {"shuffle": "auto", "window_texts": 9},
        {"worker": 1, "num_workers": 2},
        {"shuffle": "none", "batch_tokens": 8},
    ],
)
def test_fields_that_go_together_are_taken(fields: dict[str, Any]) -> None:
    config = StreamConfig(**fields)
    assert all(getattr(config, name) == value for name, value in fields.items())


def test_state_becomes_json_and_comes_back() -> None:
    state = StreamState(3, 1, 40, "full-0123")
    assert StreamState.from_record(json.loads(json.dumps(state.to_record()))) == state
    assert StreamState.from_record({"seed": 0, "epoch": 0, "step": 7}) == StreamState(0, 0, 7)


@pytest.mark.parametrize(
    "record",
    [
        {"seed": 0, "epoch": 0},
        {"seed": 0, "epoch": -1, "step": 0},
        {"seed": 0, "epoch": 0, "step": "3"},
        {"seed": 0, "epoch": 0, "step": 0, "other": 1},
    ],
)
def test_record_that_is_no_state_is_one_clear_line(record: dict[str, Any]) -> None:
    with pytest.raises(
        TrainingError, match=r"state cannot be read .*; start the training"
    ) as caught:
        StreamState.from_record(record)
    assert "\n" not in str(caught.value)
