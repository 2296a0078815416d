"""The `embedcache` command: finds a command's file when it is called, and maps errors.

Exit status: 0 done; 1 failed, with one line ``error: …``; 2 usage; 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import Any

import click

from embedcache import __version__
from embedcache.errors import EmbedCacheError

STATUS_FAILED = 1
STATUS_INTERRUPTED = 130

_COMMANDS = {
    "bakeoff": "cli.bakeoff",
    "build": "cli.build",
    "compact": "cli.compact",
    "datasets": "cli.datasets",
    "explain": "cli.explain",
    "export": "cli.exporting",
    "gc": "cli.gc",
    "get": "cli.get",
    "import": "cli.importing",
    "modules": "cli.modules",
    "predict": "cli.predict",
    "repair": "cli.repair",
    "runs": "cli.runs",
    "serve": "cli.serve",
    "stats": "cli.stats",
    "store": "cli.store",
    "sweep": "cli.sweep",
    "train": "cli.train",
    "verify": "cli.verify",
    "views": "cli.views",
}


# \b keeps click from filling the lines below it.
_HELP = """Pay for the frozen embedding once; iterate on the CNN for free.

\b
  embedcache build corpus.txt      every text through the module once, ever
  embedcache train                 as often as you like; the module is never touched
"""


class LazyGroup(click.Group):
    """Commands whose files are imported when they are called or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The commands' names, sorted."""
        return sorted(_COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(_COMMANDS[cmd_name]).command
        return command


@click.group(cls=LazyGroup, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--store",
    type=click.Path(),
    envvar="EMBEDCACHE_STORE",
    help="Folder of the store.  [default: $EMBEDCACHE_STORE, else the user's data folder]",
)
@click.version_option(__version__, prog_name="embedcache")
@click.pass_context
def cli(context: click.Context, store: str | None) -> None:
    """The program itself."""
    context.obj = store


def main() -> None:
    """The console script's entry."""
    # SIGTERM as Ctrl-C: what was computed is kept, and the status says what happened.
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line.

    Returns:
        The exit status.
    """
    try:
        status = cli.main(arguments, prog_name="embedcache", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _print_error("interrupted: what was finished is kept; run the same command to go on")
        return STATUS_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe went away (`| head`): nothing is left to say, and Python's
        # own flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_FAILED
    except EmbedCacheError as error:
        _print_error(f"error: {error}")
        return STATUS_FAILED
    except Exception as error:  # the last boundary: no traceback reaches a user
        if os.environ.get("EMBEDCACHE_TRACEBACK"):
            raise
        reason = " ".join(str(error).split())[:300]
        _print_error(
            f"error: unexpected {type(error).__name__}: {reason}; set EMBEDCACHE_TRACEBACK=1 to"
            " see where, and please report it"
        )
        return STATUS_FAILED
    # What `Context.exit` was given is returned and not raised, outside standalone mode.
    return status if isinstance(status, int) else 0


def _print_error(line: str) -> None:
    """Print one line, also where a name in it has line ends."""
    click.echo(" ".join(line.splitlines()), err=True)


def _interrupt(_number: int, _frame: FrameType | None) -> Any:
    raise KeyboardInterrupt
