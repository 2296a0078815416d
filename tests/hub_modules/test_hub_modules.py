"""The tiny modules are what their makers claim: all of them, and the bad ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hub_modules import bad, bert_encoder, preprocess
from tests.hub_modules import use_lite as lite
from tests.hub_modules.calling import (
    named,
    strings,
)
from tests.hub_modules.kinds import BAD_MODULES, GOOD_MODULES, KINDS
from tests.hub_modules.shelf import ModuleShelf

Loader = Callable[[str], Any]


def test_names_are_unique_and_kinds_are_known() -> None:
    names = [module.name for module in (*GOOD_MODULES, *BAD_MODULES)]
    assert len(set(names)) == len(names)
    assert {module.kind for module in GOOD_MODULES} == set(KINDS)


def test_importing_the_makers_leaves_tensorflow_alone() -> None:
    script = "import sys, tests.hub_modules.shelf; print('tensorflow' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]


def test_making_a_module_writes_nothing_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    preprocess.make_bert_preprocess(tmp_path / "preprocess")
    bert_encoder.make_bert_encoder(tmp_path / "keras2", made_by="keras2")
    bert_encoder.make_bert_encoder(tmp_path / "keras3", made_by="keras3")
    lite.make_use_lite(tmp_path / "lite")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_module_with_a_missing_operation_cannot_be_loaded(shelf: ModuleShelf, tf: Any) -> None:
    path = shelf.path_of(named("custom-op-missing"))
    with pytest.raises(
        (tf.errors.OpError, RuntimeError, OSError),
        match=f"Op type not registered '{bad.MISSING_OP}'",
    ):
        tf.saved_model.load(str(path))


def test_other_bad_modules_load_and_are_no_text_modules(load: Loader, tf: Any) -> None:
    assert load("image")(tf.zeros([2, 8, 8, 3])).shape == (2, 16)
    empty = load("no-signature")
    assert (callable(empty), dict(empty.signatures)) == (False, {})
    respond = load("wrong-signature").signatures["response_encoder"]
    assert respond(input=strings("a"), context=strings("b"))["outputs"].shape == (1, 16)
    assert load("rank3")(strings("the cat", "a")).shape == (2, 2, 8)
    assert load("classifier-ints")(strings("the cat", "a")).dtype == tf.int64


def test_nan_sentence_encoder_spoils_the_text_with_nan_only(load: Loader) -> None:
    vectors = load("nan-sentence")(strings("a nan", "cat")).numpy()
    assert np.isnan(vectors[0]).all()
    assert np.isfinite(vectors[1]).all()
