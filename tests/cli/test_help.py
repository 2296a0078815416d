"""Every command and every option is told by ``--help`` and in the documentation."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from cli.main import _COMMANDS, cli

CommandLine = Any
Processes = Any
Built = Any

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def _commands(
    group: click.Group = cli, names: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it, and the program itself with none."""
    yield names, group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, (*names, name))
        else:
            yield (*names, name), command


COMMANDS = dict(_commands())
IDS = [" ".join(names) or "embedcache" for names in COMMANDS]


def test_every_command_of_the_contract_is_there() -> None:
    contract = {
        "build", "train", "predict", "get", "stats", "verify", "runs list", "runs show",
        "datasets list", "datasets show", "views list", "views show", "compact", "gc",
    }  # fmt: skip
    assert contract <= set(IDS)
    assert set(_COMMANDS) == {names[0] for names in COMMANDS if names}


@pytest.mark.parametrize("names", COMMANDS, ids=IDS)
def test_help_names_every_option_and_what_it_does(
    ec: CommandLine, tmp_path: Path, names: tuple[str, ...]
) -> None:
    shown = ec.ok(tmp_path, *names, "--help")
    assert shown.startswith("Usage: embedcache")
    command = COMMANDS[names]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help
            assert all(flag in shown for flag in parameter.opts)
        else:
            assert parameter.make_metavar(click.Context(command)) in shown
    assert "\\b" not in shown


def test_the_programs_help_names_every_command_and_shows_an_example(
    ec: CommandLine, tmp_path: Path
) -> None:
    lines = ec.ok(tmp_path, "--help").splitlines()
    assert lines == ec.ok(tmp_path, "-h").splitlines()
    listed = {line.split()[0] for line in lines[lines.index("Commands:") + 1 :] if line}
    assert listed == set(_COMMANDS)
    examples = [line for line in lines if line.startswith("  " * 2 + "embedcache ")]
    assert len(examples) == 2


@pytest.mark.parametrize("names", COMMANDS, ids=IDS)
def test_the_documentation_names_every_command_and_option(names: tuple[str, ...]) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    # Such as `embedcache runs list | show RUN`.
    words = [rf"\b{word}\b" for word in names]
    assert re.search(".*".join(["embedcache", *words]), text)
    for parameter in COMMANDS[names].params:
        if isinstance(parameter, click.Option) and parameter.name != "version":
            assert all(flag in text for flag in parameter.opts)


def test_light_commands_load_neither_tensorflow_nor_keras(process: Processes, built: Built) -> None:
    commands = [
        ["stats"], ["get", built.texts[0]], ["runs", "list"], ["verify"], ["datasets", "list"],
        ["views", "list"], ["build", str(built.corpus), "--dry-run"], ["gc"], ["store", "info"],
    ]  # fmt: skip
    code = (
        "import contextlib, io, json, sys\n"
        "from cli.main import run\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        f"        assert run(['--store', {str(built.store)!r}, *command]) == 0, command\n"
        "    loaded = {'tensorflow', 'keras', 'tensorflow_hub'} & set(sys.modules)\n"
        "    assert not loaded, (command, loaded)\n"
    )
    done = process(json.dumps(commands), program=(sys.executable, "-c", code))
    assert (done.returncode, done.stderr) == (0, "")


def test_commands_that_only_fail_load_neither(process: Processes, built: Built) -> None:
    code = (
        "import sys\n"
        "from cli.main import run\n"
        f"store = ['--store', {str(built.store)!r}]\n"
        "assert run([*store, 'train', 'nope']) == 1\n"
        "assert run([*store, 'train', '--batch-size', '9999']) == 1\n"
        "assert run([*store, 'predict', 'nope', 'text']) == 1\n"
        "assert run([*store, 'build', 'nope.txt']) == 1\n"
        "print(*({'tensorflow', 'keras'} & set(sys.modules)))\n"
    )
    done = process(program=(sys.executable, "-c", code))
    assert done.stdout.strip() == ""
    assert len(done.stderr.splitlines()) == 4
