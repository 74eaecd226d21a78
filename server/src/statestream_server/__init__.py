"""The Statestream server: sessions of recurrent models as rows, stepped in one batch."""

from importlib.metadata import version

__version__ = version("statestream-server")
