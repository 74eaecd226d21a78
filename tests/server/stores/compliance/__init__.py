"""What every store must do: the rules of `statestream_server.stores.base`, one test each."""

from __future__ import annotations

from tests.server.stores.compliance.claims import Claims
from tests.server.stores.compliance.keys import Keys
from tests.server.stores.compliance.saves import Saves


class StoreCompliance(Claims, Saves, Keys):
    """Every store's test class inherits these; its module offers a fixture `store`, started and empty."""
