"""What ``docs/streaming.md`` tells people to type works as it stands there."""

from __future__ import annotations

import logging
import re
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import embedcache
from embedcache.stream.config import StreamConfig

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "streaming.md").read_text(encoding="utf-8")
FIRST = "import embedcache"
BLOCKS = re.findall(r"(?:^    .*\n|^\n(?=    ))+", PAGE, flags=re.MULTILINE)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's first block defines, in a folder with its store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    texts = [("good", "a fine warm film"), ("bad", "a cold dull bore"), ("good", "warm and fine")]
    rows = [f"{label}\t{text} number {number}" for number in range(60) for label, text in texts]
    (tmp_path / "mine.tsv").write_text("label\ttext\n" + "\n".join(rows) + "\n", encoding="utf-8")
    with embedcache.open_store("features") as store:
        embedcache.build(store, {"train": "mine.tsv"}, dataset="mine")
    found: dict[str, Any] = {"StreamConfig": StreamConfig}
    run(BLOCKS[0], found)
    return found


def run(block: str, names: dict[str, Any]) -> None:
    exec(compile(textwrap.dedent(block), "streaming.md", "exec"), names)


def test_the_page_begins_with_opening_a_stream() -> None:
    assert textwrap.dedent(BLOCKS[0]).lstrip().startswith(FIRST)
    assert len(BLOCKS) == 10


@pytest.mark.parametrize("number", range(1, len(BLOCKS)))
def test_every_block_runs_after_the_first(names: dict[str, Any], number: int) -> None:
    block = BLOCKS[number]
    if "import torch" in block and find_spec("torch") is None:
        pytest.skip("torch is not installed")
    config = StreamConfig(batch_size=16, batch_tokens=4096, length_buckets=True, seed=7)
    names["config"] = config
    names["stream"] = embedcache.FeatureStream(names["store"], "mine", config=config)
    if "stream.iterate" in block:
        names["stream"] = embedcache.FeatureStream(
            names["store"], "mine", split="train", config=config
        )
    run(block, names)


def test_what_the_page_says_of_resuming_is_so(names: dict[str, Any]) -> None:
    (block,) = (block for block in BLOCKS if "stream.iterate()" in block)
    names["config"] = StreamConfig(batch_size=16, length_buckets=True)
    names["stream"] = embedcache.FeatureStream(
        names["store"], "mine", split="train", config=names["config"]
    )
    run(block, names)
    expected = list(names["stream"].epoch(0))[5]
    assert names["batch"].keys.tolist() == expected.keys.tolist()


def test_every_field_of_the_configuration_is_on_the_page() -> None:
    table = PAGE[PAGE.index("| field |") : PAGE.index("**Full or block.**")]
    named = set(re.findall(r"`(\w+)`", table))
    assert set(StreamConfig.__dataclass_fields__) <= named


def test_every_file_that_the_page_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
