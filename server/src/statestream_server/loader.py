"""The loader: makes models of files, several at once beside the loop, and knows how what it read looked."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from statestream.contract import errors
from statestream_server.models.files import repository
from statestream_server.models.files.prints import Trust
from statestream_server.models.files.repository import Found
from statestream_server.models.graphs.runtime import Device
from statestream_server.models.model import BatchPolicy, Model, ModelLoadError
from statestream_server.models.proof import loading
from statestream_server.models.proof.kept import Kept
from statestream_server.models.proof.verdict import TrialLimits
from statestream_server.quarantine.quarantine import Quarantine

Look = tuple[tuple[repository.Entry, ...], int | None]
"""How a version lies there, and the list of what is trusted."""
_MOST_LOADS = 4
"""Versions that load at once; each may have a process in which it is tried."""


class Loader:
    """Makes models of the files of versions. Nothing that it reads serves by that."""

    def __init__(
        self,
        device: Device,
        batch_policy: BatchPolicy,
        limits: TrialLimits,
        quarantine: Quarantine,
        *,
        proofs: Path | None = None,
        trust: Path | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            device: What models run on.
            batch_policy: What becomes of a model that is not batch-invariant.
            limits: What trying a version may take.
            quarantine: Notes loads, and keeps from loading again what ended servers.
            proofs: The folder where verdicts of trials are kept; None for none.
            trust: The file that lists what may be loaded; None where anything may.
        """
        self.device = device
        self._batch_policy = batch_policy
        self._limits = limits
        self._quarantine = quarantine
        self._kept = Kept(proofs) if proofs is not None else None
        self._trust = Trust(trust) if trust is not None else None
        self._threads = ThreadPoolExecutor(_MOST_LOADS, "load")
        self._tried: dict[tuple[str, int], Look] = {}
        self.loads = self.failed = 0
        """Versions that were read so far, and those of them that cannot be served."""

    async def read(self, found: Found) -> Model | ModelLoadError:
        """A version's model, or why it cannot be served; a cancelled call ends no load that has begun."""
        read = await asyncio.get_running_loop().run_in_executor(self._threads, self._read, found)
        self.loads += 1
        self.failed += isinstance(read, ModelLoadError)
        return read

    def look(self, found: Found) -> Look:
        """What decides whether a version loads, as it lies there: another value once any of it is another.

        Raises:
            OSError: It is not there any more.
        """
        listed = None
        if self._trust is not None:
            with contextlib.suppress(OSError):
                listed = self._trust.path.stat().st_mtime_ns
        return repository.look(found.path), listed

    def tried(self, name: str, version: int) -> Look | None:
        """How a version looked when it was last read; None where it was not, or has gone since."""
        return self._tried.get((name, version))

    def gone(self, name: str, version: int) -> None:
        """Forgets how a version looked that does not lie there any more: another in its place is tried."""
        self._tried.pop((name, version), None)

    def close(self) -> None:
        """Begins no load any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _read(self, found: Found) -> Model | ModelLoadError:
        with contextlib.suppress(OSError):
            self._tried[found.name, found.version] = self.look(found)
        try:
            with self._quarantine.loading(repository.mark(found), f"the load of model {found.name!r} {found.version}"):
                return loading.load_file(
                    found.path,
                    name=found.name,
                    version=found.version,
                    size=found.size,
                    device=self.device,
                    batch_policy=self._batch_policy,
                    limits=self._limits,
                    kept=self._kept,
                    trust=self._trust,
                )
        except ModelLoadError as error:
            return error
        except errors.Quarantined as error:
            return ModelLoadError(str(error.message))
