"""`embedcache gc`: what nothing uses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.common import (
    format_bytes,
    format_time,
    json_option,
    open_user_store,
    plural,
    print_json,
)
from cli.compact import print_sweep
from cli.sizes import grace_option, size

if TYPE_CHECKING:
    from embedcache.store.store import FeatureStore
    from embedcache.store.upkeep.gc import GcPlan, GcReport, ViewGarbage


@click.command("gc")
@click.option("--max-bytes", type=size, metavar="SIZE", help="Also drop the features of the"
              " datasets that were used longest ago, until the shards fit into so much, such"
              " as 10GB."
              )  # fmt: skip
@click.option("--yes", is_flag=True, help="Do it; without, it is only told.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be done: the default.")
@click.option("--quarantine", is_flag=True,
              help="Also delete what verify --fix put aside more than 30 days ago."
              )  # fmt: skip
@grace_option
@json_option
@click.pass_context
def command(
    context: click.Context, max_bytes: int | None, yes: bool, dry_run: bool, quarantine: bool,
    grace: float, as_json: bool,
) -> None:  # fmt: skip
    """Collect features that no dataset uses, and files that nothing names.

    A text's features are used under a view if a registered dataset that has the text was built
    or read under it. What it finds is only told; --yes deletes it. Shards younger than --grace
    are left alone.
    """
    from embedcache.store.upkeep.gc import GcOptions, collect_garbage, plan_gc

    if yes and dry_run:
        raise click.UsageError("--yes and --dry-run exclude each other")
    options = GcOptions(max_bytes=max_bytes, grace_s=grace, quarantine=quarantine)
    report: GcReport | None = None
    with open_user_store(context) as store:
        if yes:
            plan, report = collect_garbage(store, options)
        else:
            plan = plan_gc(store, options)
        record = _record(store, plan, report)
    print_json(record) if as_json else _print_plan(record, plan, report)


def _record(store: FeatureStore, plan: GcPlan, report: GcReport | None) -> dict[str, Any]:
    def relative(path: Path) -> str:
        return str(path.relative_to(store.path))

    names: dict[str, list[str]] = {}
    for dataset in store.catalog.datasets():
        names.setdefault(dataset.version, []).append(dataset.name)
    return {
        "dry_run": report is None,
        "bytes_before": plan.bytes_before,
        "bytes_after": plan.bytes_after,
        "views": [_view_record(view) for view in plan.views],
        "dropped": [
            {
                "datasets": names.get(dropped.use.version, []),
                **asdict(dropped.use),
                "bytes": dropped.num_bytes,
            }
            for dropped in plan.dropped
        ],
        "garbage": [
            {"kind": found.kind, "path": relative(found.path), "bytes": found.num_bytes}
            for found in plan.garbage
        ],
        "modules": {"paths": len(plan.modules.paths), "facts": len(plan.modules.facts),
                    "bytes": sum(plan.modules.facts.values())},
        "unregistered": [relative(path) for path in plan.references.unregistered],
        "retired": asdict(report.sweep if report else plan.sweep),
    }  # fmt: skip


def _view_record(view: ViewGarbage) -> dict[str, Any]:
    return {
        "fingerprint": view.record.fingerprint,
        "module": view.record.handle,
        "texts": view.texts,
        "bytes": view.num_bytes,
        "unused_texts": view.unused_texts,
        "unused_bytes": view.unused_bytes,
        "freed_bytes": view.freed_bytes,
        "young_bytes": view.young_bytes,
        "shards_retired": len(view.retire),
        "shards_rewritten": len(view.rewrites),
    }


def _print_plan(record: dict[str, Any], plan: GcPlan, report: GcReport | None) -> None:
    for view in record["views"]:
        if view["unused_texts"]:
            click.echo(
                f"view {view['fingerprint'][:12]} ({view['module'] or '?'}):"
                f" {view['unused_texts']:,} of {plural(view['texts'], 'text')} unused,"
                f" {format_bytes(view['unused_bytes'])};"
                f" {plural(view['shards_retired'], 'shard')} go,"
                f" {view['shards_rewritten']:,} rewritten"
            )
        if view["young_bytes"]:
            click.echo(
                f"view {view['fingerprint'][:12]}: {format_bytes(view['young_bytes'])} younger than"
                " --grace are left alone"
            )
    for dropped in record["dropped"]:
        name = ", ".join(dropped["datasets"]) or "?"
        click.echo(
            f"to fit: {name}@{dropped['version'][:12]} under view {dropped['view'][:12]}, last used"
            f" {format_time(dropped['used_at'])}: {format_bytes(dropped['bytes'])}"
        )
    for found in record["garbage"]:
        click.echo(f"{found['kind']}: {found['path']}, {format_bytes(found['bytes'])}")
    for path in record["unregistered"]:
        click.echo(f"not registered, and kept: {path}; `embedcache repair` registers it")
    if plan.modules:
        count = len(plan.modules.paths) + len(plan.modules.facts)
        click.echo(f"modules: {count} notes about modules that nothing names")
    _print_sum(record, report)


def _print_sum(record: dict[str, Any], report: GcReport | None) -> None:
    freed = record["bytes_before"] - record["bytes_after"]
    garbage = sum(found["bytes"] for found in record["garbage"])
    of = f"of {format_bytes(record['bytes_before'])} of features"
    if report is None:
        ripe = record["retired"]
        click.echo(
            f"would free {format_bytes(freed)} {of}, and {format_bytes(garbage + ripe['bytes'])} of"
            " other files"
        )
        click.echo("nothing was deleted; --yes does it")
        return
    click.echo(f"dropped {format_bytes(freed)} {of}, and {format_bytes(garbage)} of other files")
    print_sweep(report.sweep)
