"""Which views a sweep compares, and what is said where there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn.sweeps.view_axes import views_of_layers, views_of_names
from embedcache.errors import UnknownNameError

SmallStore = Any
TEXTS = ["one", "two", "three"]


@pytest.fixture
def layered(tmp_path: Path, make_store: Callable[..., SmallStore]) -> SmallStore:
    """A dataset under the layers 1 (built last), 2, "1,2" and mean of one module."""
    made = make_store(tmp_path / "store", output="2")
    for output in ("2", "1,2", "mean:1,2", "1"):
        made = _put(made, output=output)
    return made


def _put(made: SmallStore, **fields: Any) -> SmallStore:
    """The same texts under another view of the store, and the dataset built under it."""
    other = replace(made, view=replace(made.view, **fields))
    other.store.catalog.add_view(other.view, "some/module")
    other.put_texts(TEXTS, [np.ones((2, other.view.dim))] * len(TEXTS))
    other.put_dataset(TEXTS, [("a",), ("b",), ("a",)])
    return other


def _outputs(made: SmallStore, *layers: str) -> list[str]:
    dataset = made.store.load_dataset("small")
    found = views_of_layers(made.store, dataset, layers)
    assert [named.label for named in found] == [{"layer": layer} for layer in layers]
    return [made.store.catalog.find_view(named.view).view.output for named in found]


def test_layers_are_found_by_what_build_calls_them(layered: SmallStore) -> None:
    assert _outputs(layered, "1", "2", "1+2", "mean") == ["1", "2", "1,2", "mean:1,2"]
    assert _outputs(layered, "mean:1+2") == ["mean:1,2"]


def test_missing_layer_is_one_line_with_those_there_are_and_the_build_command(
    layered: SmallStore,
) -> None:
    with pytest.raises(UnknownNameError, match=r"^[^\n]*$") as caught:
        _outputs(layered, "7+8")
    said = str(caught.value)
    assert "no view of some/module that holds dataset 'small' has the layer '7+8'" in said
    assert "there are: 2, 1,2, mean:1,2, 1;" in said
    assert "`embedcache build CORPUS --module some/module --layer 7,8 --dataset small`" in said, (
        said
    )


def test_view_that_does_not_hold_the_dataset_does_not_count(layered: SmallStore) -> None:
    other = replace(layered, view=replace(layered.view, output="3"))
    other.store.catalog.add_view(other.view, "some/module")
    other.put_texts(TEXTS[:2], [np.ones((2, other.view.dim))] * 2)
    with pytest.raises(UnknownNameError, match="has the layer '3'"):
        _outputs(layered, "3")
    other.put_texts(TEXTS[2:], [np.ones((2, other.view.dim))])
    assert _outputs(layered, "3") == ["3"]


def test_layer_of_another_module_does_not_count(layered: SmallStore) -> None:
    _put(layered, output="9", module_digest="1" * 32)
    with pytest.raises(UnknownNameError, match="has the layer '1'; there are: 9"):
        _outputs(layered, "1")


def test_of_two_views_with_a_layer_it_is_the_one_like_the_datasets_own(
    layered: SmallStore,
) -> None:
    _put(layered, output="2", dtype="float32")
    last = _put(layered, output="1")
    (found,) = views_of_layers(last.store, last.store.load_dataset("small"), ["2"])
    assert last.store.catalog.find_view(found.view).view.dtype == "float16"


def test_two_views_that_a_layer_could_mean_are_refused_by_name(layered: SmallStore) -> None:
    _put(layered, output="2", dtype="float32")
    _put(layered, output="1", dtype="bfloat16")
    with pytest.raises(UnknownNameError, match="'2' of some/module is in several views") as caught:
        _outputs(layered, "2")
    assert "float16" in str(caught.value)
    assert "--grid view=V,V" in str(caught.value)


def test_views_are_found_by_the_beginnings_of_their_fingerprints(layered: SmallStore) -> None:
    fingerprint = layered.view.fingerprint
    (found,) = views_of_names(layered.store, [fingerprint[:8]])
    assert (found.view, found.label) == (fingerprint, {"view": fingerprint[:12]})
    with pytest.raises(UnknownNameError, match="no view 'zz'"):
        views_of_names(layered.store, ["zz"])
