"""The order of the rooms, and what may not be imported where."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("embedcache", "cnn", "cli")

# Room → the rooms that it may import. A file belongs to the longest name that fits it.
ARROWS: dict[str, set[str]] = {
    "embedcache": set(),
    "embedcache.errors": set(),
    "embedcache.quiet": set(),
    "embedcache.keys": {"embedcache.errors"},
    "embedcache.ragged": set(),
    "embedcache.view": {"embedcache.errors"},
    "embedcache.encoder": set(),
    "embedcache.wire": set(),
    "embedcache.corpus": {"embedcache.errors"},
    "embedcache.store": {
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.ragged",
        "embedcache.view",
    },
    "embedcache.modules": {
        "embedcache.encoder",
        "embedcache.errors",
        "embedcache.quiet",
        "embedcache.ragged",
        "embedcache.view",
    },
    "embedcache.stream": {
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.ragged",
        "embedcache.store",
    },
    "embedcache.client": {
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.ragged",
        "embedcache.store",
        "embedcache.view",
        "embedcache.wire",
    },
    # Rooms of their own: of all that streams, TensorFlow and torch are for these files alone.
    "embedcache.stream.tensorflow_dataset": {"embedcache.quiet", "embedcache.stream"},
    "embedcache.stream.torch_batches": {"embedcache.stream"},
    "embedcache.stream.torch_dataset": {
        "embedcache.errors",
        "embedcache.stream",
        "embedcache.stream.torch_batches",
    },
    "embedcache.pinning": {
        "embedcache.encoder",
        "embedcache.errors",
        "embedcache.modules",
        "embedcache.store",
        "embedcache.view",
    },
    "embedcache.compute": {
        "embedcache.encoder",
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.ragged",
        "embedcache.store",
        "embedcache.view",
    },
    "embedcache.view_module": {
        "embedcache.compute",
        "embedcache.encoder",
        "embedcache.pinning",
        "embedcache.store",
        "embedcache.view",
    },
    "embedcache.misses": {
        "embedcache.compute",
        "embedcache.corpus",
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.pinning",
        "embedcache.store",
        "embedcache.view",
        "embedcache.view_module",
    },
    "embedcache.embedder": {
        "embedcache.compute",
        "embedcache.corpus",
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.misses",
        "embedcache.pinning",
        "embedcache.store",
        "embedcache.view_module",
    },
    "embedcache.precompute": {
        "embedcache.compute",
        "embedcache.corpus",
        "embedcache.embedder",
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.misses",
        "embedcache.modules",
        "embedcache.pinning",
        "embedcache.ragged",
        "embedcache.store",
        "embedcache.view",
    },
    "embedcache.plan": {
        "embedcache.corpus",
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.pinning",
        "embedcache.precompute",
        "embedcache.store",
        "embedcache.view",
    },
    "embedcache.explain": {
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.modules",
        "embedcache.pinning",
        "embedcache.store",
        "embedcache.view",
    },
    "embedcache.module_report": {
        "embedcache.encoder",
        "embedcache.errors",
        "embedcache.modules",
        "embedcache.pinning",
        "embedcache.store",
        "embedcache.view",
    },
    "embedcache.exchange": {
        "embedcache",
        "embedcache.corpus",
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.modules",
        "embedcache.precompute",
        "embedcache.ragged",
        "embedcache.store",
        "embedcache.stream",
        "embedcache.view",
    },
    # A room of its own: of all that exchanges, TensorFlow is for this file alone.
    "embedcache.exchange.tfrecord": {
        "embedcache.errors",
        "embedcache.exchange",
        "embedcache.quiet",
    },
    "embedcache.exchange.exporting": {
        "embedcache.errors",
        "embedcache.exchange",
        "embedcache.exchange.tfrecord",
        "embedcache.store",
    },
    "embedcache.service": {
        "embedcache",
        "embedcache.embedder",
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.ragged",
        "embedcache.store",
        "embedcache.wire",
    },
    "embedcache.shelf": {
        "embedcache.errors",
        "embedcache.modules",
        "embedcache.store",
    },
    "cnn": {
        "embedcache",
        "embedcache.embedder",
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.precompute",
        "embedcache.quiet",
        "embedcache.ragged",
        "embedcache.store",
        "embedcache.stream",
        "embedcache.view",
    },
    # It reads the texts of a corpus again, which no store keeps.
    "cnn.report": {
        "cnn",
        "embedcache",
        "embedcache.corpus",
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.store",
    },
    # It builds, too.
    "cnn.sweeps.bakeoff": {
        "cnn",
        "embedcache.corpus",
        "embedcache.errors",
        "embedcache.keys",
        "embedcache.pinning",
        "embedcache.precompute",
        "embedcache.store",
    },
    "cli": {
        "cnn",
        "cnn.report",
        "cnn.sweeps.bakeoff",
        "embedcache",
        "embedcache.corpus",
        "embedcache.errors",
        "embedcache.exchange",
        "embedcache.exchange.exporting",
        "embedcache.explain",
        "embedcache.keys",
        "embedcache.module_report",
        "embedcache.modules",
        "embedcache.plan",
        "embedcache.precompute",
        "embedcache.service",
        "embedcache.shelf",
        "embedcache.store",
    },
}

# Heavy or foreign package → the only rooms that may import it.
OWNERS: dict[str, set[str]] = {
    "tensorflow": {
        "embedcache.modules",
        "embedcache.exchange.tfrecord",
        "embedcache.stream.tensorflow_dataset",
    },
    "tensorflow_hub": {"embedcache.modules"},
    "torch": {"embedcache.stream.torch_batches"},
    "keras": {"cnn"},
    "tensorboard": {"cnn"},
    "h5py": {"embedcache.store", "embedcache.exchange"},
    "pyarrow": {"embedcache.exchange", "embedcache.service"},
    "datasets": {"embedcache.exchange"},
    "sqlalchemy": {"embedcache.store"},
    "httpx2": {"embedcache.client"},
    "fastapi": {"embedcache.service"},
    "starlette": {"embedcache.service"},
    "pydantic": {"embedcache.service"},
    "uvicorn": {"embedcache.service"},
    "uvloop": {"embedcache.service"},
    "prometheus_client": {"embedcache.service"},
    "orjson": {"embedcache.service"},
    "click": {"cli"},
}


def _files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    fitting = [room for room in ARROWS if module == room or module.startswith(room + ".")]
    return max(fitting, key=len)


def _imports(path: Path) -> set[str]:
    """All modules that a file imports anywhere in it, but under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def _wrong_arrows(path: Path) -> set[str]:
    room = _room(_module_name(path))
    own = {name for name in _imports(path) if name.split(".")[0] in PACKAGES}
    return {name for name in own if _room(name) not in ARROWS[room] | {room}}


def _wrong_owners(path: Path) -> set[str]:
    room = _room(_module_name(path))
    return {name for name in _imports(path) if room not in OWNERS.get(name.split(".")[0], {room})}


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_only(path: Path) -> None:
    assert _wrong_arrows(path) == set()


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_stay_in_their_rooms(path: Path) -> None:
    assert _wrong_owners(path) == set()


def test_an_upward_import_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    offender = tmp_path / "embedcache" / "store" / "bad.py"
    offender.parent.mkdir(parents=True)
    offender.write_text("def f():\n    import embedcache.modules.handles\n    import tensorflow\n")
    assert _wrong_arrows(offender) == {"embedcache.modules.handles"}
    assert _wrong_owners(offender) == {"tensorflow"}


def test_arrows_form_no_circle() -> None:
    left = dict(ARROWS)
    while left:
        free = [room for room, below in left.items() if not below & (set(left) - {room})]
        assert free, f"a circle among {sorted(left)}"
        for room in free:
            del left[room]


def _loaded_by(code: str, *names: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*({set(names)!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import embedcache, cnn, cli",
        "import embedcache; embedcache.build, embedcache.FeatureStream, embedcache.open_store",
        "import cnn; dir(cnn)",
        "from cli.main import run; assert run(['--help']) == 0",
        "from cli.main import run; assert run(['build', '--help']) == 0",
        "from cli.main import run; assert run(['train', '--help']) == 0",
        "import embedcache.service.server",
    ],
)
def test_light_imports_leave_tensorflow_and_keras_out(code: str) -> None:
    assert (
        _loaded_by(
            f"import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):"
            f"\n    exec({code!r})",
            "tensorflow",
            "keras",
            "tensorflow_hub",
        )
        == set()
    )


def test_help_needs_neither_numpy_nor_sqlalchemy() -> None:
    code = (
        "from cli.main import run\nimport contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()): run(['--help'])"
    )
    assert _loaded_by(code, "numpy", "h5py", "sqlalchemy") == set()


def test_public_names_are_sorted_and_resolve() -> None:
    import cnn
    import embedcache

    for package in (embedcache, cnn):
        assert list(package.__all__) == sorted(package.__all__)
        assert dir(package) == sorted(package.__all__)
        for name in package.__all__:
            assert getattr(package, name).__name__ == name
        with pytest.raises(AttributeError):
            _ = package.no_such_name
