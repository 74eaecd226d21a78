"""The versions that are in service: which of a model serves by default, and what its versions are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from statestream.contract import errors
from statestream.contract.aliases import DEFAULT
from statestream_server.engine.table import Table
from statestream_server.models.model import Model


@dataclass(slots=True)
class Served:
    """One version that is served: the model and, where it has memory, the table of its sessions."""

    model: Model
    table: Table | None


class Catalog:
    """Versions by model name. The registry is one that loads them."""

    def __init__(self) -> None:
        self._served: dict[str, dict[int, Served]] = {}
        self._chosen = set[tuple[str, int]]()
        self._defaults: dict[str, int] = {}
        self._gone: set[tuple[str, int]] = set()
        self._aliases: dict[str, dict[str, int]] = {}
        self.failures: dict[tuple[str, int], str] = {}
        """Why versions do not serve, by name and version."""
        self.misread: dict[str, str] = {}
        """Why what the files say of a model's aliases was not taken, by name."""

    @property
    def chosen(self) -> list[tuple[str, int]]:
        """The loaded versions that somebody chose, not a session that is pinned to one: these serve by default."""
        return sorted(key for key in self._chosen if self.is_loaded(*key))

    def choose(self, name: str, version: int) -> None:
        """Counts a version among those of which the highest serves by default."""
        self._chosen.add((name, version))
        self._choose(name)

    def aliases(self, name: str) -> Mapping[str, int]:
        """The versions of a model by alias."""
        return self._aliases.get(name, {})

    def aliases_of(self, name: str, version: int) -> list[str]:
        """What a version can be called in place of its number, in order."""
        return sorted(alias for alias, number in self.aliases(name).items() if number == version)

    def call(self, name: str, aliases: Mapping[str, int]) -> None:
        """Has these aliases name versions of a model, and no others."""
        self._aliases[name] = dict(sorted(aliases.items()))
        self._choose(name)

    def number(self, name: str, version: int, alias: str) -> int:
        """The version that a caller names by number or alias, 0 for none.

        Raises:
            ModelNotFound: There is no such model, or it has no such alias.
            BadFrame: Both came.
        """
        if not alias:
            return version
        if version:
            raise errors.BadFrame(
                f"version {version} and alias {errors.quoted(alias)} came; expected one of them",
                metadata={"field": "alias"},
            )
        found = self.aliases(name).get(alias)
        if found is None and alias != DEFAULT:
            self._versions(name)
            have = ", ".join(f"{known} ({number})" for known, number in self.aliases(name).items())
            loaded = ", ".join(map(str, sorted(self._served[name])))
            raise errors.ModelNotFound(
                f"model {name!r} has no alias {errors.quoted(alias)}; its aliases: {have or 'none'}; loaded versions:"
                f" {loaded}{f'; what was said last is not taken: {why}' if (why := self.misread.get(name)) else ''}",
                metadata={"field": "alias"},
            )
        return found or 0

    def get(self, name: str, version: int = 0, alias: str = "") -> Served:
        """A loaded version, by number or alias; 0 for the one that serves by default.

        Raises:
            ModelNotFound: The name, or the version, is not served.
        """
        version = self.number(name, version, alias)
        versions = self._versions(name)
        number = version or self._defaults[name]
        if number not in versions:
            raise self._unknown(name, version)
        return versions[number]

    def is_loaded(self, name: str, version: int) -> bool:
        """Whether a version is loaded."""
        return version in self._served.get(name, {})

    def table(self, name: str, version: int) -> Table | None:
        """The table of a loaded version; None where it is not loaded or has none."""
        served = self._served.get(name, {}).get(version)
        return served.table if served is not None else None

    def serves(self, table: Table, *, named: bool) -> bool:
        """Whether a table is that of a loaded version, and of the default one where a caller has not named it."""
        name, version = table.model.name, table.model.version
        served = self._served.get(name, {}).get(version)
        return served is not None and served.table is table and (named or self._defaults.get(name) == version)

    def is_default(self, model: Model) -> bool:
        """Whether it is the version that serves when none is asked for."""
        return model.version == self._defaults.get(model.name)

    def is_gone(self, name: str, version: int) -> bool:
        """Whether a loaded version does not lie where it was any more."""
        return (name, version) in self._gone

    def _choose(self, name: str) -> None:
        """Decides which version of a model serves by default: the one so called, or the highest that still lies there.

        The highest is one that was chosen; where none is, any that is loaded and lies there, or is loaded.
        """
        versions = self._served.get(name)
        if versions:
            lying = [v for v in versions if (name, v) not in self._gone]
            if (told := self.aliases(name).get(DEFAULT)) in versions:
                self._defaults[name] = told
                return
            self._defaults[name] = max([v for v in lying if (name, v) in self._chosen] or lying or versions)
        else:
            self._defaults.pop(name, None)

    def tables(self, name: str) -> list[Table]:
        """The tables of all loaded versions of a model.

        Raises:
            ModelNotFound: The name is not served.
        """
        return [served.table for served in self._versions(name).values() if served.table is not None]

    def __iter__(self) -> Iterator[Served]:
        """All versions that are loaded now, by name, then version; others may come and go meanwhile."""
        return iter([served for _, versions in sorted(self._served.items()) for _, served in sorted(versions.items())])

    def _versions(self, name: str) -> dict[int, Served]:
        versions = self._served.get(name)
        if not versions:
            raise self._unknown(name, 0)
        return versions

    def _unknown(self, name: str, version: int) -> errors.ModelNotFound:
        failure = next((text for (n, v), text in self.failures.items() if n == name and version in (0, v)), None)
        if failure is not None:
            return errors.ModelNotFound(f"model {name!r} is there but does not load: {failure}")
        if name in self._served:
            have = ", ".join(str(number) for number in sorted(self._served[name]))
            return errors.ModelNotFound(f"model {name!r} has no version {version}; loaded: {have}")
        have = ", ".join(sorted(self._served)) or "none"
        return errors.ModelNotFound(f"no model {name!r} is served; served: {have}")
