"""`sweep` and `bakeoff` on the command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

CommandLine = Any
Built = Any

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "sweeps.md"
FAST = ("--grid", "preset=basic", "--grid", "epochs=1", "--grid", "batch_size=16")


@pytest.fixture(scope="module")
def swept(ec: CommandLine, built: Built, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A copy of the built store with the sweep "small", and what ``--json`` printed."""
    store = built.copy(tmp_path_factory.mktemp("swept") / "store")
    done = ec(
        store, "sweep", "helpdesk", "--grid", "filters=2,4", *FAST, "--name", "small", "--json"
    )
    assert done.returncode == 0, done.stderr
    return store, done


def test_json_has_every_point_and_baseline(ec: CommandLine, swept: Any, built: Built) -> None:
    store, done = swept
    record = ec.json(store, "sweep", "--show", "small")
    assert done.stdout.splitlines() == [click.unstyle(done.stdout).strip()], "one line"
    assert set(record) == {
        "sweep", "dataset", "version", "seeds", "rows", "done", "failed", "missing", "notes",
    }  # fmt: skip
    assert (record["sweep"], record["dataset"], record["seeds"]) == ("small", "helpdesk", [0])
    assert (record["done"], record["failed"], record["missing"]) == (4, 0, 0)
    assert record["notes"] == []
    kinds = [(row["baseline"], row["differing"]) for row in record["rows"]]
    for kind in (
        (None, {"filters": 2}), (None, {"filters": 4}), ("linear", {}), ("random", {}),
        ("majority", {}),
    ):  # fmt: skip
        assert kind in kinds
    for row in record["rows"]:
        assert set(row) == {
            "settings", "differing", "view", "baseline", "dev", "test", "seconds", "runs",
            "failures", "missing",
        }  # fmt: skip
        assert set(row["dev"]) == {"mean", "deviation", "interval", "count"}
        assert row["test"] is None, "the corpus has no test split"
        if row["baseline"] != "majority":
            assert row["view"] == built.build["view"]
            assert list(row["runs"]) == ["0"]


def test_each_training_is_told_as_it_is_done(swept: Any) -> None:
    lines = [line for line in swept[1].stderr.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in lines] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    assert any(
        "filters=4 preset=basic epochs=1 batch_size=16 seed 0: dev" in line for line in lines
    )
    assert any("random embedding seed 0: dev" in line for line in lines)


def test_table_shows_what_differs_and_names_the_baselines(ec: CommandLine, swept: Any) -> None:
    store, _ = swept
    lines = ec.ok(store, "sweep", "--show").splitlines()
    assert lines[0].split("  ")[0] == "dev"
    assert lines[0].split()[-1] == "filters"
    assert "preset" not in lines[0], "the same everywhere"
    assert "test" not in lines[0]
    for name in ("majority class", "logistic regression", "random embedding"):
        assert sum(name in line for line in lines) == 1
    assert re.fullmatch(r"sweep small of helpdesk@\w{12}: 4 trainings done", lines[-1])


def test_resume_of_what_is_done_trains_nothing(ec: CommandLine, swept: Any) -> None:
    store, done = swept
    for words in (["helpdesk", "--resume"], ["--resume", "small"]):
        again = ec(store, "sweep", *words, "--json")
        assert (again.returncode, again.stderr) == (0, "")
        assert again.stdout == done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--grid", "nope=1"], "a grid has no field 'nope'; there are: preset"),
        (["--grid", "filters=1..5"], "filters is a range"),
        (["--random", "3"], "points are drawn from a grid"),
        (["--name", "a", "--resume", "b"], "begun under a name or resumed by it"),
        (["--show", "small", "--grid", "filters=1"], "--show trains nothing"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_wrong_command_line_is_status_2(
    ec: CommandLine, swept: Any, words: list[str], said: str
) -> None:
    done = ec(swept[0], "sweep", *words)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "no dataset 'nope'"),
        (["--resume", "nope"], "no sweep 'nope' in"),
        (["--show", "nope"], "there are: small"),
        (["--name", "small"], "there is a sweep 'small' already"),
        (["--name", "../x"], "'../x' cannot name a sweep"),
        (["--grid", "view=zz"], "no view 'zz'"),
        (["--grid", "layer=3"], "has the layer '3'"),
    ],
)
def test_sweep_that_cannot_be_is_one_line(
    ec: CommandLine, swept: Any, words: list[str], said: str
) -> None:
    assert said in ec.error(swept[0], "sweep", *words)


def test_layer_that_is_not_there_comes_with_the_command_that_builds_it(
    ec: CommandLine, swept: Any, built: Built
) -> None:
    line = ec.error(swept[0], "sweep", "--grid", "layer=3")
    (command,) = re.findall("`embedcache (build .*)`", line)
    words = shlex.split(command)
    assert words[1] == str(built.corpus)
    assert words[2:] == [
        "--module",
        "builtin:en-words-128",
        "--layer",
        "3",
        "--dataset",
        "helpdesk",
    ]


def test_bakeoff_prints_candidates_and_what_the_winner_gave(
    ec: CommandLine, built: Built, copied: Path
) -> None:
    # The store has every text already: no module is loaded.
    words = ["bakeoff", built.corpus, "--module", "builtin:en-words-128", "--sample", "80",
             "--seeds", "1", *FAST]  # fmt: skip
    done = ec(copied, *words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "on 80 documents of 120, dataset helpdesk-part-80"
    assert lines[1].split()[-2:] == ["layer", "module"]
    assert lines[2].split()[-1] == "builtin:en-words-128"
    assert "the whole built, 120 hits, 0 misses" in lines[3]
    record = ec.json(copied, *words)
    assert set(record) == {
        "dataset", "part", "version", "documents", "total", "sweep", "whole_sweep", "rows",
    }  # fmt: skip
    (row,) = record["rows"]
    assert set(row) == {
        "module", "layer", "view", "dev", "test", "texts_per_second", "missing",
        "projected_seconds", "projected_bytes", "cost_rank", "kept", "whole", "built",
    }  # fmt: skip
    assert (row["kept"], row["missing"]) == (True, 0)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["nope.txt", "--module", "builtin:en-words-128"], 1, "nope.txt"),
        (["-", "--module", "builtin:en-words-128"], 1, "standard input can be read only once"),
        (["CORPUS"], 2, "--module"),
        (["CORPUS", "--module", "no-such-module"], 1, "no-such-module"),
        (["CORPUS", "--module", "builtin:en-words-128", "--sample", "2"], 1, "is too small for 6"),
        (
            ["CORPUS", "--module", "x", "--grid", "layer=3"],
            2,
            "layer is for the bake-off to choose",
        ),
        (["CORPUS", "--module", "x", "--grid", "nope=3"], 2, "a grid has no field 'nope'"),
    ],
)
def test_bakeoff_that_cannot_be_is_refused(
    ec: CommandLine, built: Built, copied: Path, words: list[str], status: int, said: str
) -> None:
    given = [str(built.corpus) if word == "CORPUS" else word for word in words]
    done = ec(copied, "bakeoff", *given)
    assert done.returncode == status
    assert said in done.stderr.splitlines()[-1]


def test_every_command_line_of_the_document_can_be_parsed() -> None:
    from cli.main import cli

    text = DOCUMENT.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^    embedcache (.+)$", text, flags=re.MULTILINE)
    assert len(lines) > 8
    for line in lines:
        name, *words = shlex.split(line, comments=True)
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, line
        command.make_context(name, words)
    named = set(re.findall(r"`embedcache (\w+)", text))
    assert named <= set(cli.list_commands(click.Context(cli)))
