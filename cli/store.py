"""`embedcache store`: the store as a whole, and copying between stores."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cli.common import (
    format_bytes,
    format_time,
    json_option,
    open_user_store,
    plural,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from embedcache.store.upkeep.transfer import TransferReport


@click.group("store")
def command() -> None:
    """The store as a whole: what it takes, and copying between stores."""


@command.command("info")
@json_option
@click.pass_context
def show_info(context: click.Context, as_json: bool) -> None:
    """Say what the store takes, by kind."""
    from embedcache.store.upkeep.inventory import store_inventory

    with open_user_store(context) as store:
        record = store_inventory(store)
    if as_json:
        print_json(record)
        return
    click.echo(
        f"{record['path']}: version {record['version']}, catalog {record['catalog_version']}"
    )
    click.echo(
        f"{plural(record['views'], 'view')}, {plural(record['shards'], 'shard')},"
        f" {plural(record['texts'], 'text')}, {plural(record['datasets'], 'dataset')},"
        f" {plural(record['runs'], 'run')}"
    )
    if record["oldest"] is not None:
        first, last = (format_time(record[name]) for name in ("oldest", "newest"))
        click.echo(f"shards from {first} to {last}")
    rows = [(name, format_bytes(size)) for name, size in record["bytes"].items()]
    print_table([*rows, ("free", format_bytes(record["free_bytes"]))], ("kind", "bytes"))


def _transfer_options(command: Any) -> Any:
    for option in reversed((
        click.argument("path", type=click.Path()),
        click.option("--view", metavar="VIEW", help="Only this one.  [default: all]"),
        click.option("--dataset", "datasets", multiple=True, metavar="DATASET",
                     help="Only this one and the shards that have texts of it; again for"
                     " several.  [default: all]"),
        json_option,
        click.pass_context,
    )):  # fmt: skip
        command = option(command)
    return command


@command.command("push")
@_transfer_options
def push(
    context: click.Context, path: str, view: str | None, datasets: tuple[str, ...], as_json: bool
) -> None:
    """Copy to the store at PATH what it lacks of this one; it is made if there is none.

    Each shard is checked before it is published there. Run again, it goes on.
    """
    _transfer(context, path, view, datasets, as_json=as_json, is_push=True)


@command.command("pull")
@_transfer_options
def pull(
    context: click.Context, path: str, view: str | None, datasets: tuple[str, ...], as_json: bool
) -> None:
    """Copy to this store what it lacks of the one at PATH; it is made if there is none.

    Each shard is checked before it is published here. Run again, it goes on.
    """
    _transfer(context, path, view, datasets, as_json=as_json, is_push=False)


def _transfer(
    context: click.Context,
    path: str,
    view: str | None,
    datasets: tuple[str, ...],
    *,
    as_json: bool,
    is_push: bool,
) -> None:
    from embedcache.store.store import open_store
    from embedcache.store.upkeep.transfer import Selection, transfer

    with (
        # The source first: nothing is made where there is none.
        open_user_store(context) if is_push else open_store(path, create=False) as source,
        open_store(path) if is_push else open_user_store(context, create=True) as target,
    ):
        report = transfer(source, target, Selection(view, datasets))
    if as_json:
        print_json({"path": str(target.path), **asdict(report)})
    else:
        _print_report(report)
    if report.damaged:
        context.exit(1)


def _print_report(report: TransferReport) -> None:
    click.echo(
        f"copied {plural(report.shards, 'shard')}, {plural(report.texts, 'text')},"
        f" {format_bytes(report.bytes)}; {plural(report.datasets, 'dataset')}"
    )
    if report.present:
        click.echo(f"{plural(report.present, 'shard')} had nothing new")
    for line in report.damaged:
        click.echo(f"damaged, and not copied: {line}")
