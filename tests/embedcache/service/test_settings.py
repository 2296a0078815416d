"""Settings: defaults, the configuration file, and a clear line for each fault in it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from embedcache.errors import ServiceError
from embedcache.service.settings import Limits, ServiceSettings, load_settings


def _load(folder: Path, content: str) -> ServiceSettings:
    path = folder / "serve.toml"
    path.write_text(content, encoding="utf-8")
    return load_settings(path)


def test_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert _load(tmp_path, "") == ServiceSettings()


def test_every_setting_can_be_given(tmp_path: Path) -> None:
    limits = "\n".join(f"{item.name} = {number}" for number, item in enumerate(fields(Limits), 7))
    settings = _load(
        tmp_path,
        'host = "::1"\nport = 0\nviews = ["a=12", "34"]\nruns = ["r"]\nread_only = true\n'
        f'api_key_file = "keys"\npreload = true\n[limits]\n{limits}\n',
    )
    assert settings == ServiceSettings(
        host="::1",
        port=0,
        views=("a=12", "34"),
        runs=("r",),
        read_only=True,
        api_key_file=tmp_path / "keys",
        preload=True,
        limits=Limits(**{item.name: number for number, item in enumerate(fields(Limits), 7)}),
    )


def test_absolute_key_file_stays_where_it_is(tmp_path: Path) -> None:
    assert _load(tmp_path, 'api_key_file = "/etc/keys"').api_key_file == Path("/etc/keys")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("hots = 'x'", "there is no setting 'hots'; there are api_key_file, host,"),
        ("predictor = 'os:system'", "there is no setting 'predictor'"),
        ("port = '80'", "port must be a whole number"),
        ("port = 8080.5", "port must be a whole number"),
        ("port = true", "port must be a whole number"),
        ("port = 65536", "port is 65536; it must be 0 (any that is free) to 65535"),
        ("host = ''", "host is empty"),
        ("read_only = 1", "read_only must be true or false"),
        ("views = 'a'", "views must be a list of texts in quotes"),
        ("runs = [1]", "runs must be a list of texts in quotes"),
        ("limits = 3", "limits must be a table"),
        (
            "[limits]\nmax_text = 3",
            "[limits]: there is no setting 'max_text'; there are batch_wait",
        ),
        ("[limits]\nmax_texts = 2.5", "[limits]: max_texts must be a whole number"),
        ("[limits]\nmax_texts = 0", "max_texts is 0; it must be a finite number of at least 1"),
        ("[limits]\ndeadline_s = 'x'", "[limits]: deadline_s must be a number"),
        ("[limits]\ndeadline_s = inf", "deadline_s is inf; it must be a finite number"),
        ("[limits]\nread_timeout_s = nan", "read_timeout_s is nan; it must be a finite number"),
        ("[limits]\nbatch_wait_s = -1", "batch_wait_s is -1.0; it must be a finite number of at"),
        ("port = ", "this is no TOML"),
        ("port = 1\nport = 2", "this is no TOML"),
    ],
)
def test_fault_in_the_file_is_one_line_that_names_it(
    tmp_path: Path, content: str, said: str
) -> None:
    with pytest.raises(ServiceError) as caught:
        _load(tmp_path, content)
    message = str(caught.value)
    assert said in message
    assert message.startswith(f"{tmp_path / 'serve.toml'}")
    assert "\n" not in message


def test_bytes_that_are_no_utf8_are_told(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_bytes(b"host = '\xff'")
    with pytest.raises(ServiceError, match="this is no TOML"):
        load_settings(path)


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="cannot be read: No such file"):
        load_settings(tmp_path / "none.toml")
