"""`embedcache modules list, fetch, pin, remove`, with a real server and a real cache."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest

import embedcache
from cli.main import cli
from embedcache.modules.handles import files_digest, parse_handle
from tests.embedcache.modules.module_server import ModuleServer, pack, serving

CommandLine = Any
Processes = Any

ROOT = Path(__file__).resolve().parents[2]
BUILTIN = "builtin:en-words-128"
LISTED = {
    "handle": str, "place": str, "path": str, "bytes": int, "digest": str, "fetched_at": str,
    "pinned": str, "views": list,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty module cache, which is the test's default one."""
    path = tmp_path / "modules"
    monkeypatch.setenv("EMBEDCACHE_MODULES", str(path))
    return path


@pytest.fixture
def server(tiny_module: str) -> Iterator[ModuleServer]:
    with serving(Path(tiny_module)) as started:
        yield started


@pytest.fixture
def archive(tmp_path: Path, tiny_module: str) -> Path:
    path = tmp_path / "tiny.tar.gz"
    path.write_bytes(pack(Path(tiny_module)))
    return path


@pytest.fixture
def changeable(tmp_path: Path, tiny_module: str) -> Path:
    """A copy of the tiny module that the test may change."""
    return Path(shutil.copytree(tiny_module, tmp_path / "changeable"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("the cat sat\na good film\nthe cat sat\n", encoding="utf-8")
    return path


def _types(record: Mapping[str, object]) -> dict[str, type]:
    return {name: type(value) for name, value in record.items()}


def _change(module: Path) -> str:
    """Change a module's files; their digest now."""
    (module / "assets").mkdir(exist_ok=True)
    (module / "assets" / "extra").write_bytes(b"changed")
    return files_digest(module)


def _of(record: Mapping[str, Any], handle: object) -> dict[str, Any]:
    (found,) = [module for module in record["modules"] if module["handle"] == str(handle)]
    return dict(found)


# list


def test_list_without_a_store_shows_bundled_modules_and_makes_nothing(
    ec: CommandLine, store: Path, cache: Path
) -> None:
    (module,) = ec.json(store, "modules", "list")["modules"]
    assert (module["handle"], module["place"], module["pinned"]) == (BUILTIN, "builtin", None)
    assert (module["views"], module["fetched_at"]) == ([], None)
    assert module["digest"] == files_digest(Path(module["path"]))
    assert not store.exists()
    assert not cache.exists()


def test_list_shows_fetched_and_pinned_modules_and_the_views_made_with_them(
    ec: CommandLine, store: Path, corpus: Path, archive: Path, changeable: Path
) -> None:
    new = _change(changeable)
    views = {
        module: ec.json(store, "build", corpus, "--module", module)["view"]
        for module in (archive, changeable)
    }
    record = ec.json(store, "modules", "list")
    assert [module["place"] for module in record["modules"]] == ["builtin", "cache", "folder"]
    fetched, folder = _of(record, archive), _of(record, changeable)
    assert _types(fetched) == LISTED
    assert fetched["views"] == [{"fingerprint": views[archive], "texts": 2}]
    assert fetched["pinned"] == fetched["digest"] == files_digest(Path(fetched["path"]))
    assert (folder["path"], folder["pinned"], folder["digest"]) == (str(changeable), new, None)
    assert folder["views"] == [{"fingerprint": views[changeable], "texts": 2}]


def test_view_is_listed_with_every_handle_of_its_files(
    ec: CommandLine, store: Path, corpus: Path, archive: Path, changeable: Path
) -> None:
    first, second = (
        ec.json(store, "build", corpus, "--module", module) for module in (archive, changeable)
    )
    assert (first["view"], second["hits"]) == (second["view"], 2)
    record = ec.json(store, "modules", "list")
    for handle in (archive, changeable):
        assert _of(record, handle)["views"] == [{"fingerprint": first["view"], "texts": 2}]


def test_list_tells_what_is_on_this_machine_no_more(
    ec: CommandLine, store: Path, archive: Path, changeable: Path
) -> None:
    for module in (archive, changeable):
        ec.ok(store, "modules", "pin", module)
    shutil.rmtree(changeable)
    places = {row["handle"]: row["place"] for row in ec.json(store, "modules", "list")["modules"]}
    assert places == {BUILTIN: "builtin", str(archive): "cache", str(changeable): "missing"}


def test_list_is_a_table_of_aligned_columns(
    ec: CommandLine, store: Path, corpus: Path, archive: Path
) -> None:
    view = ec.json(store, "build", corpus, "--module", archive)["view"]
    header, *rows = ec.ok(store, "modules", "list").splitlines()
    assert len(rows) == 2
    at = header.index("views (texts)")
    shown = [row[at:] for row in sorted(rows)]
    assert sorted(shown) == sorted(["-", f"{view[:12]} (2)"])
    pins = [row[header.index("pin ") :].split()[0] for row in rows]
    assert sorted(pins) == ["-", "agrees"]


def test_help_and_list_leave_tensorflow_alone(
    process: Processes, built: Any, archive: Path, cache: Path
) -> None:
    code = (
        "import contextlib, io, sys\n"
        "from cli.main import run\n"
        "commands = [['modules', '--help'], ['modules', 'fetch', sys.argv[1]],\n"
        "    ['modules', 'pin', sys.argv[1]], ['modules', 'list'], ['modules', 'list', '--json'],\n"
        "    ['modules', 'remove', sys.argv[1]], ['modules', 'convert', 'bert', '--help']]\n"
        "for command in commands:\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        assert run(['--store', sys.argv[2], *command]) == 0, command\n"
        "print(*{'tensorflow', 'keras', 'tensorflow_hub'} & set(sys.modules))\n"
    )
    store = built.copy(archive.parent / "store")
    done = process(
        archive, store, program=(sys.executable, "-c", code), EMBEDCACHE_MODULES=str(cache)
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


# fetch, pin, remove


def test_fetch_keeps_a_module_and_refresh_fetches_it_again(
    ec: CommandLine, store: Path, server: ModuleServer, tiny_module: str, cache: Path
) -> None:
    handle = f"{server.url}/google/tiny/1"
    (module,) = ec.json(store, "modules", "fetch", handle)["modules"]
    assert module["digest"] == files_digest(Path(tiny_module)) == files_digest(Path(module["path"]))
    assert (module["handle"], module["in_place"], module["preprocess"]) == (handle, False, None)
    assert cache in Path(module["path"]).parents
    lines = ec.ok(store, "modules", "fetch", handle).splitlines()
    assert lines[0] == f"{handle}: is in the module cache"
    assert lines[1].strip() == module["path"]
    assert lines[2].endswith(f"digest {module['digest']}")
    assert len(server.requests) == 1
    ec.ok(store, "modules", "fetch", handle, "--refresh")
    assert len(server.requests) == 2
    assert not store.exists()


def test_nothing_is_fetched_of_folders_and_bundled_modules(
    ec: CommandLine, store: Path, tiny_module: str, cache: Path
) -> None:
    shown = ec.ok(store, "modules", "fetch", BUILTIN, tiny_module)
    assert shown.count("is used where it lies; nothing is to be fetched") == 2
    modules = ec.json(store, "modules", "fetch", BUILTIN, tiny_module)["modules"]
    assert [module["in_place"] for module in modules] == [True, True]
    assert not cache.exists()


def test_a_slip_in_the_last_handle_is_told_before_anything_is_fetched(
    ec: CommandLine, store: Path, server: ModuleServer
) -> None:
    line = ec.error(store, "modules", "fetch", f"{server.url}/a/b/1", "ftp://example.org/m")
    assert "ftp://" in line
    assert server.requests == []


@pytest.mark.parametrize("command", ["fetch", "inspect", "pin"])
def test_module_that_the_server_lacks_is_one_line(
    ec: CommandLine, store: Path, server: ModuleServer, command: str
) -> None:
    server.fault = "404"
    line = ec.error(store, "modules", command, f"{server.url}/google/none/1")
    assert "cannot be fetched (HTTP 404" in line
    assert not store.exists()


def test_inspect_fetches_what_is_not_there(
    ec: CommandLine, store: Path, server: ModuleServer
) -> None:
    report = ec.json(store, "modules", "inspect", f"{server.url}/google/tiny/1")
    assert (report["usable"], len(server.requests)) == (True, 1)


def test_pin_makes_the_store_and_pins_the_digest_that_is_asked_for(
    ec: CommandLine, store: Path, changeable: Path
) -> None:
    digest = files_digest(changeable)
    pin = ec.json(store, "modules", "pin", changeable, "--digest", digest.upper())
    assert pin == {"handle": str(changeable), "digest": digest, "before": None}
    with embedcache.open_store(store, create=False) as opened:
        assert opened.catalog.module_pin(str(changeable)) == digest


def test_pin_refuses_other_files_and_shows_both_digests(
    ec: CommandLine, store: Path, changeable: Path
) -> None:
    digest = files_digest(changeable)
    new = _change(changeable)
    line = ec.error(store, "modules", "pin", changeable, "--digest", digest)
    assert f"have the digest {new}, not {digest}; nothing was pinned" in line
    assert not store.exists()


def test_pinned_module_that_changes_is_refused_by_a_build(
    ec: CommandLine, store: Path, corpus: Path, changeable: Path
) -> None:
    ec.ok(store, "modules", "pin", changeable)
    _change(changeable)
    assert "this store has pinned" in ec.error(store, "build", corpus, "--module", changeable)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pin", BUILTIN, "--digest", "12ab"), "is not 32 hexadecimal digits"),
        (("pin", BUILTIN, "--digest", "x" * 32), "is not 32 hexadecimal digits"),
        (("fetch",), "Missing argument 'HANDLE...'"),
        (("inspect",), "Missing argument 'HANDLE'"),
        (("remove", "a", "b"), "unexpected extra argument"),
        (("nope",), "No such command 'nope'"),
        (("convert", "vectors", "a"), "Missing argument 'TARGET'"),
        (("convert", "vectors", "a", "b", "--format", "csv"), "'csv' is not one of"),
        (("convert", "vectors", "a", "b", "--combiner", "max"), "'max' is not one of"),
        (("convert", "vectors", "a", "b", "--max-words", "0"), "0 is not in the range"),
        (("convert", "bert", "a", "b", "--max-seq-length", "2"), "2 is not in the range"),
    ],
    ids=str,
)
def test_wrong_usage_has_status_2(
    ec: CommandLine, store: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = ec(store, "modules", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not store.exists()


def test_remove_takes_the_copy_and_the_pin_and_then_there_is_nothing(
    ec: CommandLine, store: Path, archive: Path, cache: Path
) -> None:
    ec.ok(store, "modules", "pin", archive)
    lines = ec.ok(store, "modules", "remove", archive).splitlines()
    assert lines == [
        f"{archive}: removed from the module cache", f"{archive}: no longer pinned in {store}",
    ]  # fmt: skip
    assert [path.name for path in cache.iterdir()] == ["tmp"]
    assert [row["handle"] for row in ec.json(store, "modules", "list")["modules"]] == [BUILTIN]
    line = ec.error(store, "modules", "remove", archive)
    assert f"is not in the module cache {cache}, nor pinned in {store}" in line


def test_remove_without_a_store_takes_the_copy_alone(
    ec: CommandLine, store: Path, archive: Path
) -> None:
    ec.ok(store, "modules", "fetch", archive)
    removal = ec.json(store, "modules", "remove", archive)
    assert removal == {"handle": str(archive), "removed": True, "unpinned": False}
    assert "and there is no store" in ec.error(store, "modules", "remove", archive)
    assert not store.exists()


def test_remove_leaves_a_folder_and_features_alone(
    ec: CommandLine, store: Path, corpus: Path, changeable: Path
) -> None:
    ec.ok(store, "build", corpus, "--module", changeable)
    removal = ec.json(store, "modules", "remove", changeable)
    assert removal == {"handle": str(changeable), "removed": False, "unpinned": True}
    assert (changeable / "saved_model.pb").is_file()
    assert ec.json(store, "build", corpus, "--module", changeable)["hits"] == 2


@pytest.mark.parametrize("command", [("list",), ("inspect", BUILTIN), ("pin", BUILTIN),
                                     ("remove", BUILTIN)])  # fmt: skip
def test_what_is_no_store_is_refused_and_left_alone(
    ec: CommandLine, tmp_path: Path, command: tuple[str, ...]
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes").write_text("mine\n", encoding="utf-8")
    assert str(foreign) in ec.error(foreign, "modules", *command)
    assert [path.name for path in foreign.iterdir()] == ["notes"]


# what the documentation says


def _documented(name: str) -> list[list[str]]:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return [
        shlex.split(line) for line in re.findall(r"^    embedcache (.+)", text, flags=re.MULTILINE)
    ]


def test_every_command_of_the_guide_can_be_called_so() -> None:
    commands = _documented("modules.md")
    assert {words[0] for words in commands} == {"build", "get", "modules", "train"}
    for words in commands:
        command: click.Command = cli
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None
            command = found
        command.make_context("embedcache", words)  # raises what is wrong with the line


def test_handles_of_the_guide_are_handles() -> None:
    text = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
    table = text.split("| a handle | is |\n|---|---|\n")[1].split("\n\n")[0]
    handles = [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in table.splitlines()]
    kinds = [[parse_handle(handle).kind for handle in row] for row in handles]
    assert kinds == [
        ["builtin"], ["folder", "folder"], ["archive", "archive"], ["url"], ["url"], ["url"],
        ["url"],
    ]  # fmt: skip
    assert parse_handle(handles[4][0]).target == parse_handle(handles[5][0]).target


def test_json_keys_are_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = text.split("## modules\n")[1].split("\n## ")[0]
    named = set(re.findall(r"\b[a-z_]+\b", " ".join(re.findall(r"`([^`]+)`", section))))
    assert {*LISTED, "in_place", "before", "removed", "unpinned", "fingerprint", "texts"} <= named


def test_guide_links_to_what_is_there() -> None:
    text = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)", text, flags=re.MULTILINE)
    }
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert links
    assert links <= headings
