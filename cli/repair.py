"""`embedcache repair`: a lost or damaged catalog, made anew."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.common import json_option, plural, print_json, store_path


@click.command("repair")
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Make a lost or damaged catalog anew from what lies in the store.

    Reads every shard that the catalog does not name. Datasets come back as
    recovered-VERSION, modules' handles with the next build. Nothing is deleted: a damaged
    catalog and damaged shards are put into quarantine. Let nothing else use the store.
    """
    from embedcache.store.upkeep.repair import repair_store

    report = repair_store(store_path(context))
    if as_json:
        print_json(asdict(report))
        return
    click.echo(f"catalog: {report.catalog}")
    for line in report.put_aside:
        click.echo(f"put aside: {line}")
    click.echo(
        f"added {plural(report.views, 'view')}, {plural(report.shards, 'shard')} with"
        f" {plural(report.texts, 'text')}"
    )
    for what in ("datasets", "runs", "left"):
        for line in getattr(report, what):
            click.echo(f"{'left alone' if what == 'left' else what.removesuffix('s')}: {line}")
    if not (report.shards or report.datasets or report.runs or report.put_aside):
        click.echo("nothing was amiss")
