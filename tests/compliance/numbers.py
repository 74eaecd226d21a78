"""Our own client as the judge of clients runs it: numbers in, sums out. ADDRESS MODEL ID."""

from __future__ import annotations

import sys

import statestream


def main() -> int:
    """Returns the exit status."""
    address, model, name = sys.argv[1:4]
    try:
        with statestream.connect(address) as client, client.session(model, id=name) as session:
            for y in session.stream([float(line)] for line in sys.stdin):
                print(float(y.item()), flush=True)
    except statestream.StatestreamError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
