"""`embedcache verify`: are the bytes what was written?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.common import json_option, open_user_store, print_json

if TYPE_CHECKING:
    from embedcache.store.upkeep.maintain import VerifyReport


@click.command("verify")
@click.option("--fix", is_flag=True, help="Put damaged shards into quarantine, so that the next"
              " build computes their texts again; adopt whole ones that the catalog"
              " lost.")  # fmt: skip
@json_option
@click.pass_context
def command(context: click.Context, fix: bool, as_json: bool) -> None:
    """Read every shard and check it against the catalog, and the catalog against the files.

    The status is 1 if something is wrong and left so.
    """
    from embedcache.store.upkeep.maintain import verify_store

    with open_user_store(context) as store:
        report = verify_store(store, fix=fix)
    if as_json:
        print_json(report.to_record())
    else:
        click.echo(f"{report.shards} shards, {report.rows:,} texts")
        for what in ("corrupt", "missing", "orphans"):
            for line in getattr(report, what):
                click.echo(f"{what}: {line}")
        _print_harmless(report)
        click.echo(_summary(report))
    if not report.is_well:
        context.exit(1)


def _print_harmless(report: VerifyReport) -> None:
    if report.duplicates:
        click.echo(f"texts that lie twice: {report.duplicates:,}; `embedcache compact` mends it")
    if report.retired:
        click.echo(f"retired shards that wait to be deleted: {report.retired:,}")


def _summary(report: VerifyReport) -> str:
    wrong, left = len(report.corrupt) + len(report.missing), len(report.unmended)
    advice = []
    if wrong > left:
        mended = "mended; build again to compute what was lost"
        advice.append(mended if report.fixed else "run with --fix")
    if left:
        advice.append("build the dataset again from its files")
    return f"{wrong} wrong: {'; '.join(advice)}" if wrong else "nothing wrong"
