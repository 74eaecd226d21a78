"""What servers read of files: whatever lies there is read, or refused by the one error that says so."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from statestream import errors
from statestream import signature as signatures
from statestream_server.access import tokens
from statestream_server.effective import config
from statestream_server.models.files import aliases
from statestream_server.models.form import entries
from statestream_server.models.form.told import ToldError
from statestream_server.sessions import records
from statestream_server.sessions.admin import snapshots
from tests.fuzz import drawn
from tests.server import test_records, test_snapshots
from tests.support import models

SIGNATURES: Final = tuple(
    entry.value
    for made in (models.lstm(), models.counter(), models.tokens(), models.scores(), models.loop())
    for entry in made.metadata_props
)
MODEL_TOML: Final = (
    '[states]\n"h" = "h_out"\n[axes]\n"x" = ["batch", "time"]\n[dtypes]\n"x" = "float32"\n[fill]\nx = "last"\n',
    'stateless = true\nchain = ["a.onnx", "b.onnx"]\nahead = ["y"]\n[sizes]\nx = [1, 3]\n[window]\nx = 5\n',
    '[context]\nx = 3\n[elapsed]\nx = "s"\n[wires]\n"a.y" = "b.x"\n[feedback]\nx = "y"\n[horizon]\ny = 1\n',
)
TOKENS: Final = (
    f'[[token]]\nid = "a"\nhash = "{hashlib.sha256(b"x").hexdigest()}"\ntenant = "acme"\nrights = ["step"]\n'
    "expires = 2099-01-01T00:00:00Z\n",
    '[[certificate]]\nid = "b"\nuri = "spiffe://a/b"\ntenant = "acme"\nrights = ["admin"]\n'
    "expires = 2099-01-01T00:00:00Z\n",
    '[[certificate]]\nid = "c"\nname = "me"\ntenant = "c"\nrights = ["step", "admin"]\n',
    "[limits]\nsessions = 10\nstreams = 1\ncalls = 5\nbytes = 100\nforecasts = 1\ntexts = 0\n"
    "[tenant.acme]\nsessions = 3\n",
)
ALIASES: Final = ("stable = 1\ncanary = 2\n", '"a.b" = 3\n# why\nold = 9223372036854775807\n')
SETTINGS: Final = (
    'host = "127.0.0.1"\nport = 8001\nhttp-port = 0\nstore = "memory"\ndurability = "interval"\nedge = "h2"\n',
    'max-sessions = 5\nmax_connections = 10\nworkers = 2\nhttp = false\ntracing = "off"\nlog-level = "info"\n',
)

_texts = st.text(max_size=30) | st.binary(max_size=60).map(lambda data: data.decode(errors="replace"))


@given(st.sampled_from(SIGNATURES).map(str.encode).flatmap(drawn.damaged) | st.binary(max_size=60))
def signatures_are_read(data: bytes) -> None:
    with contextlib.suppress(signatures.SignatureError):
        signatures.loads(data.decode(errors="replace"))


@given(drawn.lines(MODEL_TOML) | _texts)
def model_tomls_are_read(text: str) -> None:
    with contextlib.suppress(ToldError):
        entries.dumps(entries.loads(text))


@given(drawn.lines(TOKENS) | _texts)
def tokens_and_certificates_are_read(text: str) -> None:
    with contextlib.suppress(tokens.TokensError):
        tokens.parse(text.encode(errors="surrogatepass"), "tokens.toml")


@given(drawn.lines(ALIASES) | _texts, st.sampled_from(["stable", "new", "a.b", ""]), st.none() | st.integers(-1, 3))
def aliases_are_read_and_edited(text: str, alias: str, version: int | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "aliases.toml")
        path.write_bytes(text.encode(errors="surrogatepass"))
        try:
            before = aliases.read(path)
        except aliases.AliasesError:
            return
        if not alias or (version is not None and version < 1):
            return
        with contextlib.suppress(aliases.AliasesError):
            aliases.edit([Path(name)], alias, version)
            found = aliases.read(path)
            assert found.get(alias) == version
            assert {key: value for key, value in found.items() if key != alias} == {
                key: value for key, value in before.items() if key != alias
            }


@given(drawn.lines(SETTINGS) | _texts)
def settings_are_read(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "server.toml")
        path.write_bytes(text.encode(errors="surrogatepass"))
        ran = CliRunner().invoke(config, ["--config", str(path), "--json"])
        assert ran.exit_code in (0, 1, 2), ran.output
        assert ran.exception is None or isinstance(ran.exception, SystemExit), repr(ran.exception)


@given(st.integers(0, 9), st.data())
def records_are_read(seed: int, data: st.DataObject) -> None:
    whole = test_records.world(seed, [[1, 2], [3]]).encode()[seed % 2]
    blob = data.draw(drawn.damaged(whole))
    try:
        found = records.decode(test_records.LAYOUT, blob, what="it")
    except (errors.StateLost, errors.ModelChanged):
        return
    assert blob == whole, "a damaged record was taken"
    assert found.values


@given(st.integers(0, 9), st.data())
def snapshots_are_read(seed: int, data: st.DataObject) -> None:
    whole = test_snapshots.made(seed)
    blob = data.draw(drawn.damaged(snapshots.dumps(whole, test_snapshots.COLUMNS)))
    for read in (
        lambda: snapshots.read_metadata(blob),
        lambda: snapshots.loads(blob, test_snapshots.COLUMNS, test_snapshots.DIGEST),
    ):
        with contextlib.suppress(errors.SnapshotInvalid, errors.ModelChanged):
            read()
    del whole


TARGETS: Final[dict[str, Callable[[], Any]]] = {
    "signatures": signatures_are_read,
    "model.toml": model_tomls_are_read,
    "tokens, certificates": tokens_and_certificates_are_read,
    "aliases.toml": aliases_are_read_and_edited,
    "settings": settings_are_read,
    "records": records_are_read,
    "snapshots": snapshots_are_read,
}
