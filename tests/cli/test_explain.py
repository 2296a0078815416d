"""`explain`, and the hint that a build gives: why a cache does not hit."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import embedcache
from embedcache.keys import key_of_text

CommandLine = Any
Processes = Any

TEXTS = ["one two three", "four five six seven", "eight"]
EXPLANATION = {
    "key": str, "text_bytes": int, "hit": bool, "view": str, "module": str, "tokens": int,
    "truncated": bool, "windowed": bool, "shard": str, "others": list, "variants": list,
}  # fmt: skip
MISS = EXPLANATION | dict.fromkeys(("tokens", "truncated", "windowed", "shard"), type(None))


def _types(record: dict[str, object]) -> dict[str, type]:
    return {name: type(value) for name, value in record.items()}


@pytest.fixture(scope="module")
def few(ec: CommandLine, tiny_module: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `TEXTS` under one view, three tokens long at most."""
    folder = tmp_path_factory.mktemp("explain")
    (folder / "a.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    ec.ok(folder / "store", "build", folder / "a.txt", "--module", tiny_module, "--max-tokens", "3")
    return folder / "store"


def test_a_hit_tells_where_the_text_lies(ec: CommandLine, few: Path, tiny_module: str) -> None:
    arguments = ("explain", TEXTS[1], "--module", tiny_module, "--max-tokens", "3")
    record = ec.json(few, *arguments)
    assert _types(record) == EXPLANATION
    with embedcache.open_store(few) as store:
        (view,), (shard,) = store.catalog.views(), store.catalog.shards()
    assert record == {
        "key": key_of_text(TEXTS[1]).hex(), "text_bytes": 19, "hit": True,
        "view": view.fingerprint, "module": tiny_module, "tokens": 3, "truncated": True,
        "windowed": False, "shard": shard.digest, "others": [], "variants": [],
    }  # fmt: skip
    first, second = ec.ok(few, *arguments).splitlines()
    assert first == f"key {record['key']}, 19 bytes; view {view.fingerprint[:12]} ({tiny_module})"
    assert second == f"a hit: 3 tokens, cut, in shard {shard.digest[:12]}"


def test_a_miss_names_the_field_and_the_option_that_would_hit(
    ec: CommandLine, few: Path, tiny_module: str
) -> None:
    arguments = ("explain", TEXTS[0], "--module", tiny_module, "--dtype", "float32")
    record = ec.json(few, *arguments)
    assert _types(record) == MISS
    (other,) = record["others"]
    assert (other["module"], len(other["view"])) == (tiny_module, 32)
    assert other["differences"] == [
        {"field": "max_tokens", "stored": 3, "asked": 512, "option": "--max-tokens 3",
         "follows": "", "note": ""},
        {"field": "dtype", "stored": "float16", "asked": "float32", "option": "--dtype float16",
         "follows": "", "note": ""},
    ]  # fmt: skip
    assert ec.ok(few, *arguments).splitlines()[1:] == [
        "a miss",
        f"stored under view {other['view'][:12]} ({tiny_module}):",
        "  max_tokens: 3 → 512  (--max-tokens 3)",
        "  dtype: float16 → float32  (--dtype float16)",
    ]
    options = [found["option"].split() for found in other["differences"]]
    assert ec.json(few, *arguments, *options[0], *options[1])["hit"]


def test_another_module_is_told(ec: CommandLine, few: Path, make_module: Any) -> None:
    other = make_module(seed=7)
    lines = ec.ok(few, "explain", TEXTS[0], "--module", other).splitlines()
    assert lines[1] == "a miss"
    (line,) = [line for line in lines if line.startswith("  module_digest: ")]
    assert re.fullmatch(r"  module_digest: \w{12} → \w{12}  \(--module .*; another module\)", line)


def test_a_text_that_nearly_is_there_is_told(ec: CommandLine, few: Path, tiny_module: str) -> None:
    arguments = ("explain", "One two three ", "--module", tiny_module, "--max-tokens", "3")
    record = ec.json(few, *arguments)
    assert (record["hit"], record["others"]) == (False, [])
    assert record["variants"] == [
        {
            "what": "lower-cased with white space collapsed",
            "key": key_of_text(TEXTS[0]).hex(),
            "views": [record["view"]],
        }
    ]
    assert ec.ok(few, *arguments).splitlines()[1:] == [
        "a miss",
        "stored: the same text lower-cased with white space collapsed"
        f" (view {record['view'][:12]})",
    ]


def test_a_text_that_is_nowhere_is_told(ec: CommandLine, few: Path, tiny_module: str) -> None:
    lines = ec.ok(few, "explain", "never seen", "--module", tiny_module).splitlines()
    assert lines[1:] == [
        "a miss",
        "no view of the store holds it, nor a text that is nearly the same",
    ]


def test_a_view_of_the_store_may_be_asked_for(ec: CommandLine, few: Path) -> None:
    (view,) = ec.json(few, "views", "list")["views"]
    assert ec.json(few, "explain", TEXTS[0], "--view", view["fingerprint"][:8])["hit"]
    assert "no view" in ec.error(few, "explain", TEXTS[0], "--view", "zz")


def test_a_view_and_its_options_at_once_are_wrong_usage(ec: CommandLine, few: Path) -> None:
    done = ec(few, "explain", TEXTS[0], "--view", "ab", "--max-tokens", "512")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--view says it all; leave --max-tokens out" in done.stderr


def test_lines_of_standard_input_are_explained_and_counted(
    ec: CommandLine, few: Path, tiny_module: str
) -> None:
    stdin = f"{TEXTS[0]}\n{TEXTS[0]} \nnever seen\r\n{TEXTS[2]}\n".encode()
    arguments = ("explain", "-", "--module", tiny_module)
    record = ec.json(few, *arguments, "--max-tokens", "3", stdin=stdin)
    counts = ("texts", "hits", "other_view", "variant", "nowhere")
    assert [record[name] for name in counts] == [4, 2, 0, 1, 1]
    assert [_types(found) for found in record["explanations"]] == [
        EXPLANATION, MISS, MISS, EXPLANATION,
    ]  # fmt: skip
    assert {found["view"] for found in record["explanations"]} == {record["view"]}
    lines = ec.ok(few, *arguments, stdin=stdin).splitlines()
    under = f"stored under view {record['view'][:12]} ({tiny_module}): --max-tokens 3 would hit"
    assert lines[0] == f"line 1: a miss; {under}"
    assert lines[1] == "line 2: a miss; stored without white space at its end"
    assert lines[2].startswith("line 3: a miss; no view of the store holds it")
    assert lines[3] == f"line 4: a miss; {under}"
    assert lines[4].endswith(
        ": 0 hits, 2 under other views only, 1 stored as nearly the same text, 1 nowhere"
    )
    assert lines[5:] == [f"       2  {under}", "       1  stored without white space at its end"]


def test_what_cannot_be_explained_is_one_line(
    ec: CommandLine, few: Path, tmp_path: Path, tiny_module: str
) -> None:
    assert "`embedcache build CORPUS`" in ec.error(tmp_path / "nothing", "explain", "a")
    embedcache.open_store(tmp_path / "empty").close()
    line = ec.error(tmp_path / "empty", "explain", "a", "--module", tiny_module)
    assert "holds no features yet" in line
    assert str(tmp_path / "no") in ec.error(few, "explain", "a", "--module", tmp_path / "no")
    assert "has no layers" in ec.error(few, "explain", "a", "--module", tiny_module, "--layer", "3")
    assert "lone surrogate" in ec.error(few, "explain", "\udc80", "--module", tiny_module)
    assert "no documents" in ec.error(few, "explain", "-", "--module", tiny_module, stdin=b"")


def test_explaining_writes_nothing(ec: CommandLine, few: Path, tiny_module: str) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in few.rglob("*") if path.is_file()}

    before = files()
    for text in (TEXTS[0], "never seen"):
        ec.ok(few, "explain", text, "--module", tiny_module, "--granularity", "sentence")
    assert files() == before


def test_explaining_loads_neither_tensorflow_nor_keras(
    process: Processes, few: Path, tiny_module: str
) -> None:
    code = (
        "import sys\n"
        "from cli.main import run\n"
        "assert run(sys.argv[1:]) == 0\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    for text in (TEXTS[0], "never seen"):
        words = ("--store", str(few), "explain", text, "--module", tiny_module, "--json")
        done = process(*words, program=(sys.executable, "-c", code))
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["hit"] is False


# The hint after a build


def _build_two_views(ec: CommandLine, folder: Path, module: str, *arguments: str) -> Any:
    """Build a corpus, 10 tokens long at most, and build it once more with other options."""
    (folder / "a.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    build = ("build", folder / "a.txt", "--module", module)
    first = ec(folder / "store", *build, "--max-tokens", "10")
    assert (first.returncode, first.stderr) == (0, ""), "there is nothing to hint at yet"
    return ec(folder / "store", *build, *arguments)


def test_a_build_that_misses_what_another_view_has_ends_with_a_hint(
    ec: CommandLine, tmp_path: Path, tiny_module: str
) -> None:
    done = _build_two_views(ec, tmp_path, tiny_module)
    assert done.returncode == 0
    assert "0 hits, 3 misses" in done.stdout
    assert re.fullmatch(
        r"hint: 3 of the 3 new texts are stored under view \w{12} of the same module; differs:"
        r" max_tokens 10, now 512 \(--max-tokens 10 would have hit\)\n",
        done.stderr,
    )


def test_the_hint_is_a_field_of_the_json(ec: CommandLine, tmp_path: Path, tiny_module: str) -> None:
    done = _build_two_views(ec, tmp_path, tiny_module, "--json")
    assert done.stderr == ""
    hint = json.loads(done.stdout)["hint"]
    assert (set(hint), hint["texts"]) == ({"view", "texts", "differences"}, 3)
    (difference,) = hint["differences"]
    assert (difference["field"], difference["option"]) == ("max_tokens", "--max-tokens 10")
    assert hint["view"] in {view["fingerprint"] for view in ec.json(
        tmp_path / "store", "views", "list"
    )["views"]}  # fmt: skip


def test_a_build_that_hits_has_no_hint(ec: CommandLine, tmp_path: Path, tiny_module: str) -> None:
    done = _build_two_views(ec, tmp_path, tiny_module, "--max-tokens", "10")
    assert (done.returncode, done.stderr) == (0, "")
    again = ("build", tmp_path / "a.txt", "--module", tiny_module, "--max-tokens", "10")
    assert ec.json(tmp_path / "store", *again)["hint"] is None


def test_a_corpus_that_is_new_to_every_view_has_no_hint(
    ec: CommandLine, tmp_path: Path, tiny_module: str
) -> None:
    _build_two_views(ec, tmp_path, tiny_module)
    (tmp_path / "b.txt").write_text("not seen\nby any view\n", encoding="utf-8")
    done = ec(tmp_path / "store", "build", tmp_path / "b.txt", "--module", tiny_module)
    assert (done.returncode, done.stderr) == (0, "")
