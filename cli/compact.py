"""`embedcache compact`: small shards into large ones, each text once."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from cli.common import format_bytes, json_option, open_user_store, plural, print_json
from cli.sizes import grace_option, size

if TYPE_CHECKING:
    from embedcache.store.upkeep.compact import CompactReport
    from embedcache.store.upkeep.retired import SweepReport


@click.command("compact")
@click.option("--view", metavar="VIEW", help="Only this one.  [default: all]")
@click.option("--max-shard-bytes", type=size, metavar="SIZE",
              help="How large a shard becomes, such as 256MiB.  [default: as build]"
              )  # fmt: skip
@click.option("--encoding", type=click.Choice(["auto", "dense", "dictionary"]), default="auto",
              show_default=True, help="Rows spelled out, or each distinct one once; auto leaves"
              " each shard as it is.")  # fmt: skip
@click.option("--compress", type=click.Choice(["zstd", "none"]), help="Pack the shards, which makes"
              " them slower to read, or unpack them.  [default: each as it is]"
              )  # fmt: skip
@grace_option
@json_option
@click.pass_context
def command(
    context: click.Context, view: str | None, max_shard_bytes: int | None, encoding: str,
    compress: str | None, grace: float, as_json: bool,
) -> None:  # fmt: skip
    """Merge small shards into large ones, and drop texts that lie twice.

    Only shards that gain by it are touched. Builds and trainings may go on meanwhile.
    """
    from embedcache.store.upkeep.compact import CompactOptions, compact_store
    from embedcache.store.writer import WriterLimits

    limits = WriterLimits(max_shard_bytes=max_shard_bytes) if max_shard_bytes else WriterLimits()
    options = CompactOptions(limits=limits, encoding=encoding, compression=compress, grace_s=grace)
    with open_user_store(context) as store:
        reports, swept = compact_store(store, view=view, options=options)
    if as_json:
        print_json({"views": [asdict(report) for report in reports], "deleted": asdict(swept)})
    else:
        _print_reports(reports, swept)


def _print_reports(reports: list[CompactReport], swept: SweepReport) -> None:
    for report in reports:
        name = f"view {report.view[:12]} ({report.module or '?'})"
        if not report.rewritten:
            click.echo(f"{name}: {plural(report.shards_after, 'shard')}, nothing to gain")
            continue
        twice = f"; {plural(report.duplicates, 'text')} lay twice" if report.duplicates else ""
        click.echo(
            f"{name}: {report.shards_before:,} → {plural(report.shards_after, 'shard')},"
            f" {format_bytes(report.bytes_before)} → {format_bytes(report.bytes_after)}{twice}"
        )
    print_sweep(swept)


def print_sweep(swept: SweepReport) -> None:
    """What became of the files of retired shards."""
    if swept.files:
        click.echo(f"deleted {plural(swept.files, 'file')}, {format_bytes(swept.bytes)}")
    if swept.waiting_files:
        click.echo(
            f"{plural(swept.waiting_files, 'file')}, {format_bytes(swept.waiting_bytes)}, wait for"
            " their grace to pass: the next compact or gc deletes them"
        )
