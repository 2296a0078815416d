"""What a benchmark found, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.measure import Series

START_MARK = "<!-- results: written by `python -m benchmarks.run` -->"
END_MARK = "<!-- end of results -->"
BUSY_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A figure to reach, and what was reached.

    Attributes:
        what: As in the design's table: ``≥ 3 × LMDB``.
        value: What was measured.
        wanted: The bound; None: there is none, the figure is for the reader.
        at_most: Whether the bound is an upper one.
        unit: ``"×"``, ``"%"`` (value and bound are fractions) or a unit such as ``"ms"``.
    """

    what: str
    value: float
    wanted: float | None = None
    at_most: bool = False
    unit: str = "×"

    @property
    def is_reached(self) -> bool | None:
        """Whether the figure is as good as was wanted; None if nothing was."""
        if self.wanted is None:
            return None
        return self.value <= self.wanted if self.at_most else self.value >= self.wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Figures that are not in the report's unit.

    Attributes:
        title: What they are.
        header: Names of the columns, with units.
        rows: One cell a column: words, or a number.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]


@dataclass(slots=True, kw_only=True)
class Report:
    """What a benchmark found.

    Attributes:
        number: ``B1`` and so on, as in the design.
        title: What was measured.
        unit: Of the values: ``texts/s``, ``MB/s``, ``s``, ``MB``.
        cache: ``warm`` or ``cold``, and what that means here.
        binds: Which limit binds, in words.
        series: What was measured; empty if the whole benchmark was left out.
        targets: What was to be reached.
        tables: More figures, in units of their own.
        notes: What a reader has to know: data, what is and is not timed.
        skipped: Contenders that were left out, and why; or why the whole benchmark was.
        peak_rss_mb: Peak resident memory of the benchmark's process, all contenders together.
        load_before: The machine's one-minute load before the benchmark.
        others_cpu: Share of all CPU time that other processes took meanwhile.
    """

    number: str
    title: str
    unit: str
    cache: str
    binds: str
    series: list[Series]
    targets: list[Target] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    peak_rss_mb: float = 0.0
    load_before: float = 0.0
    others_cpu: float = 0.0

    def to_record(self) -> dict[str, Any]:
        """As JSON values."""
        record = asdict(self)
        record["series"] = [
            {
                **asdict(series),
                "median": series.median,
                "quartiles": list(series.quartiles),
                "rounds": len(series.values),
            }
            for series in self.series
        ]
        record["targets"] = [
            {**asdict(target), "is_reached": target.is_reached} for target in self.targets
        ]
        return record


def named(series: Sequence[Series], name: str) -> Series:
    """The series of that name."""
    return next(each for each in series if each.name == name)


def best_peer(series: Sequence[Series]) -> Series:
    """The peer with the highest median."""
    return max((each for each in series if each.role == "peer"), key=lambda each: each.median)


def render_results(results: Mapping[str, Any]) -> str:
    """All results as Markdown, with the marks around it."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    lines = [
        START_MARK,
        "",
        f"{machine['date']}; {machine['cpu']}, {machine['cores']} cores,"
        f" {machine['memory_gb']} GB, {machine['file_system']}, {machine['system']},"
        f" Python {machine['python']}; {versions}.",
    ]
    for record in results["benchmarks"]:
        lines += ["", *_render_one(record)]
    return "\n".join([*lines, "", END_MARK])


def _render_one(record: Mapping[str, Any]) -> list[str]:
    title = f"### {record['number']}: {record['title']}"
    if not record["series"]:
        return [title, "", *_render_skipped(record)]
    lines = [
        title,
        "",
        f"| | {record['unit']}, median | quartiles | rounds | before, after the rounds |",
        "|---|---|---|---|---|",
    ]
    for series in record["series"]:
        name = f"**{series['name']}**" if series["role"] == "ours" else series["name"]
        name += " (limit)" if series["role"] == "limit" else ""
        low, high = map(_number, series["quartiles"])
        probes = ", ".join(map(_number, series["probes"]))
        lines.append(
            f"| {name} | {_number(series['median'])} | {low} – {high} | {series['rounds']} |"
            f" {probes} |"
        )
    if record["targets"]:
        lines += ["", "| to reach | measured | reached |", "|---|---|---|"]
        lines += [_render_target(target) for target in record["targets"]]
    for table in record.get("tables", ()):
        lines += _render_table(table)
    lines += ["", f"Binds: {record['binds']}", "", *_render_notes(record)]
    return lines


def _render_target(target: Mapping[str, Any]) -> str:
    value, unit = target["value"], target["unit"]
    shown = f"{100 * value:.0f} %" if unit == "%" else f"{value:.2f} {unit}"
    reached = {True: "yes", False: "**no**", None: "–"}[target["is_reached"]]
    return f"| {target['what']} | {shown} | {reached} |"


def _render_table(table: Mapping[str, Any]) -> list[str]:
    header = table["header"]
    lines = ["", f"{table['title']}:", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in table["rows"]:
        cells = (cell if isinstance(cell, str) else _number(cell) for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _render_notes(record: Mapping[str, Any]) -> list[str]:
    busy = f"{100 * record['others_cpu']:.0f} % of the CPU time went to other processes"
    if record["others_cpu"] > BUSY_SHARE:
        busy = f"**the machine was not quiet: {busy}**"
    lines = [
        f"- Cache: {record['cache']}. Peak resident memory {record['peak_rss_mb']:.0f} MB;"
        f" load before {record['load_before']:.1f}; {busy}."
    ]
    lines += [f"- {note}" for note in record["notes"]]
    return lines + _render_skipped(record)


def _render_skipped(record: Mapping[str, Any]) -> list[str]:
    return [f"- Left out: {what}" for what in record["skipped"]]


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def replace_results(readme: str, rendered: str) -> str:
    """A README with what stands between the marks replaced.

    Raises:
        ValueError: if the marks are not there.
    """
    head, start, rest = readme.partition(START_MARK)
    _, end, tail = rest.partition(END_MARK)
    if not start or not end:
        raise ValueError(f"the marks are missing: {START_MARK} and {END_MARK}")
    return head + rendered + tail
