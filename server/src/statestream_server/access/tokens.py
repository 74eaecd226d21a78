"""The file of tokens: TOML that has hashes, never a token. It is read, added to and cut here.

    [limits]                       of every tenant that says no others
    sessions = 10_000

    [tenant.acme]                  one tenant's
    sessions = 100_000

    [[token]]
    id = "5f1c9a3e"
    hash = "…"                     SHA-256 of the token, 64 hex digits
    tenant = "acme"
    rights = ["step"]
    expires = 2027-02-26T06:00:00Z

    [[certificate]]                what TLS has checked (--tls-clients), in place of a token
    id = "billing"
    uri = "spiffe://acme/billing"  one of its alternative names; or name = "billing", its subject's common name
    tenant = "acme"
    rights = ["step"]

A token is 256 random bits. Nobody can guess one, so a hash that is slow on purpose, as for passwords, would protect
nothing and cost every call; and it is found by its hash, so how long a look takes says nothing of a token.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from statestream_server.access.certificates import by_name, by_uri

STEP: Final = "step"
ADMIN: Final = "admin"
RIGHTS: Final = frozenset({STEP, ADMIN})
"""What a token may: use models and its tenant's sessions; see to the server and its models."""
MOST_TOKEN: Final = 512
"""Characters of a token that is looked at."""
_MOST_FILE: Final = 4 << 20
_NEVER: Final = datetime(9999, 1, 1, tzinfo=UTC)
"""When an entry of a certificate ends that says nothing: the certificate ends by itself."""
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}|")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_KEYS: Final = frozenset({"id", "hash", "tenant", "rights", "expires", "note"})
_CERTIFICATE_KEYS: Final = frozenset({"id", "uri", "name", "tenant", "rights", "expires", "note"})
_MOST_NAME: Final = 1024


class TokensError(Exception):
    """The file of tokens cannot be used: where, what came, what was expected."""


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What one tenant may have in one process at a time.

    Attributes:
        sessions: Sessions in memory.
        streams: Streams of its clients.
        bytes: Bytes of the requests of its calls beside streams; streams have windows, see docs/limits.md.
        calls: Calls beside streams under way, of all kinds.
        forecasts: Forecasts among them.
        texts: Calls of Generate among them.
    """

    sessions: int = 1_000_000
    streams: int = 1_000
    bytes: int = 256 << 20
    calls: int = 10_000
    forecasts: int = 256
    texts: int = 256


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token, or of a certificate in its place.

    Attributes:
        id: What people call it by; no secret.
        hash: SHA-256 of the token, hex digits; the key of a certificate, see `certificates`.
        tenant: Whose sessions it is about.
        rights: What it may.
        expires: Unix time from which on it is none.
        note: What people wrote beside it.
    """

    id: str
    hash: str
    tenant: str
    rights: frozenset[str]
    expires: float
    note: str = ""

    @property
    def is_certificate(self) -> bool:
        """Whether it is a certificate."""
        return ":" in self.hash

    def __str__(self) -> str:
        """What people are told it is."""
        return f"{'certificate' if self.is_certificate else 'token'} {self.id}"


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a file says.

    Attributes:
        tokens: By their hashes.
        limits: Of tenants that have none of their own.
        tenants: Those of tenants that have.
    """

    tokens: Mapping[str, Token] = field(default_factory=dict)
    limits: TenantLimits = field(default_factory=TenantLimits)
    tenants: Mapping[str, TenantLimits] = field(default_factory=dict)

    def limits_of(self, tenant: str) -> TenantLimits:
        """A tenant's limits."""
        return self.tenants.get(tenant, self.limits)


def hash_of(token: str) -> str:
    """What a file has of a token."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def read(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        TokensError: There is none, or it is too large for one.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_FILE + 1)
    except OSError as error:
        raise TokensError(f"{path}: {error.strerror or error}; `statestream token new` makes one") from error
    if len(data) > _MOST_FILE:
        raise TokensError(f"{path} has more than {_MOST_FILE:,} bytes: it is no file of tokens")
    return data


def parse(data: bytes, where: str) -> Tokens:
    """What a file's bytes say. Messages quote no value of the file: somebody may have put a token there.

    Raises:
        TokensError: They cannot be read.
    """
    import tomllib  # Most servers have no tokens.

    try:
        said = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        line = re.search(r"line \d+", str(error))
        raise TokensError(f"{where} is no TOML{f': see {line[0]}' if line else ''}") from None
    if unknown := sorted(said.keys() - {"token", "certificate", "limits", "tenant"}):
        raise TokensError(
            f"{where}: {unknown[0]!r} is unknown; expected [[token]], [[certificate]], [limits] and [tenant.NAME]"
        )
    limits = _limits(said.get("limits", {}), TenantLimits(), f"{where}: [limits]")
    entries, tenants, papers = said.get("token", []), said.get("tenant", {}), said.get("certificate", [])
    if not isinstance(entries, list) or not isinstance(papers, list) or not isinstance(tenants, dict):
        raise TokensError(f"{where}: expected [[token]], [[certificate]], and tenants as [tenant.NAME]")
    own = {name: _limits(each, limits, f"{where}: [tenant.{name}]") for name, each in tenants.items()}
    found, ids = dict[str, Token](), set[str]()
    for number, entry in enumerate(entries, 1):
        token = _token(entry, f"{where}: token {number}")
        if token.id in ids or token.hash in found:
            raise TokensError(f"{where}: token {number} has an id or a hash that another one has")
        ids.add(token.id)
        found[token.hash] = token
    for number, entry in enumerate(papers, 1):
        token = _certificate(entry, f"{where}: certificate {number}")
        if token.id in ids or token.hash in found:
            raise TokensError(f"{where}: certificate {number} has an id or a name that another one has")
        ids.add(token.id)
        found[token.hash] = token
    return Tokens(found, limits, own)


def _token(entry: Any, where: str) -> Token:
    if not isinstance(entry, dict):
        raise TokensError(f"{where} is no table; expected [[token]]")
    if unknown := sorted(entry.keys() - _KEYS):
        raise TokensError(f"{where}: {unknown[0]!r} is unknown; expected {', '.join(sorted(_KEYS))}")
    texts = {name: entry.get(name, "") for name in ("id", "hash", "tenant", "note")}
    for name, pattern in (("id", _ID), ("hash", _HASH), ("tenant", _TENANT)):
        if not isinstance(texts[name], str) or not pattern.fullmatch(texts[name]) or name not in entry:
            raise TokensError(f"{where}: {name} is missing or none; expected {pattern.pattern.rstrip('|')}")
    rights, expires = entry.get("rights"), entry.get("expires")
    if not isinstance(rights, list) or not rights or not all(isinstance(each, str) for each in rights):
        raise TokensError(f"{where}: rights are missing; expected some of {', '.join(sorted(RIGHTS))}")
    if not RIGHTS.issuperset(rights):
        raise TokensError(f"{where}: one of the rights is unknown; expected some of {', '.join(sorted(RIGHTS))}")
    if not isinstance(expires, datetime) or expires.tzinfo is None:
        raise TokensError(f"{where}: expires is missing or none; expected a time with its zone, as {_text_of(0)}")
    return Token(
        texts["id"], texts["hash"], texts["tenant"], frozenset(rights), expires.timestamp(), str(texts["note"])
    )


def _certificate(entry: Any, where: str) -> Token:
    if not isinstance(entry, dict):
        raise TokensError(f"{where} is no table; expected [[certificate]]")
    if unknown := sorted(entry.keys() - _CERTIFICATE_KEYS):
        raise TokensError(f"{where}: {unknown[0]!r} is unknown; expected {', '.join(sorted(_CERTIFICATE_KEYS))}")
    names = [name for name in ("uri", "name") if name in entry]
    if len(names) != 1 or not isinstance(entry[names[0]], str) or not 0 < len(entry[names[0]]) <= _MOST_NAME:
        raise TokensError(f"{where}: expected uri, one of its alternative names, or name, its subject's common name")
    key = by_uri(entry["uri"]) if "uri" in entry else by_name(entry["name"])
    told = {"expires": _NEVER, **{name: value for name, value in entry.items() if name not in names}}
    return replace(_token({**told, "hash": "0" * 64}, where), hash=key)


def _limits(said: Any, usual: TenantLimits, where: str) -> TenantLimits:
    known = {each.name: getattr(usual, each.name) for each in fields(TenantLimits)}
    if not isinstance(said, dict):
        raise TokensError(f"{where} is no table of limits")
    for name, value in said.items():
        if name not in known:
            raise TokensError(f"{where}: {name!r} is unknown; expected {', '.join(known)}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise TokensError(f"{where}: {name} is none; expected a whole number, 0 or more")
        known[name] = value
    return TenantLimits(**known)


def new(path: Path, tenant: str, rights: frozenset[str], expires: float, note: str = "") -> tuple[str, Token]:
    """Adds a fresh token to a file, which is made where there is none; the token itself, which is nowhere else.

    Raises:
        TokensError: The file cannot be read or written, or something is none.
    """
    secret = f"ss_{secrets.token_urlsafe(32)}"
    token = Token(secrets.token_hex(4), hash_of(secret), tenant, rights, expires, note)
    block = (
        f'[[token]]\nid = "{token.id}"\nhash = "{token.hash}"\ntenant = {_quoted(tenant)}\n'
        f"rights = [{', '.join(_quoted(each) for each in sorted(rights))}]\nexpires = {_text_of(expires)}\n"
        + (f"note = {_quoted(note)}\n" if note else "")
    )
    with _locked(path):
        before = read(path) if path.exists() else b""
        known = parse(before, str(path))
        data = before + (b"\n" if before else b"") + (b"" if not before or before.endswith(b"\n") else b"\n")
        data += block.encode()
        made = parse(data, str(path))
        if len(made.tokens) != len(known.tokens) + 1:
            raise TokensError(f"{path}: the token could not be added")
        _write(path, data)
    return secret, made.tokens[token.hash]


def revoke(path: Path, id: str) -> Token:
    """Takes a token out of a file; what else is in it stays as it is.

    Raises:
        TokensError: There is no such token, or the file cannot be read, cut or written.
    """
    with _locked(path):
        before = read(path)
        known = parse(before, str(path))
        gone = next((each for each in known.tokens.values() if each.id == id), None)
        if gone is None:
            raise TokensError(f"{path} has no token called {id[:64]!r}; `statestream token ls` lists them")
        kept, block = list[str](), list[str]()
        named = _quoted(gone.hash.partition(":")[2]) if gone.is_certificate else gone.hash
        for line in [*before.decode().splitlines(keepends=True), "["]:
            if line.lstrip().startswith("["):
                if named not in "".join(block):
                    kept += block
                block = []
            block.append(line)
        data = "".join(kept).encode()
        left = parse(data, str(path))
        if left != Tokens(
            {key: each for key, each in known.tokens.items() if each != gone}, known.limits, known.tenants
        ):
            raise TokensError(
                f"{path}: {gone} is not written as [[token]] or [[certificate]] with its lines; take it out by hand"
            )
        _write(path, data)
    return gone


def _quoted(text: str) -> str:
    """A text as TOML writes it."""
    marks = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(marks.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in text) + '"'


def _text_of(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps others from writing the file meanwhile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise TokensError(f"{path} cannot be written: {error.strerror or error}") from error


def _write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, for its owner alone, or for whom the one before it was."""
    import tempfile

    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as fresh:
        try:
            fresh.write(data)
            fresh.flush()
            os.fsync(fresh.fileno())
            if path.exists():
                known = path.stat()
                os.fchmod(fresh.fileno(), known.st_mode & 0o777)
                with contextlib.suppress(PermissionError):
                    os.fchown(fresh.fileno(), known.st_uid, known.st_gid)
            os.replace(fresh.name, path)
        except BaseException:
            os.unlink(fresh.name)
            raise
