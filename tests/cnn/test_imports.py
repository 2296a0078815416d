"""What is loaded when, and what is printed: in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.backends import backend_path

SmallStore = Any

TRAIN = """
import sys, warnings
import cnn, embedcache
config = cnn.TrainConfig(preset="basic", filters=8, epochs=2, batch_size=20, learning_rate=0.02)
with embedcache.open_store(sys.argv[1]) as store:
    run = cnn.train(store, "two", config)
    predictions = cnn.load_run(store, run.name).predict(["two bad 1", "two good 12"])
assert 0.5 <= run.metrics["test"]["accuracy"] <= 1.0
assert [sum(found.probabilities.values()) > 0.999 for found in predictions] == [True, True]
"""


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        check=False,
    )


def test_importing_cnn_loads_neither_keras_nor_a_backend() -> None:
    code = """
import sys, cnn
assert sorted(cnn.__all__) == dir(cnn)
heavy = {"keras", "tensorflow", "tensorflow_hub", "jax"}
for name in set(cnn.__all__) - {"bakeoff"}:
    getattr(cnn, name)
loaded = {*heavy, "embedcache.modules"} & set(sys.modules)
assert not loaded, loaded
cnn.bakeoff  # builds, so that it needs to know modules; TensorFlow loads with one of them
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_a_name_that_cnn_does_not_have() -> None:
    import cnn

    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        cnn.trian  # noqa: B018


def test_bad_data_is_told_before_keras_is_loaded(small: SmallStore) -> None:
    small.put_dataset(["a", "b"], None)
    code = """
import sys, cnn, embedcache
try:
    cnn.train(embedcache.open_store(sys.argv[1]))
except embedcache.EmbedCacheError:
    assert "keras" not in sys.modules
    sys.exit(7)
"""
    assert run_python(code, str(small.store.path)).returncode == 7


def test_training_and_predicting_print_nothing_and_leave_the_module_alone(
    shared: SmallStore,
) -> None:
    code = TRAIN + "assert 'tensorflow_hub' not in sys.modules\n"
    code += "assert not any(name.startswith('embedcache.modules') for name in sys.modules)\n"
    result = run_python(code, str(shared.store.path))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_default_backend_is_tensorflow_only_if_nothing_else_was_said(tmp_path: Path) -> None:
    code = """
import os, sys
from cnn.backend import _is_backend_chosen
print(_is_backend_chosen())
"""
    environment = {"KERAS_BACKEND": "", "KERAS_HOME": str(tmp_path)}
    assert run_python(code, **environment).stdout == "False\n"
    (tmp_path / "keras.json").write_text('{"floatx": "float32"}')
    assert run_python(code, **environment).stdout == "False\n"
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    assert run_python(code, **environment).stdout == "True\n"
    assert run_python(code, **{**environment, "KERAS_BACKEND": "jax"}).stdout == "True\n"


def test_a_backend_that_is_not_installed_is_told_in_one_line() -> None:
    code = """
from cnn.backend import import_keras
from embedcache.errors import TrainingError
try:
    import_keras()
except TrainingError as error:
    print(error)
"""
    result = run_python(code, KERAS_BACKEND="abacus")
    assert "KERAS_BACKEND=tensorflow" in result.stdout
    assert result.stdout.count("\n") == 1


EVERYTHING = (
    TRAIN
    + """
from pathlib import Path
import tempfile
from cnn.comparing import compare_runs

class Stop:
    left = 4
    def __call__(self, report):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt

with embedcache.open_store(sys.argv[1]) as store, tempfile.TemporaryDirectory() as folder:
    try:
        cnn.train(store, "two", config, on_step=Stop(), name=f"half-{sys.argv[2]}")
    except KeyboardInterrupt:
        other = cnn.train(store, resume=f"half-{sys.argv[2]}")
    one, two = run.load_predictions(), other.load_predictions()
    assert (one.probabilities == two.probabilities).all()
    assert compare_runs([run, other]).paired.difference == 0.0
    try:
        import tensorboard
    except ImportError:
        pass
    else:
        from cnn.events import export_logs
        export_logs(Path(folder), [run])
assert "tensorflow" not in sys.modules and sys.argv[2] in sys.modules
"""
)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_train_resume_and_predict_without_tensorflow(
    shared: SmallStore, backend: str
) -> None:
    path = backend_path(backend)
    if path is None:
        pytest.skip(f"{backend} is not installed")
    environment = {"KERAS_BACKEND": backend, "PYTHONPATH": path}
    result = run_python(EVERYTHING, str(shared.store.path), backend, **environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
