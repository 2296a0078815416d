"""`embedcache datasets`: the corpora that were registered."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cli.common import (
    format_time,
    json_option,
    open_user_store,
    plural,
    print_json,
    print_table,
)
from cli.corpus_options import corpus_options, read_options

if TYPE_CHECKING:
    from embedcache.keys import Keys
    from embedcache.store.upkeep.forget import ForgetPlan, ForgetReport


@click.group("datasets")
def command() -> None:
    """Registered corpora and their versions."""


@command.command("list")
@json_option
@click.pass_context
def list_datasets(context: click.Context, as_json: bool) -> None:
    """List all versions of all datasets, oldest first."""
    with open_user_store(context) as store:
        records = store.catalog.datasets()
    if as_json:
        rows = [
            {
                "name": record.name,
                "version": record.version,
                "texts": record.num_documents,
                "unique": record.num_unique,
                "created_at": record.created_at,
            }
            for record in records
        ]
        print_json({"datasets": rows})
        return
    print_table(
        [
            (
                record.name,
                record.version[:12],
                f"{record.num_documents:,}",
                f"{record.num_unique:,}",
                format_time(record.created_at),
            )
            for record in records
        ],
        ("dataset", "version", "texts", "distinct", "registered"),
    )


@command.command("show")
@click.argument("dataset")
@json_option
@click.pass_context
def show_dataset(context: click.Context, dataset: str, as_json: bool) -> None:
    """Show the splits, labels and files of DATASET (NAME or NAME@VERSION)."""
    with open_user_store(context) as store:
        record = store.catalog.find_dataset(dataset)
        loaded = store.open_dataset(record)
        view = store.catalog.newest_view_of(record.version)
    fields = {
        "name": record.name,
        "version": record.version,
        "view": view,
        "texts": record.num_documents,
        "unique": record.num_unique,
        "splits": loaded.count_splits(),
        "labels": loaded.count_labels(),
        "sources": list(record.sources),
    }
    if as_json:
        print_json(fields)
        return
    for name, value in fields.items():
        click.echo(f"{name:8} {value}")


@command.command("delete")
@click.argument("dataset")
@click.option("--all", "every", is_flag=True, help="All versions of that name.")
@json_option
@click.pass_context
def delete_dataset(context: click.Context, dataset: str, every: bool, as_json: bool) -> None:
    """Forget DATASET (NAME, or NAME@VERSION) and delete its files.

    Its features stay until gc collects them, so that a build registers it again at once.
    """
    from embedcache.store.upkeep.deleting import delete_datasets, find_versions

    with open_user_store(context) as store:
        deleted = delete_datasets(store, find_versions(store, dataset, every=every))
    if as_json:
        rows = [{"name": record.name, "version": record.version} for record in deleted.records]
        print_json({"deleted": rows, "bytes": deleted.num_bytes})
        return
    for record in deleted.records:
        click.echo(f"dataset {record.name}@{record.version[:12]} is no more")
    click.echo("its features stay until `embedcache gc --yes`, unless another dataset uses them")


@command.command("forget")
@click.argument("file")
@corpus_options()
@click.option("--yes", is_flag=True, help="Do it; without, it is refused.")
@json_option
@click.pass_context
def forget(context: click.Context, /, file: str, yes: bool, as_json: bool, **settings: Any) -> None:
    """Remove every text of FILE from every view and dataset, and its bytes from every file.

    FILE is a corpus as build reads it; - is standard input. Shards and datasets that have any
    of its texts are written anew without them. docs/maintenance.md says what this cannot reach.
    Let nothing else use the store meanwhile.
    """
    from embedcache.errors import StoreError
    from embedcache.store.upkeep.forget import forget_texts, plan_forget

    keys = _read_keys(file, settings)
    with open_user_store(context) as store:
        if not yes:
            raise StoreError(f"{_told(plan_forget(store, keys))}; they are removed with --yes")
        report = forget_texts(store, keys)
        deleted = [str(path.relative_to(store.path)) for path in report.deleted]
    if as_json:
        print_json(asdict(report) | {"deleted": deleted})
    else:
        _print_forgotten(report, deleted)


def _read_keys(path: str, settings: dict[str, Any]) -> Keys:
    import numpy as np

    from embedcache.corpus import CorpusReader, parse_sources
    from embedcache.keys import keys_of_utf8

    reader = CorpusReader(parse_sources([path]), read_options(settings))
    return np.concatenate([keys_of_utf8(batch.texts) for batch in reader])


def _told(plan: ForgetPlan) -> str:
    """What forgetting would touch, in a line."""
    shards = sum(len(view.rewrites) for view in plan.views)
    texts = sum(view.num_texts for view in plan.views)
    versions = len({record.version for record, _ in plan.datasets})
    return (
        f"of {plural(plan.num_keys, 'text')}, the store has {plural(texts, 'feature')} in"
        f" {plural(shards, 'shard')}, and documents in {plural(versions, 'dataset version')}"
    )


def _print_forgotten(report: ForgetReport, deleted: list[str]) -> None:
    click.echo(
        f"of {plural(report.num_keys, 'text')}: removed {plural(report.texts, 'feature')} from"
        f" {plural(report.shards, 'shard')}"
    )
    for replaced in report.datasets:
        new = f"now @{replaced.new[:12]}" if replaced.new else "nothing is left of it"
        gone = plural(replaced.num_documents, "document")
        click.echo(f"dataset {replaced.name}@{replaced.old[:12]}: {gone} removed, {new}")
    if report.predictions:
        click.echo(f"taken out of the predictions of {plural(report.predictions, 'run')}")
    for run in report.runs:
        click.echo(f"run {run} was trained on them and stays; `embedcache runs delete` deletes it")
    for line in deleted:
        click.echo(f"deleted: {line}")
