"""What ``docs/models.md`` says can be typed and is so."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn import TrainConfig
from cnn.config import CLASS_WEIGHTS, EMBEDDINGS, OPTIMIZERS, PRESETS, TASKS
from cnn.model import ModelSpec, build_model

TEXT = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def run_block(heading: str) -> dict[str, Any]:
    """Run the indented code of a section; the names that it leaves."""
    section = re.split(r"\n(?=## )", TEXT.partition(f"\n## {heading}\n")[2])[0]
    lines = [line for line in section.splitlines() if line.startswith("    ")]
    names: dict[str, Any] = {}
    exec(compile(textwrap.dedent("\n".join(lines)), "docs/models.md", "exec"), names)
    return names


def test_scores_are_computed_as_shown() -> None:
    found = run_block("Scores")["found"]
    assert found.confusion == [[1, 0], [1, 1]]
    assert found.per_class[1].recall == 0.5


def test_a_model_is_trained_without_a_store_as_shown() -> None:
    names = run_block("From Python")
    assert np.isfinite(names["loss"])
    assert names["probabilities"].shape == (4, 2)


@pytest.mark.parametrize("word", [*PRESETS, *EMBEDDINGS, *OPTIMIZERS, CLASS_WEIGHTS[1], *TASKS[1:]])
def test_every_choice_is_named(word: str) -> None:
    assert re.search(rf"\b{word}\b", TEXT)


@pytest.mark.parametrize("preset", PRESETS)
def test_layers_have_the_names_and_shapes_that_are_listed(preset: str) -> None:
    fields = {} if preset == "linear" else {"filters": 4, "kernel_sizes": (3, 5)}
    config = TrainConfig(preset=preset, dropout=0.5, **fields).resolved()  # type: ignore[arg-type]
    model = build_model(config, ModelSpec(6, 2, "float16"))
    listed = set(re.findall(r"`([a-z_0-9]+)`", TEXT.partition("| layer |")[2].split("\n\n")[0]))
    named = {layer.name for layer in model.layers} - {"values", "lengths"}
    assert {re.sub(r"_1$", "_0", name) for name in named} <= listed | {"conv_0", "texts_0"}
    if preset == "kim":
        assert model.get_layer("features").output.shape == (None, 8)
        assert model.get_layer("max_over_time_1").input[0].shape == (None, None, 4)
        assert [w.shape for w in model.get_layer("conv_1").weights] == [(5, 6, 4), (4,)]


def test_defaults_are_what_the_tables_say() -> None:
    kim = TrainConfig(optimizer="adadelta").resolved()
    assert (kim.kernel_sizes, kim.filters, kim.dropout) == ((3, 4, 5), 100, 0.5)
    assert (kim.max_norm, kim.batch_size, kim.learning_rate) == (3.0, 50, 1.0)
    assert TrainConfig(preset="linear").resolved().learning_rate == 0.01
    basic = TrainConfig(preset="basic").resolved()
    assert (basic.kernel_sizes, basic.filters) == ((3,), 64)
