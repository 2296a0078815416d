"""The power fails at any call: the store opens from what the device has, nothing is lost.

A program's calls are recorded. At every one the store is built anew as the device may have it
after a power loss, and opened.
"""

from __future__ import annotations

import pickle
import random
import shutil
from pathlib import Path

from tests.reliability.bugs import seed_bug
from tests.reliability.outcome import Findings, Outcome
from tests.reliability.processes import Child, Ended, Tell
from tests.reliability.recorder import CATALOG, Moment, Recorder, Tree
from tests.reliability.scenarios import SCENARIOS, Scenario

TITLE = "power loss at every call"
SHORT = {"num_moments": 8}
FULL = {"num_moments": 0}

_NUM_MIXED = 3


def run(folder: Path, *, num_moments: int, seed: int, bug: str = "") -> Outcome:
    """Lose the power before each call of a program.

    Args:
        folder: For the stores.
        num_moments: At how many calls, drawn from all; 0: at every one.
        seed: Of the draw, and of what of the rest reached the device.
        bug: A seeded one.
    """
    rng = random.Random(seed)
    findings = Findings()
    num_calls, num_states = 0, 0
    for scenario in SCENARIOS:
        ended, moments = _record(folder / scenario.name, scenario, bug=bug)
        ended.check(findings, scenario.name)
        if num_moments:
            moments = rng.sample(moments, min(num_moments, len(moments)))
        num_calls += len(moments)
        known: set[str] = set()
        for moment in moments:
            for kind, tree in _survivals(moment, rng):
                state = repr((moment.num_told, tree, moment.catalog))
                if state in known:
                    continue
                known.add(state)
                where = f"{scenario.name}, before {moment.call} (state {len(known)}: {kind})"
                path = folder / "after"
                _build_store(path, moment, tree)
                promised = ended.lines[: moment.num_told]
                scenario.check(path / "store", promised, findings, where)
        num_states += len(known)
    done = f"power lost before {num_calls:,} calls, {num_states:,} different states of the device"
    return Outcome(done=done, findings=findings)


def _record(folder: Path, scenario: Scenario, *, bug: str) -> tuple[Ended, list[Moment]]:
    """Run a program and record it."""
    root = folder / "root"
    root.mkdir(parents=True)
    scenario.begin(root / "store", folder / "prepared")

    def body(tell: Tell) -> None:
        recorder = Recorder(root)

        def tell_and_record(*words: str) -> None:
            tell(*words)
            recorder.add_told()

        recorder.install()
        seed_bug(bug)
        scenario.act(root / "store", tell_and_record, bug)
        with (folder / "moments").open("wb") as file:
            pickle.dump(recorder.moments, file)

    ended = Child(body).wait()
    return ended, pickle.loads((folder / "moments").read_bytes())


def _survivals(moment: Moment, rng: random.Random) -> list[tuple[str, Tree]]:
    """What the device may have: what was forced to it, and of the rest nothing or anything."""
    now, durable = moment.now, moment.durable
    zeros = {
        number: durable.contents[number] or bytes(len(content))
        for number, content in now.contents.items()
    }
    found = [
        ("what was forced", durable),
        # Journaling file systems may have a name before the bytes that it names.
        ("all names, empty files", Tree(now.names, durable.contents)),
        ("all names, files of zeros", Tree(now.names, zeros)),
    ]
    return found + [("a mixture", _mixed(now, durable, rng)) for _ in range(_NUM_MIXED)]


def _mixed(now: Tree, durable: Tree, rng: random.Random) -> Tree:
    """Each change of a name, and of a file's bytes, has reached the device or not."""
    names = {}
    for folder in {**durable.names, **now.names}:
        before, after = (tree.names.get(folder, {}) for tree in (durable, now))
        some = {**before, **after}
        chosen = {name: rng.choice((before, after)).get(name) for name in sorted(some)}
        names[folder] = {name: number for name, number in chosen.items() if number is not None}
    contents = {}
    for number in {**durable.contents, **now.contents}:
        tree = rng.choice((durable, now))
        contents[number] = tree.contents.get(number, b"")
    return Tree(names, contents)


def _build_store(path: Path, moment: Moment, tree: Tree) -> None:
    """Make what is left, with the catalog as of its last commit."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    _build(tree, 0, path)
    if moment.catalog is not None and (path / "store").is_dir():
        (path / "store" / CATALOG).write_bytes(moment.catalog)


def _build(tree: Tree, number: int, path: Path) -> None:
    for name, child in tree.names.get(number, {}).items():
        place = path / name
        if child in tree.contents:
            place.write_bytes(tree.contents[child])
        else:
            place.mkdir()
            _build(tree, child, place)
