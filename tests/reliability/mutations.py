"""Damaged shards: each is refused, or all that is read from it is right.

A mutation is made from its number and the seed, so that one that ends the interpreter or
never ends is named, and can be made again.
"""

from __future__ import annotations

import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from embedcache.errors import CorruptShardError, EmbedCacheError, StoreVersionError
from embedcache.store.upkeep.adopt import shard_fault
from tests.embedcache.store.programs import shard_content
from tests.reliability.bugs import seed_bug
from tests.reliability.outcome import Findings, Outcome
from tests.reliability.processes import Child, Tell
from tests.reliability.subjects import Subject, make_subjects

TITLE = "damaged shards"
SHORT = {"num_mutations": 1000}
FULL = {"num_mutations": 50_000}

_NUM_PROCESSES = 2
_BATCH = 500
_LONGEST_S = 30
_MOST_MEMORY = 8 << 30

Rng = np.random.Generator


def run(folder: Path, *, num_mutations: int, seed: int, bug: str = "") -> Outcome:
    """Damage shards in so many ways and read all of each.

    Args:
        folder: For the files.
        num_mutations: How many.
        seed: Of the mutations.
        bug: A seeded one.
    """
    subjects = make_subjects(folder / "subjects")
    findings, counts = Findings(), Counter[str]()
    every = range(num_mutations)
    batches = [every[first : first + _BATCH] for first in every[::_BATCH]]
    running: list[tuple[range, Child]] = []
    while batches or running:
        while batches and len(running) < _NUM_PROCESSES:
            batch = batches.pop()
            body = _reader(folder / f"batch-{batch.start}", subjects, batch, seed, bug)
            running.append((batch, Child(body)))
        batch, child = running.pop(0)
        rest = _collect(child, batch, findings, counts)
        shutil.rmtree(folder / f"batch-{batch.start}")
        if rest:
            batches.append(rest)
    done = (
        f"{num_mutations:,} mutations of {len(subjects)} shards: {counts['refused']:,} refused,"
        f" {counts['harmless']:,} harmless"
    )
    return Outcome(done=done, findings=findings)


def _collect(child: Child, batch: range, findings: Findings, counts: Counter[str]) -> range:
    """Add what a child tells of a batch; and what of it is left because it crashed."""
    ended = child.wait(_LONGEST_S * len(batch))
    for line in ended.lines:
        if line[0] == "done":
            counts[line[1]] += 1
        elif line[0] == "wrong":
            findings.add_wrong(line[1], line[2])
    if ended.status == 0:
        return range(0)
    number, *where = ended.lines[-1][1:] if ended.lines[-1][0] == "begin" else [str(batch.start)]
    how = f"status {ended.status}: {ended.errors[-400:]}"
    findings.add_crashed(" ".join([f"mutation {number}", *where]), how)
    return range(int(number) + 1, batch.stop)


def _reader(
    path: Path, subjects: Sequence[Subject], batch: range, seed: int, bug: str
) -> Callable[[Tell], None]:
    """A child that damages and reads; it tells the number of each mutation before."""
    path.mkdir()
    weights = np.array([subject.weight for subject in subjects])

    def read_all(tell: Tell) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
        expected = {}
        for subject in subjects:
            place = path / f"{subject.digest}.h5"
            place.write_bytes(subject.image)
            expected[subject.name] = shard_content(place)
        seed_bug(bug)
        for number in batch:
            rng = np.random.default_rng([seed, number])
            subject = subjects[int(rng.choice(len(subjects), p=weights / weights.sum()))]
            kind = _KINDS[int(rng.integers(len(_KINDS)))]
            where = f"{kind.__name__.removeprefix('_')} in {subject.name!r}"
            tell("begin", str(number), where)
            place = path / f"{subject.digest}.h5"
            image = kind(rng, bytearray(subject.image), subjects)
            place.write_bytes(image)
            signal.alarm(_LONGEST_S)
            outcome, reason = _read(place, subject, expected)
            if outcome == "wrong" and image != subject.image:
                tell("wrong", f"mutation {number} {where}", reason)
            tell("done", outcome)

    return read_all


def _read(path: Path, subject: Subject, expected: dict[str, list[bytes]]) -> tuple[str, str]:
    """Read all of a damaged shard: ``refused``, ``harmless`` or ``wrong``, and why."""
    try:
        content = shard_content(path)
        outcome = "harmless" if content == expected[subject.name] else "wrong"
        reason = "other numbers than were written"
        if outcome == "wrong" and content in expected.values():
            # Another shard was pasted whole. A reader goes by the view and by the keys in it.
            outcome, reason = "refused", "another shard"
    except (CorruptShardError, StoreVersionError) as error:
        outcome, reason = "refused", str(error)
    except EmbedCacheError as error:
        return "wrong", f"blames something else: {error}"
    if "\n" in reason:
        return "wrong", f"not on one line: {' '.join(reason.split())}"
    try:
        is_known = shard_fault(path, subject.digest) is not None
    except StoreVersionError:
        is_known = True
    if outcome == "refused" and not is_known:
        return "wrong", f"verify finds nothing, yet it is refused: {reason}"
    return outcome, reason


def _place(rng: Rng, image: bytearray) -> int:
    """A byte's position: any, or as often one at either end, where most of the structure is."""
    size = len(image)
    if size <= 2 * _ENDS or rng.random() < 0.5:
        return int(rng.integers(size))
    place = int(rng.integers(2 * _ENDS))
    return place if place < _ENDS else size - 2 * _ENDS + place


def _range(rng: Rng, image: bytearray) -> slice:
    """A range of 1 to 4,096 bytes, short ones as often as long ones; it may end early."""
    start = _place(rng, image)
    return slice(start, min(len(image), start + int(2 ** rng.uniform(0, 12))))


def _flip_bit(rng: Rng, image: bytearray, _others: Sequence[Subject]) -> bytes:
    image[_place(rng, image)] ^= 1 << int(rng.integers(8))
    return bytes(image)


def _fill(rng: Rng, image: bytearray, _others: Sequence[Subject]) -> bytes:
    where = _range(rng, image)
    size = where.stop - where.start
    image[where] = (bytes(size), b"\xff" * size, rng.bytes(size))[int(rng.choice(3, p=_FILLS))]
    return bytes(image)


def _cut(rng: Rng, image: bytearray, _others: Sequence[Subject]) -> bytes:
    return bytes(image[: _place(rng, image)])


def _extend(rng: Rng, image: bytearray, _others: Sequence[Subject]) -> bytes:
    size = int(2 ** rng.uniform(0, 14))
    return bytes(image) + (bytes(size) if rng.random() < 0.5 else rng.bytes(size))


def _swap(rng: Rng, image: bytearray, _others: Sequence[Subject]) -> bytes:
    """Two ranges of the same length change places."""
    one, two = _range(rng, image), _range(rng, image)
    size = min(one.stop - one.start, two.stop - two.start, max(1, abs(one.start - two.start)))
    first, second = (slice(some.start, some.start + size) for some in (one, two))
    image[first], image[second] = image[second], image[first]
    return bytes(image)


def _drop(rng: Rng, image: bytearray, _others: Sequence[Subject]) -> bytes:
    """A range is left out, and what follows moves up."""
    del image[_range(rng, image)]
    return bytes(image)


def _paste(rng: Rng, image: bytearray, others: Sequence[Subject]) -> bytes:
    """A block of another shard, from the same place or from any."""
    other = others[int(rng.integers(len(others)))].image
    where = _range(rng, image)
    start = where.start if rng.random() < 0.5 else int(rng.integers(len(other)))
    block = other[start : start + where.stop - where.start]
    image[where.start : where.start + len(block)] = block
    return bytes(image)


_ENDS = 4096
_FILLS = (0.6, 0.2, 0.2)
_KINDS = (_flip_bit, _flip_bit, _fill, _fill, _cut, _extend, _swap, _drop, _paste)
"""Flips and zeros are what disks do: twice as often as the others."""
