"""What a handle names, and what is said of folders that are no whole SavedModel."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from embedcache.errors import ModuleError
from embedcache.modules.handles import (
    DEFAULT_HANDLE,
    files_digest,
    files_stamp,
    is_folder,
    parse_handle,
    resolve_handle,
)

NNLM = "https://www.kaggle.com/models/google/nnlm/TensorFlow2/en-dim128/1"


@pytest.fixture
def module(tiny_module: Path, tmp_path: Path) -> Path:
    """A copy of the tiny module that a test may change."""
    return Path(shutil.copytree(tiny_module, tmp_path / "a module"))


def refusal(handle: str | Path) -> str:
    """The one line with which a handle is refused."""
    with pytest.raises(ModuleError) as error:
        resolve_handle(str(handle))
    message = str(error.value)
    assert "\n" not in message
    assert str(handle) in message
    return message


def test_bundled_module_and_folder_are_used_where_they_lie(
    module: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(module.parent)
    assert resolve_handle(module.name) == module
    assert resolve_handle(DEFAULT_HANDLE).name == "en-words-128"
    assert not (tmp_path / "modules").exists()
    assert is_folder(module.name)
    assert not is_folder(DEFAULT_HANDLE)


def test_home_folder_is_expanded(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(module.parent))
    assert resolve_handle(f"~/{module.name}") == module
    assert "no such folder" in refusal("~/nothing")


@pytest.mark.parametrize(
    "url",
    [
        NNLM,
        "https://kaggle.com/models/google/nnlm/TensorFlow2/en-dim128/1",
        "https://www.kaggle.com/models/google/nnlm/tensorFlow2/en-dim128/1?tfhub-redirect=true",
        "https://www.kaggle.com/models/google/nnlm/frameworks/TensorFlow2/variations/en-dim128"
        "/versions/1",
        "google/nnlm/tensorFlow2/en-dim128/1",
    ],
)
def test_every_name_of_a_kaggle_model_is_one_url(url: str) -> None:
    parsed = parse_handle(url)
    assert (parsed.kind, parsed.target, parsed.lasting) == ("url", NNLM, NNLM)
    assert parsed.guessed == (not url.startswith("https"))


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://tfhub.dev/google/nnlm-en-dim128/2/", "https://tfhub.dev/google/nnlm-en-dim128/2"),
        ("HTTPS://TFHub.dev/google/LaBSE/2#usage", "https://tfhub.dev/google/LaBSE/2"),
        ("https://a.org/m?b=1&tf-hub-format=compressed", "https://a.org/m?b=1"),
        ("https://a.org/m.tar.gz?signed=%2B%3D", "https://a.org/m.tar.gz?signed=%2B%3D"),
        ("gs://bucket/m/", "gs://bucket/m"),
    ],
)
def test_urls_have_one_form(url: str, target: str) -> None:
    assert parse_handle(url).target == target


def test_existing_folder_wins_over_a_name_of_kaggles(
    tiny_module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    handle = "google/nnlm/tensorFlow2/en-dim128/1"
    assert not is_folder(handle)
    shutil.copytree(tiny_module, tmp_path / handle)
    assert is_folder(handle)
    assert resolve_handle(handle) == tmp_path / handle


@pytest.mark.parametrize(
    "handle", ["a/b/c/d", "a/b/c/d/e", "a/b/c/d/1/2", "./a/b/c/1", "/a/b/c/d/1", "../a/b/c/1"]
)
def test_other_missing_paths_are_folders(handle: str) -> None:
    assert parse_handle(handle).kind == "folder"
    assert "no such folder" in refusal(handle)


def test_name_of_kaggles_that_does_not_come_tells_both_readings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Port 9 of loopback: nothing listens there.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    message = refusal("google/nnlm/tensorFlow2/en-dim128/1")
    assert f"from {NNLM}" in message
    assert "there is no folder google/nnlm/tensorFlow2/en-dim128/1" in message
    assert "there is no folder" not in refusal(NNLM)


@pytest.mark.parametrize(
    ("handle", "part"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("s3://bucket/module", "cannot start with s3://"),
        ("file:///models/nnlm", "cannot start with file://"),
        ("https://", "not a URL"),
        ("https://a.org/a module", "not a URL"),
        ("https://a.org:port/m", "not a URL"),
        ("https://[a.org/m", "not a URL"),
        ("https://www.kaggle.com/models/google/nnlm", "no version"),
        ("https://www.kaggle.com/models/google/nnlm/tensorFlow2/en-dim128", "no version"),
        ("builtin:no-such", "no built-in module"),
        ("~nobody-of-that-name/module", "cannot be read as a path"),
        ("x" * 5000, "cannot be read as a path"),
    ],
)
def test_what_is_no_handle_is_refused_in_one_line(handle: str, part: str) -> None:
    with pytest.raises(ModuleError, match=part) as error:
        resolve_handle(handle)
    assert "\n" not in str(error.value)


def test_password_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(ModuleError, match="user name") as error:
        parse_handle("https://me:secret@a.org/m")
    assert "secret" not in str(error.value)


def test_missing_folder_and_file_are_refused(module: Path, tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nothing")
    assert f"name its folder, {module}" in refusal(module / "saved_model.pb")
    (tmp_path / "notes.txt").write_text("x")
    assert "not a folder" in refusal(tmp_path / "notes.txt")


def test_folder_without_a_saved_model_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert "no SavedModel there" in message
    assert "interrupted" in message


@pytest.mark.parametrize("name", ["encoder", "module"])
def test_saved_model_one_level_below_is_named(tiny_module: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(tiny_module, tmp_path / "outer" / name)
    message = refusal(tmp_path / "outer")
    assert message.endswith(f"name {tmp_path / 'outer' / name}")


@pytest.mark.parametrize(
    ("lost", "part"),
    [
        ("variables/variables.index", "lacks its index"),
        ("variables/variables.data-00000-of-00001", "lacks its data"),
    ],
)
def test_saved_model_without_a_file_is_half_downloaded(module: Path, lost: str, part: str) -> None:
    assert resolve_handle(str(module)) == module
    (module / lost).unlink()
    message = refusal(module)
    assert "half-downloaded" in message
    assert part in message


@pytest.mark.parametrize("emptied", ["saved_model.pb", "variables/variables.index"])
def test_saved_model_with_an_empty_file_is_half_downloaded(module: Path, emptied: str) -> None:
    (module / emptied).write_bytes(b"")
    message = refusal(module)
    assert "half-downloaded" in message
    assert f"{module / emptied} is empty" in message


def test_saved_model_with_some_of_its_data_files_is_half_downloaded(module: Path) -> None:
    data = module / "variables" / "variables.data-00000-of-00001"
    data.rename(data.with_name("variables.data-00001-of-00002"))
    assert "has 1 of 2 data files" in refusal(module)
    data.with_name("variables.data-00000-of-00002").write_bytes(b"x")
    assert resolve_handle(str(module)) == module


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_that_may_not_be_read_is_one_line(module: Path) -> None:
    module.chmod(0)
    try:
        assert "cannot be read" in refusal(module)
    finally:
        module.chmod(0o700)


def test_digest_is_of_names_and_contents_only(module: Path, tiny_module: Path) -> None:
    assert files_digest(module) == files_digest(tiny_module)
    stamp = files_stamp(module)
    assert files_stamp(module) == stamp
    with (module / "saved_model.pb").open("ab") as file:
        file.write(b"\0")
    assert files_digest(module) != files_digest(tiny_module)
    assert files_stamp(module) != stamp
