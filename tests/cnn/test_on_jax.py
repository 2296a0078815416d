"""The models and the training do on JAX what they do on TensorFlow, which is never imported."""

from __future__ import annotations

import json
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
import json, sys
import pytest
statuses = []
for name, chosen in json.loads(sys.argv[1]).items():
    print("file", name, flush=True)
    path = f"tests/cnn/{name}"
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", path, "-k", chosen]
    statuses.append(pytest.main(arguments))
assert "jax" in sys.modules
loaded = {name for name in sys.modules if name.split(".")[0] == "tensorflow"}
assert not loaded, sorted(loaded)[:5]
sys.exit(any(statuses))
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


def test_tests_pass_on_jax_and_tensorflow_is_never_imported() -> None:
    # All in one process: to import JAX and Keras takes as long as many of the tests.
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": str(backend_path("jax")),
        # Most of the time goes into compiling, not into steps.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(CHOSEN)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    passed = re.findall(r"^file (\S+)$.*?(\d+) passed", done.stdout, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in passed] == list(CHOSEN)
    assert all(int(count) >= 4 for _, count in passed), passed
