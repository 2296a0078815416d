"""The HDF5 library's own tools read a shard: nothing of embedcache is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
PLAIN = (
    "dense.h5",
    "dictionary.h5",
    "dense-v2.h5",
    "dictionary-v2.h5",
    "int8-v3.h5",
    "bfloat16-v3.h5",
)


def _run(tool: str, *arguments: str | Path) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed (Debian: hdf5-tools)")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("name", [*PLAIN, "zstd-v3.h5"])
def test_h5ls_lists_the_datasets_of_a_shard(name: str) -> None:
    listed = dict(line.split(maxsplit=1) for line in _run("h5ls", GOLDEN / name).splitlines())
    assert listed["keys"] == "Dataset {4, 16}"
    assert listed["row_splits"] == "Dataset {5}"
    assert {"values", "codes"} & listed.keys()


@pytest.mark.parametrize("name", PLAIN)
def test_h5dump_reads_a_shard(name: str) -> None:
    dumped = _run("h5dump", "-d", "/row_splits", "-y", "-w", "200", GOLDEN / name)
    found = re.search(r"DATA \{\s*([\d, ]+?)\s*\}", dumped)
    assert found is not None
    assert found[1] == "0, 2, 5, 5, 6"
    assert "embedcache-shard" in _run("h5dump", "-a", "/format", GOLDEN / name)


def test_h5dump_reads_the_numbers_of_a_shard() -> None:
    dumped = _run("h5dump", "-d", "/values", "-y", "-w", "200", GOLDEN / "dense.h5")
    found = re.search(r"DATA \{\s*([^}]+?)\s*\}", dumped)
    assert found is not None
    numbers = [float(number) for number in found[1].replace("\n", " ").split(",")]
    assert numbers[:6] == [10, 11, 12, 13, -14, 0.125]
