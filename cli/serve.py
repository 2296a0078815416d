"""`embedcache serve`: the store over HTTP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cli.common import store_path

_PREDICTOR = "cnn.serving:open_predictor"


@click.command("serve")
@click.option("--host", metavar="ADDRESS", help="Address to listen at; another one than this"
              " machine's own needs --api-key-file.  [default: 127.0.0.1]")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), metavar="PORT",
              help="Port to listen at; 0: one that is free.  [default: 8080]")  # fmt: skip
@click.option("--view", "views", multiple=True, metavar="[ALIAS=]VIEW",
              help="A view to serve: its fingerprint, or the beginning of it, under a name of your"
              " choice; again for several. The first one is the default.  [default: every view;"
              " first that of the newest dataset]")  # fmt: skip
@click.option("--run", "runs", multiple=True, metavar="RUN",
              help="A run that predicts; again for several.  [default: every run]")  # fmt: skip
@click.option("--read-only", is_flag=True,
              help="Serve what is stored and compute nothing.")  # fmt: skip
@click.option("--api-key-file", type=click.Path(path_type=Path), metavar="FILE",
              help="Keys that requests must show, one a line, each perhaps with its scopes: read,"
              " compute, admin.")  # fmt: skip
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE",
              help="TOML file with these settings, and with limits; the options above go"
              " first.")  # fmt: skip
@click.option("--preload", is_flag=True,
              help="Load modules at start and not at the first miss.")  # fmt: skip
@click.pass_context
def command(context: click.Context, /, config: Path | None, **options: Any) -> None:
    """Serve the store over HTTP: features of texts, computed once, and predictions of runs.

    SIGTERM and Ctrl-C end it when what is in flight has been answered and committed.
    """
    from embedcache.service.settings import ServiceSettings, load_settings

    settings = ServiceSettings() if config is None else load_settings(config)
    # By identity: port 0 is a choice, and equal to False.
    given = {
        name: value
        for name, value in options.items()
        if value is not None and value is not False and value != ()
    }
    settings = replace(settings, **given, predictor=_PREDICTOR)
    context.exit(_run_server()(store_path(context), settings))


def _run_server() -> Any:
    """`embedcache.service.server.run_server`.

    Raises:
        ServiceError: if the packages that it needs are not installed.
    """
    from embedcache.errors import ServiceError

    try:
        from embedcache.service.server import run_server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("embedcache", "cnn", "cli"):
            raise
        raise ServiceError(
            f"embedcache serve needs {error.name}, which is not installed; run"
            " `pip install 'embedcache[service]'`"
        ) from None
    return run_server
