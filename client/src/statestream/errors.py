"""Every error that a caller can meet, for `from statestream import errors`; they are drawn in `contract.errors`."""

from statestream.contract.errors import *  # noqa: F403  # the same names
