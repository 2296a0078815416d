"""A run, its lineage, and several side by side, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.common import format_bytes, format_time, percent, print_table

if TYPE_CHECKING:
    from cnn.comparing import Comparison
    from cnn.run import Run

_MAX_CONFUSION = 12
_MULTILABEL = "multilabel"


def run_fields(run: Run) -> dict[str, Any]:
    """What ``runs show --json`` prints, but for the history."""
    fields = {
        **run.record,
        "config": run.config,
        "labels": list(run.labels),
        "task": run.task,
        "tags": run.tags,
        "evaluation": run.evaluation or None,
        "cost": run.cost or None,
    }
    fields |= {
        name: run.details.get(name)
        for name in ("versions", "code", "platform", "started_at", "finished_at")
    }
    if run.layer_weights is not None:
        fields["layer_weights"] = run.layer_weights
    return fields


def print_run(run: Run) -> None:
    """The figures and the configuration."""
    shown = run_fields(run)
    evaluation = shown.pop("evaluation")
    cost = shown.pop("cost")
    for name, value in shown.items():
        click.echo(f"{name:18} {value}")
    if cost:
        _print_cost(cost)
    for part in ("test", "dev"):
        found = (evaluation or {}).get(part)
        if found:
            _print_classes(run, part, found)
            break


def print_lineage(run: Run) -> None:
    """Where it comes from, the corpus first."""
    lineage = run.lineage
    if not lineage:
        click.echo(f"run {run.name} was kept by a version that did not note where it comes from")
        return
    for source in lineage["sources"]:
        split = f" ({source['split']})" if source["split"] else ""
        click.echo(f"corpus   {source['path']}{split}  {source['digest']}")
    dataset, view, module = (lineage[name] for name in ("dataset", "view", "module"))
    at = dataset["registered_at"]
    click.echo(
        f"dataset  {dataset['name']}@{dataset['version']}  {dataset['documents']:,} documents"
        + (f", registered {format_time(at)}" if at else "")
    )
    for build in lineage["builds"]:
        misses = "" if build["misses"] is None else f", {build['misses']:,} texts computed"
        click.echo(f"build    {format_time(build['at'])}{misses}")
    click.echo(f"view     {view['fingerprint']}  {view['fields']['dtype']}")
    pinned = f", pinned {format_time(module['pinned_at'])}" if module["pinned_at"] else ""
    click.echo(f"module   {module['handle']}  {module['digest']}{pinned}")
    if module["preprocess_digest"]:
        click.echo(f"         {module['preprocess']}  {module['preprocess_digest']}")
    finished = lineage["run"]["finished_at"]
    code = lineage["run"]["code"]
    click.echo(
        f"run      {run.name}  finished {format_time(finished)}, embedcache {code['embedcache']}"
        f" ({code['digest'][:12]})"
    )


def print_comparison(comparison: Comparison) -> None:
    """Scores, differences, and the paired test."""
    header = ("run", "dev", "test", "95 % interval", "macro-F1", "loss", "seconds")
    print_table([_score_cells(record) for record in comparison.runs], header)
    if comparison.differences:
        click.echo("")
        rows = [(name, *values) for name, values in comparison.differences.items()]
        print_table(rows, ("differs", *(record["run"] for record in comparison.runs)))
    click.echo("")
    paired = comparison.paired
    if paired is None:
        click.echo(comparison.note)
        return
    low, high = paired.interval
    click.echo(
        f"on the same {paired.texts:,} test texts: {paired.only_first:,} only the first has right,"
        f" {paired.only_second:,} only the second"
    )
    click.echo(
        f"difference {100 * paired.difference:+.1f} points (95 %: {100 * low:+.1f} to"
        f" {100 * high:+.1f}), McNemar's exact test p = {paired.p_value:.3g}"
    )


def _score_cells(record: dict[str, Any]) -> tuple[object, ...]:
    test = record["test"]
    interval = (test or {}).get("accuracy_interval")
    return (
        record["run"],
        percent(record["dev"]["accuracy"]),
        percent(test["accuracy"]) if test else "-",
        f"{percent(interval[0])} to {percent(interval[1])}" if interval else "-",
        percent(test["macro_f1"]) if test else "-",
        f"{test['loss']:.4f}" if test else "-",
        f"{record['seconds']:.1f}",
    )


def _print_cost(cost: dict[str, Any]) -> None:
    features, run, in_loop = cost["features"], cost["run"], cost["in_loop"]
    click.echo("")
    known = features["seconds"] is not None
    once = f"{features['seconds']:,.1f} s" if known else "not known"
    size = f", {format_bytes(features['bytes'])}" if features["bytes"] is not None else ""
    note = f" ({features['note']})" if features["note"] else ""
    click.echo(f"features, once     {once}{size}{note}")
    click.echo(
        f"this run           {run['seconds']:,.1f} s, {run['steps']:,} steps,"
        f" {run['texts']:,} texts"
    )
    if in_loop["ratio"] is None:
        click.echo(f"module in the loop not known: {in_loop['note']}")
    else:
        click.echo(
            f"module in the loop {in_loop['seconds']:,.1f} s at"
            f" {in_loop['texts_per_second']:,.0f} texts/s: {in_loop['ratio']:.1f} times as long"
        )


def _print_classes(run: Run, part: str, evaluation: dict[str, Any]) -> None:
    click.echo("")
    rows = [
        (
            found["label"],
            percent(found["precision"]),
            percent(found["recall"]),
            percent(found["f1"]),
            found["support"],
        )
        for found in evaluation["per_class"]
    ]
    print_table(rows, (part, "precision", "recall", "F1", "texts"))
    confusion = evaluation["confusion"]
    if run.task != _MULTILABEL and len(confusion) <= _MAX_CONFUSION:
        click.echo("")
        labelled = zip(run.labels, confusion, strict=True)
        print_table([(label, *row) for label, row in labelled], ("is \\ predicted", *run.labels))
