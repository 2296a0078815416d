"""`embedcache runs report`: runs on one HTML page."""

from __future__ import annotations

import click

from cli.common import format_bytes, json_option, open_user_store, plural, print_json
from cli.corpus_options import FORMATS
from cli.outputs import replaced_file


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="FILE",
              help="The page. It appears once it is whole.")  # fmt: skip
@click.option("--texts", multiple=True, type=click.Path(), metavar="PATH",
              help="A file with texts of the corpus, where those that it was built from are gone;"
              " may be given again.")  # fmt: skip
@click.option("--texts-format", type=click.Choice(FORMATS),
              help="Its format.  [default: by name, then by content, as of a corpus]")  # fmt: skip
@click.option("--text-field", metavar="FIELD",
              help="Column or field of its texts.  [default: text, else sentence]")  # fmt: skip
@click.option("--errors", "num_errors", type=click.IntRange(0, 200), default=20, show_default=True,
              help="Worst errors of each run, at most.")  # fmt: skip
@json_option
@click.pass_context
def command(
    context: click.Context, /, runs: tuple[str, ...], output: str, texts: tuple[str, ...],
    texts_format: str | None, text_field: str | None, num_errors: int, as_json: bool,
) -> None:  # fmt: skip
    """Put RUNs (names, their beginnings, or `last`) side by side on one HTML page.

    Learning curves, confusion matrix, calibration, cost, and the texts that a run was most
    wrong about, coloured by what their words add. The page needs no other file and no network.
    Texts are not kept in the store: they are read again from the files of the corpus.
    """
    from cnn.report.page import make_report
    from cnn.run import load_run
    from embedcache.corpus import CorpusOptions, Source

    with open_user_store(context) as store, replaced_file(output) as file:
        report = make_report(
            store,
            [load_run(store, name) for name in runs],
            texts=[Source(path, None) for path in texts],
            options=CorpusOptions(format=texts_format, text_field=text_field),
            num_errors=num_errors,
        )
        file.write(report.html)
    size = len(report.html.encode())
    if as_json:
        print_json(
            {
                "path": output,
                "bytes": size,
                "runs": list(report.runs),
                "errors": report.num_errors,
                "texts": report.num_texts,
                "problems": list(report.problems),
            }
        )
        return
    for problem in report.problems:
        click.echo(f"note: {problem}", err=True)
    click.echo(
        f"{plural(len(report.runs), 'run')}, {plural(report.num_errors, 'worst error')},"
        f" {report.num_texts:,} of them with their text: {format_bytes(size)} in {output}"
    )
