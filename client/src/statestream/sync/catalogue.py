# Generated from statestream/aio/catalogue.py by `make twins`; change that one.
"""What a synchronous client can ask about a server, its models and its sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from statestream import unary
from statestream.arguments import check_text
from statestream.contract.errors import BadTensor
from statestream.layout import Layout
from statestream.sync.calling import answer
from statestream.sync.link import Link
from statestream.sync.waiting import Cache
from statestream.views import Model, MoveAsked, ServerInfo, SessionInfo, Statistics, Suspect, require_kind

T = TypeVar("T")


class Catalogue:
    """The part of a client that looks at what there is."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._layouts: Cache[Layout] = Cache()

    def models(self) -> list[Model]:
        """Every loaded version of every model, and those that failed to load."""
        return answer(self._link, unary.list_models())

    def load_model(self, name: str, version: int | str | None = None) -> Model:
        """Loads a version, by number or alias, from the server's models folder; the highest where left out."""
        model = answer(self._link, unary.load_model(name, version))
        self._layouts.clear()
        return model

    def unload_model(self, name: str, version: int | str | None = None) -> None:
        """Unloads a version; every loaded one where left out.

        Raises:
            ModelInUse: It has open sessions.
        """
        answer(self._link, unary.unload_model(name, version))
        self._layouts.clear()

    def set_alias(self, name: str, alias: str, version: int | None) -> dict[str, int]:
        """Has an alias name a version, which is loaded first; None takes the alias away. The model's aliases then.

        It is written into aliases.toml beside the versions. Sessions that are open stay with their version; new ones,
        and calls without one, go by the alias from now on.

        Raises:
            ModelNotFound: There is no such model, version or alias.
            Unsupported: The version does not load, or the file cannot be written.
        """
        found = answer(self._link, unary.set_alias(name, alias, version))
        self._layouts.clear()
        return found

    def list_sessions(self, model: str | None = None) -> Iterator[SessionInfo]:
        """The sessions on the server, by model, then id."""
        if model is not None:
            check_text("model", model, "'sunspots'")
        return self._pages(model)

    def _pages(self, model: str | None) -> Iterator[SessionInfo]:
        page = ""
        while True:
            sessions, page = answer(self._link, unary.list_sessions(model, page))
            yield from sessions
            if not page:
                return

    def info(self) -> ServerInfo:
        """Version, limits, durability and device of the server."""
        return answer(self._link, unary.get_server())

    def quarantine(self) -> list[Suspect]:
        """Work that was running when servers died: what runs apart since, and what is not run any more."""
        return answer(self._link, unary.list_quarantine())

    def free_quarantined(self, name: str) -> Suspect:
        """Lets work run again that is in quarantine; what it was.

        Raises:
            NotFound: Nothing in quarantine has that name.
        """
        return answer(self._link, unary.free_quarantined(name))

    def move_sessions(self, share: float, model: str | None = None) -> MoveAsked:
        """Asks the server's clients to take a share of their sessions, in (0, 1], to other servers.

        For a server that has more than its part after another one joined, or that is to have less. The quietest streams
        are asked first; each finishes what is under way, and goes on elsewhere. It returns once they are asked.

        Raises:
            ValueError: It is no share.
            ModelNotFound: No such model is served.
            Unsupported: The server stores nothing.
        """
        return answer(self._link, unary.move_sessions(share, model))

    def statistics(self) -> Statistics:
        """What the server's engine did since its process started: its batches, and why they were not larger."""
        return answer(self._link, unary.get_statistics())

    def _fitting(self, model: str, version: int | str | None, kind: str, make: Callable[[Layout], T]) -> T:
        """What `make` makes of a model's layout; where that does not fit, of what the model has become meanwhile.

        Raises:
            BadTensor: It does not fit the model as it is now.
        """
        known = self._layout(model, version, kind)
        try:
            return make(known)
        except BadTensor:
            self._layouts.forget((model, version or 0))
            now = self._layout(model, version, kind)
            if (now.model.version, now.model.digest) == (known.model.version, known.model.digest):
                raise
            return make(now)

    def _layout(self, model: str, version: int | str | None, kind: str) -> Layout:
        # Sessions that are opened at once share one layout, and so their steps share frames.
        layout = self._layouts.get((model, version or 0), lambda: answer(self._link, unary.get_layout(model, version)))
        require_kind(layout.model, kind)
        return layout
