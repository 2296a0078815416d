"""The harnesses' short forms find nothing, and with a bug seeded each of them does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.reliability.outcome import Findings, Outcome
from tests.reliability.run import HARNESSES, PAGE, run_apart
from tests.reliability.table import Row, replace_rows

BUGS = {
    "kill_loop": ("acknowledge-before-commit", "catalog-before-rename"),
    "power_loss": ("no-file-fsync", "no-folder-fsync"),
    "call_failures": ("swallow-errors", "trust-writes"),
    "traced_failures": ("acknowledge-before-commit",),
    "disk_full": ("swallow-errors",),
    "mutations": ("no-checksums",),
    "crowd": ("catalog-before-rename",),
    "state_machine": ("believe-index",),
    "interruptions": ("forget-what-is-there",),
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Where nothing waits for a disk, if there is such a place: none of this needs one."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else tmp_path


@pytest.mark.parametrize("name", HARNESSES)
def test_harness_finds_nothing_but_a_bug_that_is_seeded(name: str, work: Path) -> None:
    # In one process: to import everything takes as long as many a short form.
    clean, *seeded = run_apart(name, scale="short", bugs=("", *BUGS[name]), work=work)
    assert clean.findings.is_clean, "\n".join(clean.findings.told)
    if not clean.done:
        pytest.skip(clean.skipped)
    assert seeded
    for bug, outcome in zip(BUGS[name], seeded, strict=True):
        assert not outcome.findings.is_clean, f"{bug} is not reported"


def test_table_has_a_row_for_every_harness_and_they_found_nothing() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in HARNESSES:
        (row,) = [line for line in page.splitlines() if f"(`{name}`)" in line]
        assert row.endswith("| 0 | 0 | 0 |")


def test_rows_that_did_not_run_stay_in_the_table() -> None:
    order = ["first", "second"]
    outcome = Outcome(done="much", findings=Findings(lost=1))
    page = PAGE.read_text(encoding="utf-8")
    rows = [Row.of("first", "one", 7, outcome, 3.2), Row.of("second", "two", 7, outcome, 4.0)]
    page = replace_rows(page, rows, order, "here")
    new = Row.of("second", "two", 8, Outcome(done="more", skipped="a part"), 5.0)
    page = replace_rows(page, [new], order, "there")
    assert "| one (`first`) | much | 7 | 3 s | 1 | 0 | 0 |\n" in page
    assert "| two (`second`) | more; left out: a part | 8 | 5 s | 0 | 0 | 0 |\n" in page
    assert "there\n" in page
    assert "here\n" not in page.replace("there\n", "")
