"""Signatures of models, for `from statestream import signature`; what one is stands in `contract.signature`."""

from statestream.contract.signature import *  # noqa: F403  # the same names
