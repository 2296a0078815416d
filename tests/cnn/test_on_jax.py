"""The models and the training do on JAX what they do on TensorFlow, which is never imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends import backend_path

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    backend_path("jax") is None,
    reason="JAX, the other backend to test with, is not installed",
)

RUN = """
import sys
import pytest
status = pytest.main(sys.argv[1:])
assert "jax" in sys.modules
loaded = {name for name in sys.modules if name.split(".")[0] == "tensorflow"}
assert not loaded, sorted(loaded)[:5]
sys.exit(status)
"""

# Of what is tested for every preset, embedding and optimizer, JAX gets a part: it compiles
# each shape of each model anew.
CHOSEN = {
    "test_model.py": "not (basic and (multichannel or rand)) and not any_width",
    "test_embedding.py": "not row_zero or (kim and nonstatic)",
    "test_losses.py": "",
    "test_scalar_mix.py": "formula or shares_and_gamma and float16 or padding or saved",
    # Not the test of seeds: it sets Keras's own, which looks for TensorFlow.
    "test_training.py": "learns or scores_for_each or no_number or early_stopping",
}


@pytest.mark.parametrize("name", sorted(CHOSEN))
def test_tests_pass_on_jax_and_tensorflow_is_never_imported(name: str) -> None:
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": str(backend_path("jax")),
        # Most of the time goes into compiling, not into steps.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"tests/cnn/{name}"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments, "-k", CHOSEN[name]],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) >= 4
