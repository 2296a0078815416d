"""`embedcache export`: a dataset with its features as a file that other programs read."""

from __future__ import annotations

import click

from cli.common import format_bytes, json_option, open_user_store, plural, print_json

_FORMATS = ("npz", "parquet", "tfrecord", "datasets")


@click.command("export")
@click.argument("dataset", required=False)
@click.option("--to", required=True, type=click.Path(), metavar="PATH",
              help="The file, or for datasets the folder.")  # fmt: skip
@click.option("--format", "file_format", type=click.Choice(_FORMATS),
              help="What to write; datasets is a folder of Hugging Face datasets.  [default: by the"
              " ending of PATH: .npz, .parquet, .tfrecord]")  # fmt: skip
@click.option("--view", metavar="VIEW", help="Fingerprint, or its beginning.  [default: the view"
              " that the dataset was last built under]")  # fmt: skip
@click.option("--split", metavar="SPLIT", help="Only the documents of this split.  [default: all]")
@click.option("--force", is_flag=True, help="Replace what is there already.")
@json_option
@click.pass_context
def command(
    context: click.Context, /, dataset: str | None, to: str, file_format: str | None,
    view: str | None, split: str | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write a dataset with its features to a file that other programs read.

    DATASET is a name, NAME@VERSION, or nothing for the newest. Keys, labels, splits, lengths
    and features are written; the texts themselves are not in the store.
    """
    from embedcache.exchange.exporting import export_dataset

    with open_user_store(context) as store:
        report = export_dataset(
            store, dataset, to, format=file_format, view=view, split=split, force=force
        )
    if as_json:
        print_json(report.to_record())
        return
    click.echo(
        f"{plural(report.texts, 'text')}, {plural(report.tokens, 'token')} ×"
        f" {report.dim} {report.dtype}: {format_bytes(report.bytes)}, {report.seconds:.2f} s"
    )
    click.echo(
        f"dataset {report.dataset}@{report.version[:12]}, view {report.view[:12]} in {report.path}"
    )
