"""`train` with what it can be told, interrupted and resumed; `runs` of every kind."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import PROGRAM

CommandLine = Any
Processes = Any
Built = Any

BASIC = ("--preset", "basic", "--epochs", "2")


@pytest.fixture(scope="module")
def trained(built: Built, ec: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a train and a test split, and two runs on them: "one" and "two"."""
    folder = tmp_path_factory.mktemp("runs")
    store = built.copy(folder / "store")
    lines = built.corpus.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "a.txt").write_text("".join(lines[:90]), encoding="utf-8")
    (folder / "b.txt").write_text("".join(lines[90:]), encoding="utf-8")
    ec.json(
        store, "build", f"train={folder / 'a.txt'}", f"test={folder / 'b.txt'}", "--dataset", "cut"
    )
    ec.json(store, "train", "cut", *BASIC, "--name", "one")
    ec.json(store, "train", "cut", *BASIC, "--name", "two", "--seed", "1", "--filters", "8")
    return store


@pytest.fixture
def changed(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    import shutil

    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


# train


def test_every_option_of_train_reaches_the_configuration(
    ec: CommandLine, trained: Path, changed: Path
) -> None:
    options = {
        "preset": "kim", "embedding": "nonstatic", "epochs": "1", "batch_size": "9",
        "batch_tokens": "200", "optimizer": "adadelta", "lr": "0.5", "max_norm": "2.5",
        "dropout": "0.25", "kernel_sizes": "2,3", "filters": "5", "class_weights": "balanced",
        "task": "single", "seed": "7", "dev_fraction": "0.2", "patience": "3", "on_leak": "drop",
        "near_duplicates": "0.97",
    }  # fmt: skip
    words = [
        word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    record = ec.json(changed, "train", "cut", "--length-buckets", *words)
    config = ec.json(changed, "runs", "show", record["run"])["config"]
    chosen = {**options, "learning_rate": options["lr"], "length_buckets": True, "folds": None}
    del chosen["lr"]
    assert set(config) == set(chosen)
    for name, value in chosen.items():
        if name == "kernel_sizes":
            assert config[name] == [2, 3]
        elif isinstance(value, str):
            assert str(config[name]) == value
        else:
            assert config[name] == value


def test_train_says_how_sure_it_is_and_what_it_saved(ec: CommandLine, changed: Path) -> None:
    shown = ec.ok(changed, "train", "cut", *BASIC)
    assert "test  accuracy" in shown
    assert "(95 %:" in shown
    assert "with the module in the loop: about" in shown


@pytest.mark.parametrize("embedding", ["rand", "multichannel"])
def test_runs_with_a_trained_table_predict_new_texts(
    ec: CommandLine, changed: Path, embedding: str
) -> None:
    record = ec.json(changed, "train", "cut", "--epochs", "1", "--embedding", embedding)
    assert (changed / "runs" / record["run"] / "tokens.npy").is_file()
    texts = ("the printer is out of paper", "an unheardof word")
    predicted = ec.json(changed, "predict", "last", *texts)["predictions"]
    for prediction in predicted:
        assert sum(prediction["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    (changed / "runs" / record["run"] / "tokens.npy").write_bytes(b"\x93NUMPY")
    line = ec.error(changed, "predict", "last", texts[0])
    assert "tokens.npy" in line


def test_multilabel_runs_are_told_by_the_corpus(
    ec: CommandLine, built: Built, copied: Path, tmp_path: Path
) -> None:
    places = range(60)
    lines = [
        f"__label__{'a' if place % 2 else 'b'} {'__label__c ' if place % 3 == 0 else ''}{text}\n"
        for place, text in zip(places, built.texts, strict=False)
    ]
    (tmp_path / "many.txt").write_text("".join(lines), encoding="utf-8")
    ec.json(copied, "build", tmp_path / "many.txt")
    record = ec.json(copied, "train", "many", *BASIC)
    assert 0.0 <= record["dev"]["micro_f1"] <= 1.0
    shown = ec.json(copied, "runs", "show", "last")
    assert (shown["task"], shown["labels"]) == ("multilabel", ["a", "b", "c"])
    assert [len(table) for table in shown["evaluation"]["dev"]["confusion"]] == [2, 2, 2]
    (prediction,) = ec.json(copied, "predict", "last", built.texts[0])["predictions"]
    assert set(prediction["probabilities"]) == {"a", "b", "c"}


# Interrupted


def start_training(process: Processes, store: Path, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*PROGRAM, "--store", str(store), "train", "helpdesk", "--epochs", "500", "--patience",
         "500", "--name", "long", *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=process.environment(),
    )  # fmt: skip


def wait_for_epochs(child: subprocess.Popen[bytes]) -> None:
    assert child.stderr is not None
    for _ in range(2):
        line = child.stderr.readline().decode()
        assert "epoch" in line, line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_was_done_and_says_how_to_go_on(
    ec: CommandLine, process: Processes, copied: Path, number: int
) -> None:
    endless = ("--epochs", "9999", "--patience", "9999")
    child = start_training(process, copied, "--preset", "linear", *endless)
    wait_for_epochs(child)
    # Not while it has a process: that one goes on.
    (unfinished,) = ec.json(copied, "runs", "list")["unfinished"]
    assert (unfinished["run"], unfinished["running"]) == ("long", True)
    assert "trained by another process" in ec.error(copied, "train", "--resume", "long")
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, b"")
    line = err.decode().splitlines()[-1]
    assert "what was done is kept; go on with `embedcache train --resume long`" in line
    (unfinished,) = ec.json(copied, "runs", "list")["unfinished"]
    assert not unfinished["running"]
    assert unfinished["epochs"] >= 2
    assert "unfinished: long, " in ec.ok(copied, "runs", "list")
    assert "no run 'long'" in ec.error(copied, "runs", "show", "long")
    # Deleted by name, like a finished one.
    assert ec.json(copied, "runs", "delete", "long")["deleted"][0]["unfinished"] is True
    assert ec.json(copied, "runs", "list")["unfinished"] == []
    assert list((copied / "checkpoints").iterdir()) == []


def test_a_killed_training_goes_on_by_command(
    ec: CommandLine, process: Processes, copied: Path
) -> None:
    child = start_training(process, copied, "--filters", "4", "--preset", "basic")
    wait_for_epochs(child)
    child.kill()
    child.communicate(timeout=60)
    line = ec.error(copied, "train", "--resume", "--filters", "5")
    assert "run long cannot go on: filters has changed, 4 → 5" in line
    assert "no unfinished training 'short'; there are: long" in ec.error(
        copied, "train", "--resume", "short"
    )
    # As long a training as can be waited for: fewer epochs are another configuration.
    assert "epochs has changed, 500 → 3" in ec.error(copied, "train", "--resume", "--epochs", "3")
    assert ec.json(copied, "runs", "list")["unfinished"][0]["run"] == "long"


def test_a_resumed_training_by_command_ends_as_a_whole_one(
    ec: CommandLine, changed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cli.interrupts import StepInterrupts

    checks = iter(range(100))

    def check(_self: StepInterrupts) -> None:
        if next(checks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(StepInterrupts, "check", check)
    done = ec(changed, "train", "cut", *BASIC, "--name", "half")
    assert done.returncode == 130
    assert "interrupted in epoch 2" in done.stderr
    record = ec.json(changed, "train", "--resume", "--preset", "basic")
    assert record["run"] == "half"
    shown = [ec.json(changed, "runs", "show", name) for name in ("one", "half")]
    for field in ("dev", "test", "epochs", "best_epoch", "evaluation"):
        assert shown[0][field] == shown[1][field]


# runs


def test_runs_are_listed_with_the_unfinished_apart(ec: CommandLine, trained: Path) -> None:
    listed = ec.json(trained, "runs", "list")
    assert [run["run"] for run in listed["runs"]][-2:] == ["one", "two"]
    assert listed["unfinished"] == []


def test_show_tells_everything(ec: CommandLine, trained: Path) -> None:
    shown = ec.json(trained, "runs", "show", "one")
    assert {"config", "labels", "task", "tags", "evaluation", "cost", "versions", "code",
            "platform", "started_at", "finished_at", "history"} <= set(shown)  # fmt: skip
    confusion = shown["evaluation"]["test"]["confusion"]
    assert sum(map(sum, confusion)) == 30
    cost = shown["cost"]
    # The texts were computed under another name: that costs this dataset nothing.
    assert "were stored by builds of other corpora" in cost["features"]["note"]
    assert cost["in_loop"]["ratio"] > 1.0
    text = ec.ok(trained, "runs", "show", "one")
    assert "precision" in text
    assert "module in the loop" in text


def test_lineage_leads_back_to_the_files(ec: CommandLine, built: Built, trained: Path) -> None:
    lineage = ec.json(trained, "runs", "show", "two", "--lineage")["lineage"]
    assert [Path(source["path"]).name for source in lineage["sources"]] == ["a.txt", "b.txt"]
    assert [source["split"] for source in lineage["sources"]] == ["train", "test"]
    assert all(len(source["digest"]) == 32 for source in lineage["sources"])
    assert lineage["dataset"]["name"] == "cut"
    assert lineage["view"]["fingerprint"] == built.build["view"]
    assert lineage["module"]["handle"] == "builtin:en-words-128"
    assert lineage["module"]["digest"] == lineage["view"]["fields"]["module_digest"]
    text = ec.ok(trained, "runs", "show", "two", "--lineage")
    for word in ("corpus", "dataset", "build", "view", "module", "run"):
        assert f"\n{word}" in f"\n{text}"


def test_compare_tells_what_differs_and_how_sure_it_is(ec: CommandLine, trained: Path) -> None:
    compared = ec.json(trained, "runs", "compare", "one", "two")
    assert compared["differences"] == {"filters": [64, 8], "seed": [0, 1]}
    paired = compared["paired"]
    assert paired["texts"] == 30
    assert 0.0 <= paired["p_value"] <= 1.0
    accuracies = [run["test"]["accuracy"] for run in compared["runs"]]
    assert paired["accuracies"] == pytest.approx(accuracies)
    assert "McNemar's exact test p =" in ec.ok(trained, "runs", "compare", "one", "two")
    other = ec.json(trained, "runs", "list")["runs"][0]["run"]
    several = ec.json(trained, "runs", "compare", "one", "two", other)
    assert (several["paired"], len(several["runs"])) == (None, 3)
    assert "no paired test" in ec.ok(trained, "runs", "compare", "one", other)
    assert ec(trained, "runs", "compare", "one").returncode == 2


def test_delete_takes_the_catalog_row_and_the_files(ec: CommandLine, changed: Path) -> None:
    size = sum(path.stat().st_size for path in (changed / "runs" / "one").iterdir())
    deleted = ec.json(changed, "runs", "delete", "one", "one")
    assert deleted == {
        "deleted": [{"run": "one", "unfinished": False, "bytes": size}],
        "bytes": size,
    }
    assert not (changed / "runs" / "one").exists()
    assert "one" not in {run["run"] for run in ec.json(changed, "runs", "list")["runs"]}
    assert "no run 'one'" in ec.error(changed, "runs", "delete", "one")
    assert ec.json(changed, "verify")["orphans"] == []
    # A name that is not there deletes none of the others.
    assert "no run 'nope'" in ec.error(changed, "runs", "delete", "two", "nope")
    assert (changed / "runs" / "two").is_dir()


def test_export_copies_a_run_whole(ec: CommandLine, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = ec.json(trained, "runs", "export", "one", "two", "-o", out)
    assert [each["run"] for each in exported["exported"]] == ["one", "two"]
    for name in ("one", "two"):
        files = {path.name: path.read_bytes() for path in (out / name).iterdir()}
        kept = {path.name: path.read_bytes() for path in (trained / "runs" / name).iterdir()}
        assert files == kept
    line = ec.error(trained, "runs", "export", "one", "-o", out)
    assert "is there already" in line
    assert sorted(path.name for path in out.iterdir()) == ["one", "two"]


def test_tensorboard_logs_come_live_and_by_export(
    ec: CommandLine, changed: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    ec.json(changed, "train", "cut", *BASIC, "--name", "three", "--tensorboard", tmp_path / "live")
    (live,) = (tmp_path / "live" / "three").iterdir()
    assert live.name.startswith("events.out.tfevents.")
    exported = ec.json(changed, "runs", "export", "three", "-o", tmp_path / "out", "--tensorboard")
    (after,) = (Path(exported["tensorboard"]) / "three").iterdir()
    assert abs(after.stat().st_size - live.stat().st_size) < 100


def test_a_name_that_cannot_be_or_is_taken_is_refused(ec: CommandLine, trained: Path) -> None:
    for name in ("", "a/b", "..", "last", "x" * 65):
        assert "cannot name a run" in ec.error(trained, "train", "cut", *BASIC, "--name", name)
    assert "there is a run 'one' already" in ec.error(
        trained, "train", "cut", *BASIC, "--name", "one"
    )
