"""`embedcache runs`: the experiments of the store."""

from __future__ import annotations

import click

from cli.common import (
    format_time,
    json_option,
    open_user_store,
    percent,
    print_json,
    print_table,
)


@click.group("runs")
def command() -> None:
    """Finished experiments."""


@command.command("list")
@json_option
@click.pass_context
def list_runs(context: click.Context, as_json: bool) -> None:
    """List the runs, oldest first."""
    with open_user_store(context) as store:
        records = store.catalog.runs()
    if as_json:
        print_json({"runs": [dict(record.record) for record in records]})
        return
    rows = [
        (
            record.run,
            record.dataset,
            record.record["seed"],
            *(
                percent(scores["accuracy"]) if scores else "-"
                for scores in (record.record["dev"], record.record["test"])
            ),
            format_time(record.created_at),
        )
        for record in records
    ]
    print_table(rows, ("run", "dataset", "seed", "dev", "test", "finished"))


@command.command("show")
@click.argument("run")
@json_option
@click.pass_context
def show_run(context: click.Context, run: str, as_json: bool) -> None:
    """Show the figures and the configuration of RUN (its name, its beginning, or `last`)."""
    from cnn.run import load_run

    with open_user_store(context) as store:
        found = load_run(store, run)
    fields = {**found.record, "config": found.config, "labels": list(found.labels)}
    if found.layer_weights is not None:
        fields["layer_weights"] = found.layer_weights
    if as_json:
        print_json({**fields, "history": found.history})
        return
    for name, value in fields.items():
        click.echo(f"{name:18} {value}")
