"""`embedcache predict`: a trained run labels texts."""

from __future__ import annotations

import click

from cli.common import json_option, open_user_store, percent, print_json, read_lines


@click.command("predict")
@click.argument("run")
@click.argument("texts", nargs=-1, metavar="[TEXT...|-]")
@json_option
@click.pass_context
def command(context: click.Context, run: str, texts: tuple[str, ...], as_json: bool) -> None:
    """Label TEXTs with RUN (a run's name, its beginning, or `last`).

    - reads one text a line from standard input, as no TEXT at all does. Texts that the store
    lacks are put through the module and kept.
    """
    from cnn.run import load_run

    with open_user_store(context) as store:
        found = load_run(store, run)
        wanted = read_lines("-") if texts in ((), ("-",)) else list(texts)
        predictions = found.predict(wanted)
    if as_json:
        print_json(
            {
                "run": found.name,
                "predictions": [
                    {
                        "text": text,
                        "label": prediction.label,
                        "probability": prediction.probability,
                        "probabilities": dict(prediction.probabilities),
                    }
                    for text, prediction in zip(wanted, predictions, strict=True)
                ],
            }
        )
        return
    for text, prediction in zip(wanted, predictions, strict=True):
        click.echo(f"{prediction.label}\t{percent(prediction.probability)}\t{text}")
