"""`embedcache import`: features that another program computed, into the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.common import format_bytes, json_option, open_user_store, plural, print_json
from cli.corpus_options import corpus_options, read_options

if TYPE_CHECKING:
    from embedcache.exchange.importing import ImportOptions, ImportReport

_FORMATS = ("npz", "allennlp", "bilm")


@click.command("import")
@click.argument("path", type=click.Path())
@click.option("--texts", multiple=True, metavar="[SPLIT=]FILE", help="The text file that the"
              " features were computed from, as build reads it; again for several. Not needed for"
              " an .npz with keys.")  # fmt: skip
@click.option("--as", "name", required=True, metavar="NAME", help="What stands for their module,"
              " which is not known: features under one name are one view.")  # fmt: skip
@click.option("--dataset", metavar="NAME", help="Name to register the texts under.  [default: the"
              " first file's name up to its first dot]")  # fmt: skip
@click.option("--format", "file_format", type=click.Choice(_FORMATS),
              help="What wrote PATH.  [default: by its content]")  # fmt: skip
@click.option("--layer", metavar="N|all", help="One layer, counted from 0, or all of them, kept"
              " apart for the trainer to mix.  [default: all]")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float16", "float32"]),
              help="Numbers in the store.  [default: as in the file]")  # fmt: skip
@corpus_options(format_option="--texts-format")
@json_option
@click.pass_context
def command(
    context: click.Context, /, path: str, texts: tuple[str, ...], name: str, dataset: str | None,
    as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Take the features in PATH into the store, and register their texts as a dataset.

    PATH is an .npz, or the HDF5 of one dataset a line that AllenNLP's elmo command and
    bilm-tf write. Text i of the text files has dataset i. What the store has already is
    compared, and not written again.
    """
    from cli.progress import ProgressBar
    from embedcache.corpus import parse_sources
    from embedcache.exchange.importing import import_features

    sources = parse_sources(texts) if texts else None
    with open_user_store(context, create=True) as store, ProgressBar() as bar:
        report = import_features(
            store, path, name=name, texts=sources, dataset=dataset, options=_options(settings),
            on_progress=bar.show,
        )  # fmt: skip
    print_json(report.to_record()) if as_json else _print_report(report)


def _options(settings: dict[str, Any]) -> ImportOptions:
    from embedcache.exchange.importing import ImportOptions

    return ImportOptions(
        format=settings["file_format"],
        layer=settings["layer"],
        dtype=settings["dtype"],
        corpus=read_options(settings),
    )


def _print_report(report: ImportReport) -> None:
    click.echo(
        f"{plural(report.texts, 'text')}, {report.unique:,} distinct:"
        f" {report.hits:,} hits, {report.misses:,} misses"
    )
    if report.misses:
        layers = f" of {report.layers} layers" if report.layers > 1 else ""
        click.echo(
            f"{plural(report.tokens, 'token')} × {report.dim} {report.dtype}{layers} in"
            f" {plural(report.shards, 'new shard')}, {format_bytes(report.bytes)}"
        )
    if report.blank:
        click.echo(f"{plural(report.blank, 'blank line')}: kept as texts of no tokens")
    if report.differing:
        click.echo(
            f"{plural(report.differing, 'text')} with other features than were kept of the same"
            " text (ELMo carries its state on): the first are kept"
        )
    click.echo(f"{report.seconds:.2f} s")
    click.echo(
        f"dataset {report.dataset}@{report.version[:12]}, view {report.view[:12]} ({report.module})"
    )
