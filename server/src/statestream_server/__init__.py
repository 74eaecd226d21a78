"""The Statestream server: sessions of recurrent models as rows, stepped in one batch."""

from importlib import import_module


def __getattr__(name: str) -> str:
    # Read when it is asked for: looking through all installed packages is a tenth of a start.
    if name == "__version__":
        return str(import_module("importlib.metadata").version("statestream-server"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
