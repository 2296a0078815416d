"""What the README tells people to type works as it stands there."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcache
from embedcache.keys import key_of_text

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _block(first_line: str) -> str:
    """The indented block of the README that begins so."""
    lines = README.splitlines()
    start = next(number for number, line in enumerate(lines) if line == f"    {first_line}")
    block = re.split(r"\n(?=\S)", "\n".join(lines[start:]))[0]
    return textwrap.dedent(block)


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    texts = [("good", "a fine warm film"), ("bad", "a cold dull bore"), ("good", "warm and fine")]
    rows = [f"{label}\t{text} {number}" for number in range(20) for label, text in texts]
    for name in ("a.tsv", "b.tsv"):
        body = ["label\ttext", "bad\ta text of the corpus", "bad\tanother", *rows]
        (tmp_path / name).write_text("\n".join(body) + "\n", encoding="utf-8")
    return tmp_path


def test_python_of_the_readme_runs(corpora: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(_block("import embedcache, cnn"), "README.md", "exec"), names)
    assert names["features"].lengths.tolist() == [5]
    assert names["run"].metrics["test"]["accuracy"] > 0.9
    assert (corpora / "features" / "embedcache.json").exists()


def test_shard_can_be_read_as_the_readme_says(corpora: Path) -> None:
    with embedcache.open_store("features") as store:
        view = embedcache.build(store, "a.tsv").view
        texts = {key_of_text(text): text for text in ("a text of the corpus", "another")}
        (shard,) = (corpora / "features" / "shards" / view).iterdir()
        code = _block("import h5py").replace("features/shards/…/….h5", os.fspath(shard))
        code = code.replace(
            "row_splits[0] : row_splits[1]", "row_splits[row] : row_splits[row + 1]"
        )
        import h5py

        with h5py.File(shard) as file:
            keys = [key.tobytes() for key in file["keys"][:]]
        for key, text in texts.items():
            names: dict[str, Any] = {"row": keys.index(key)}
            exec(compile(code, "README.md", "exec"), names)
            np.testing.assert_array_equal(names["first"], store.get(view, [text])[0])


def test_every_file_that_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_in_the_readme_exists() -> None:
    from cli.main import cli

    named = set(re.findall(r"^ +embedcache (\w+)", README, flags=re.MULTILINE))
    assert {"build", "train", "predict", "runs"} <= named
    assert named <= set(cli.list_commands(None))  # type: ignore[arg-type]
