"""`embedcache predict`: a trained run labels texts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from cli.common import json_option, open_user_store, print_json
from cli.corpus_options import FORMATS
from cli.outputs import replaced_file
from cli.prediction_formats import (
    Labelled,
    csv_header,
    csv_lines,
    json_object,
    jsonl_lines,
    text_lines,
)
from cli.prediction_inputs import Notes, TextFile, cut_blocks

if TYPE_CHECKING:
    from cnn.run import Run
    from embedcache.store.store import FeatureStore

_STDIN = "-"
_MULTILABEL = "multilabel"
_WRITERS = {"text": text_lines, "jsonl": jsonl_lines, "csv": csv_lines}
_FILE_OPTIONS = {"file_format": "--file-format", "text_field": "--text-field"}


@click.command("predict")
@click.argument("run")
@click.argument("texts", nargs=-1, metavar="[TEXT...|-]")
@click.option("--file", "path", type=click.Path(), metavar="FILE",
              help="Label the texts of a file, in their order; - is standard input.")  # fmt: skip
@click.option("--file-format", type=click.Choice(FORMATS),
              help="Its format.  [default: by name, then by content, as of a corpus]")  # fmt: skip
@click.option("--text-field", metavar="FIELD",
              help="Column or field of its texts.  [default: text, else sentence]")  # fmt: skip
@click.option("--encoding-errors", type=click.Choice(["strict", "replace"]), default="strict",
              show_default=True, help="What to do with bytes that are not UTF-8.")  # fmt: skip
@click.option("--max-text-bytes", type=click.IntRange(1, (1 << 31) - 1), default=1 << 20,
              show_default=True, help="Longest line or text that is read.")  # fmt: skip
@click.option("--format", "output_format", type=click.Choice(list(_WRITERS)),
              help="What to print: label, probability and text a line; a JSON object a line; or"
              " a table.  [default: text]")  # fmt: skip
@click.option("-o", "--output", type=click.Path(), metavar="FILE",
              help="Write to this file instead, which appears once it is whole.")  # fmt: skip
@click.option("--explain", is_flag=True,
              help="Tell the words that decided, and how much each adds.")  # fmt: skip
@json_option
@click.pass_context
def command(
    context: click.Context, /, run: str, texts: tuple[str, ...], output: str | None, explain: bool,
    as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Label TEXTs with RUN (a run's name, its beginning, or `last`).

    - reads one text a line from standard input, as no TEXT at all does. Texts that the store
    lacks are put through the module and kept. Any number of texts is labelled in bounded
    memory, but with --json, which prints one object of all of them.
    """
    from cnn.run import load_run

    _check_usage(texts, settings, as_json=as_json, explain=explain)
    output_format = settings["output_format"] or "text"
    with open_user_store(context) as store:
        found = load_run(store, run)
        notes = Notes()
        given = _given_texts(texts, settings)
        blocks = _label_blocks(store, found, given, notes=notes, explain=explain)
        if as_json:
            print_json(json_object(found.name, [each for block in blocks for each in block]))
        else:
            _write_blocks(blocks, output, output_format, labels=found.labels)
        view = store.catalog.find_view(found.record["view"]).view
    for line in notes.lines(max_tokens=view.max_tokens):
        click.echo(line, err=True)


def _check_usage(
    texts: Sequence[str], settings: dict[str, Any], *, as_json: bool, explain: bool
) -> None:
    if settings["path"] is not None and texts:
        raise click.UsageError("give texts or --file, not both")
    if settings["path"] is None:
        for name, option in _FILE_OPTIONS.items():
            if settings[name] is not None:
                raise click.UsageError(f"{option} is of a file: name it with --file")
    if as_json and settings["output_format"] is not None:
        raise click.UsageError("--json prints one object, --format a record a text: give one")
    if explain and settings["output_format"] == "csv":
        raise click.UsageError("a table has no place for explanations: take --format jsonl")


def _given_texts(texts: Sequence[str], settings: dict[str, Any]) -> Iterable[str]:
    path, file_format = settings["path"], settings["file_format"]
    if path is None and list(texts) not in ([], [_STDIN]):
        return texts
    if path is None:
        path, file_format = _STDIN, "txt"
    return TextFile(
        path=path,
        file_format=file_format,
        text_field=settings["text_field"],
        encoding_errors=settings["encoding_errors"],
        max_text_bytes=settings["max_text_bytes"],
    ).iter_texts()


def _label_blocks(
    store: FeatureStore, run: Run, texts: Iterable[str], *, notes: Notes, explain: bool
) -> Iterator[list[Labelled]]:
    from cnn.explaining import explain_texts

    reader = store.reader(run.record["view"])
    for block in cut_blocks(texts, row_bytes=reader.view.dim * reader.dtype.itemsize):
        predictions = run.predict(block)
        explanations = explain_texts(run, block) if explain else [None] * len(block)
        refs, _ = store.locate(run.record["view"], block)
        notes.add(refs.lengths.tolist(), refs.truncated.tolist())
        yield [
            Labelled(text, prediction, explanation, is_multilabel=run.task == _MULTILABEL)
            for text, prediction, explanation in zip(block, predictions, explanations, strict=True)
        ]


def _write_blocks(
    blocks: Iterable[list[Labelled]],
    output: str | None,
    output_format: str,
    *,
    labels: Sequence[str],
) -> None:
    render = _WRITERS[output_format]
    with nullcontext(sys.stdout) if output is None else replaced_file(output) as file:
        header = csv_header(labels) if output_format == "csv" else ""
        for block in blocks:
            # Removes colours where the file is no terminal.
            click.echo(header + render(block), file=file, nl=False)
            header = ""
