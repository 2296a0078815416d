"""`embedcache runs`: the experiments of the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.common import (
    format_bytes,
    format_time,
    json_option,
    open_user_store,
    percent,
    plural,
    print_json,
    print_table,
)
from cli.reporting import command as report

if TYPE_CHECKING:
    from cnn.checkpoints import Unfinished
    from embedcache.store.store import FeatureStore


@click.group("runs")
def command() -> None:
    """Experiments, finished and unfinished."""


command.add_command(report)


@command.command("list")
@json_option
@click.pass_context
def list_runs(context: click.Context, as_json: bool) -> None:
    """List the runs, oldest first, and the trainings that have not finished."""
    from cnn.checkpoints import list_unfinished

    with open_user_store(context) as store:
        records = store.catalog.runs()
        unfinished = list_unfinished(store)
    if as_json:
        rows = [dict(record.record) for record in records]
        print_json({"runs": rows, "unfinished": [_unfinished_record(each) for each in unfinished]})
        return
    print_table(
        [
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
        ],
        ("run", "dataset", "seed", "dev", "test", "finished"),
    )
    for each in unfinished:
        shown = _unfinished_record(each)
        fold = "" if shown["fold"] is None else f"fold {shown['fold'] + 1}, "
        done = (
            "in training now"
            if each.is_running
            else f"go on with `embedcache train --resume {each.run}`"
        )
        click.echo(f"unfinished: {each.run}, {fold}{plural(shown['epochs'], 'epoch')} done; {done}")


@command.command("show")
@click.argument("run")
@click.option("--lineage", is_flag=True,
              help="Only where it comes from: corpus files, dataset, view, module.")  # fmt: skip
@json_option
@click.pass_context
def show_run(context: click.Context, run: str, lineage: bool, as_json: bool) -> None:
    """Show the figures and the configuration of RUN (its name, its beginning, or `last`)."""
    from cli.run_showing import print_lineage, print_run, run_fields
    from cnn.run import load_run

    with open_user_store(context) as store:
        found = load_run(store, run)
    if lineage:
        if as_json:
            print_json({"run": found.name, "lineage": found.lineage})
        else:
            print_lineage(found)
    elif as_json:
        print_json({**run_fields(found), "history": found.history})
    else:
        print_run(found)


@command.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@json_option
@click.pass_context
def compare(context: click.Context, runs: tuple[str, ...], as_json: bool) -> None:
    """Compare RUNs: scores, and the settings that differ.

    Of two with the same test texts also whether the difference may be chance: McNemar's
    exact test, and a 95 % interval by paired bootstrap.
    """
    from cli.run_showing import print_comparison
    from cnn.comparing import compare_runs
    from cnn.run import load_run

    if len(runs) < 2:
        raise click.UsageError("name two runs or more")
    with open_user_store(context) as store:
        comparison = compare_runs([load_run(store, run) for run in runs])
    print_json(comparison.to_record()) if as_json else print_comparison(comparison)


@command.command("delete")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@json_option
@click.pass_context
def delete(context: click.Context, runs: tuple[str, ...], as_json: bool) -> None:
    """Delete RUNs with their files, finished or not; features and datasets stay."""
    with open_user_store(context) as store:
        found = dict([_find(store, run) for run in runs])
        deleted = [_delete(store, name, unfinished) for name, unfinished in found.items()]
    num_bytes = sum(record["bytes"] for record in deleted)
    if as_json:
        print_json({"deleted": deleted, "bytes": num_bytes})
        return
    for record in deleted:
        click.echo(f"deleted {record['run']}")
    click.echo(f"{plural(len(deleted), 'run')}, {format_bytes(num_bytes)}")


@command.command("export")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="DIR",
              help="Where to: DIR/NAME of each.")  # fmt: skip
@click.option("--tensorboard", is_flag=True,
              help="Write their logs for TensorBoard too, into DIR/tensorboard.")  # fmt: skip
@json_option
@click.pass_context
def export(
    context: click.Context, runs: tuple[str, ...], output: str, tensorboard: bool, as_json: bool
) -> None:
    """Copy the files of RUNs into a folder: model, predictions, history, configuration."""
    from cnn.run import load_run
    from cnn.run_export import export_run

    folder = Path(output).expanduser()
    logs = folder / "tensorboard" if tensorboard else None
    with open_user_store(context) as store:
        # Named twice, a run is copied once.
        found = list({run.name: run for run in (load_run(store, name) for name in runs)}.values())
        if logs is not None:
            from cnn.events import export_logs

            export_logs(logs, found)
        copies = {run.name: export_run(run, folder) for run in found}
    if as_json:
        exported = [{"run": name, "path": str(path)} for name, path in copies.items()]
        print_json({"exported": exported, "tensorboard": None if logs is None else str(logs)})
        return
    for path in copies.values():
        click.echo(path)
    if logs is not None:
        click.echo(f"tensorboard --logdir {logs}")


def _find(store: FeatureStore, name: str) -> tuple[str, bool]:
    """A run's whole name, and whether it is an unfinished one."""
    from cnn.checkpoints import find_unfinished, list_unfinished
    from embedcache.errors import UnknownNameError

    try:
        return store.catalog.find_run(name).run, False
    except UnknownNameError:
        if not any(name and each.run.startswith(name) for each in list_unfinished(store)):
            raise
    return find_unfinished(store, name).run, True


def _delete(store: FeatureStore, name: str, unfinished: bool) -> dict[str, Any]:
    from cnn.checkpoints import delete_unfinished, find_unfinished
    from cnn.saving import delete_run

    if unfinished:
        num_bytes = find_unfinished(store, name).num_bytes
        delete_unfinished(store, name)
    else:
        num_bytes = delete_run(store, name)
    return {"run": name, "unfinished": unfinished, "bytes": num_bytes}


def _unfinished_record(found: Unfinished) -> dict[str, Any]:
    """How far an unfinished training is: ``epochs`` of ``fold`` are done."""
    folds = found.about["config"]["folds"]
    fit = found.state["fit"]
    return {
        "run": found.run,
        "dataset": found.about["dataset"]["name"],
        "version": found.about["dataset"]["version"],
        "view": found.about["view"],
        "seed": found.about["config"]["seed"],
        "fold": None if folds is None else len(found.state["outcomes"]),
        "folds": folds,
        "epochs": 0 if fit is None else len(fit["history"]),
        "saved_at": found.saved_at,
        "bytes": found.num_bytes,
        "running": found.is_running,
    }
