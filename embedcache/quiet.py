"""Importing TensorFlow and Keras without their lines on the user's terminal.

TensorFlow's C++ code writes to file descriptor 2 while it is imported, before any of its
own settings can stop it ("WARNING: All log messages before absl::InitializeLog()…").
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_native_stderr() -> Iterator[None]:
    """Hold back what native code writes to standard error; show it if the block raises.

    Python's own ``sys.stderr`` shares the descriptor and is held back too. Not for use
    while other threads write to standard error.
    """
    # Set, not forced: whoever debugs TensorFlow itself can ask for its lines.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        saved = os.dup(2)
    except OSError:  # closed: there is nothing to keep quiet
        yield
        return
    _flush()
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            _flush()
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            _flush()
            os.dup2(saved, 2)
            os.close(saved)


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()
