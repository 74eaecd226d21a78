"""No table of names: with other names, in another order, a file gives the same answers or a refusal with candidates."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import statestream
from statestream.errors import StatestreamError
from statestream_server.models.form import entries
from statestream_server.models.form.edits import taken
from statestream_server.models.form.told import Told
from tests.server.models.form_zoo import Case
from tests.server.models.form_zoo_chains import Chain
from tests.server.models.test_form import renamed
from tests.server.models.test_form_served import ZOO, _drawn, _flat, _sent, _wanted
from tests.support import serving

_SESSIONS: Final = 2
_LIKE: Final = 2e-5
"""Rounding in another batch. Bits are compared in test_form_served.py."""


class Renamed:
    """A server to which files are given under other names."""

    def __init__(self, folder: Path, client: Any) -> None:
        self._folder, self._client, self._numbers = folder, client, itertools.count()
        self.asked = 0

    def check(self, name: str, seed: int) -> None:
        case, served = ZOO[name](), f"m{next(self._numbers)}"
        names = words(case, seed)
        folder = self._folder / served
        folder.mkdir()
        for file, proto in case.files.items():
            onnx.save(shuffled(renamed(proto, names), seed), folder / file)
        said = entries.loads(case.told)
        if error := self._load(folder, retold(said, names)):
            self.asked += 1
            assert re.search("may be memory|may take", error)
            wires = [name for _, name in case.wires] if isinstance(case, Chain) else []
            assert any(names[old.rpartition(".")[2]] in error for old in (*case.states, *wires))
            assert "\n" not in error
            error = self._load(folder, retold(settled(case, said), names))
        assert not error, error
        self._compare(case, served, names)
        self._client.unload_model(served)
        shutil.rmtree(folder)

    def _load(self, folder: Path, said: Told) -> str | None:
        if said != Told():
            (folder / "model.toml").write_text(entries.dumps(said))
        try:
            self._client.load_model(folder.name)
        except StatestreamError as error:
            return str(error)
        return None

    def _compare(self, case: Case, served: str, names: Mapping[str, str]) -> None:
        drawn, back = _drawn(case, _SESSIONS), {new: old for old, new in names.items()}
        (model,) = (each for each in self._client.models() if each.name == served)
        outputs = [spec.name for spec in model.signature.outputs]
        found: list[list[Any]] = [[] for _ in range(_SESSIONS)]
        with self._client.sessions(served, _SESSIONS) as pool:
            for step in range(next(iter(drawn.values())).shape[1]):
                answer = pool.step(_sent({names[key]: value[:, step] for key, value in drawn.items()}))
                values = answer if isinstance(answer, Mapping) else {outputs[0]: answer}
                for row in range(_SESSIONS):
                    found[row].append(_flat({_before(key, back): value[row] for key, value in values.items()}))
        for row in range(_SESSIONS):
            wanted = _wanted(case, drawn, row)
            rounded = 2e-3 if wanted.dtype == np.float16 else _LIKE
            np.testing.assert_allclose(np.stack(found[row]), wanted, rtol=rounded, atol=rounded)


def settled(case: Case, said: Told) -> Told:
    """What is told, and all memory and wires too."""
    if not isinstance(case, Chain):
        return dataclasses.replace(said, states=said.states or dict(case.states))

    def full(place: tuple[str, str]) -> str:
        return f"{place[0].removesuffix('.onnx')}.{place[1]}"

    states = {full(old): full((old[0], new)) for old, new in case.kept.items()}
    return dataclasses.replace(said, states=states, wires={full(one): full(two) for one, two in case.wires.items()})


def words(case: Case, seed: int) -> dict[str, str]:
    """A word for each name, of which none says anything of another; a name of several files is one word in all."""
    draw, found = random.Random(seed), set[str]()
    names = sorted({name for proto in case.files.values() for name in taken(proto.graph)} - {""})
    while len(found) < len(names):
        found.add("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(6, 10))))
    return dict(zip(names, draw.sample(sorted(found), len(names)), strict=True))


def shuffled(proto: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same graph, its inputs and outputs in another order."""
    for values in (proto.graph.input, proto.graph.output):
        order = list(values)
        random.Random(seed).shuffle(order)
        del values[:]
        values.extend(order)
    return proto


def retold(said: Told, names: Mapping[str, str]) -> Told:
    """The same is told of the other names; of a chain they may have the file before them."""

    def other(name: str) -> str:
        file, dot, rest = name.rpartition(".")
        return names[name] if name in names else f"{file}{dot}{names[rest]}"

    tables = dict[str, Any]()
    for each in dataclasses.fields(said):
        value = getattr(said, each.name)
        if isinstance(value, Mapping):
            both = each.name in ("states", "wires")
            tables[each.name] = {other(key): other(inner) if both else inner for key, inner in value.items()}
    return dataclasses.replace(said, **tables)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Renamed]:
    folder = tmp_path_factory.mktemp("renamed")
    options = ("--store", "memory", "--no-watch", "--no-proof-cache", "--allow-empty")
    with serving.process(folder, *options) as process, statestream.connect(process.address) as client:
        yield Renamed(folder, client)


@settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from([*ZOO]), seed=st.integers(0, 1 << 20))
def test_other_names_give_the_same_answers_or_a_question(server: Renamed, name: str, seed: int) -> None:
    server.check(name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_so_they_do_for_every_file(server: Renamed, name: str) -> None:
    for seed in range(4):
        server.check(name, seed)


def _before(name: str, back: Mapping[str, str]) -> str:
    """The name that an output had before; one that is an input, too, is served as NAME_out."""
    return back.get(name) or back.get(name.removesuffix("_out")) or name
