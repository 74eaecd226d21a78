"""Starts the command `statestream`, or says what to install where its libraries are not."""

from __future__ import annotations

import errno
import os
import sys
from importlib.util import find_spec

LIBRARIES = ("click", "rich")


def main() -> None:
    """Runs the command of this process' arguments; exit code 1 where it cannot."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        sys.exit(f"statestream: the command needs {' and '.join(missing)}: pip install 'statestream[cli]'")
    # What gRPC's core writes on standard error by itself, a line a try, an error says in one.
    if sys.argv[1:2] != ["serve"]:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from statestream.command.group import main as command
    except KeyboardInterrupt:  # As click says it, whose turn it is only from here on.
        sys.exit("Aborted!")
    try:
        command()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # What is left in buffers would fail again as Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(f"Error: {error.filename or 'the output'} could not be written whole: {error.strerror}; make room")


if __name__ == "__main__":
    main()
