"""What has to be measured in a process of its own, and how it is started.

python -m benchmarks.child build STORE CORPUS     one build; its report and its memory
python -m benchmarks.child first-step STORE       until the first training step is done
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import peak_rss_bytes

ROOT = Path(__file__).parents[1]
_SAMPLE_INTERVAL_S = 0.02


def run_child(*arguments: str | Path) -> dict[str, Any]:
    """Run this module in a new process.

    Returns:
        What it printed.
    """
    command = [sys.executable, "-m", "benchmarks.child", *map(str, arguments)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def child_environment() -> dict[str, str]:
    """The environment of a new process that finds this checkout, from any folder."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


class AnonymousMemory(threading.Thread):
    """Samples the memory that no file backs: the kernel cannot drop it when it is short."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._is_done = threading.Event()

    def run(self) -> None:
        """Sample until `finish`."""
        while not self._is_done.wait(_SAMPLE_INTERVAL_S):
            status = Path("/proc/self/status").read_text(encoding="ascii")
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    self.peak_bytes = max(self.peak_bytes, int(line.split()[1]) * 1024)

    def finish(self) -> int:
        """The most there was."""
        self._is_done.set()
        self.join()
        return self.peak_bytes


def _build(store: str, corpus: str) -> dict[str, Any]:
    import embedcache

    memory = AnonymousMemory()
    memory.start()
    with embedcache.open_store(store) as opened:
        report = embedcache.build(opened, corpus, dataset="benchmark")
    return {
        **report.to_record(),
        "peak_rss_bytes": peak_rss_bytes(),
        "peak_anonymous_bytes": memory.finish(),
        "tensorflow_loaded": "tensorflow" in sys.modules,
    }


def _first_step(store: str) -> dict[str, Any]:
    """As `cnn.train` begins: open, read a batch, make the model, one step."""
    import embedcache
    from cnn.config import TrainConfig

    config = TrainConfig().resolved()
    with embedcache.open_store(store, create=False) as opened:
        stream = embedcache.FeatureStream(opened, batch_size=config.batch_size)
        from cnn.model import ModelSpec, build_model, compile_model, train_step

        spec = ModelSpec(stream.dim, max(2, len(stream.label_names)), stream.dtype)
        model = build_model(config, spec)
        compile_model(model, config, spec)
        batch = next(iter(stream))
        loss, _ = train_step(model, [batch.values, batch.lengths], batch.labels)
    return {"loss": loss}


if __name__ == "__main__":
    _COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
        "build": _build,
        "first-step": _first_step,
    }
    print(json.dumps(_COMMANDS[sys.argv[1]](*sys.argv[2:])))
