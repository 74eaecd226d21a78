"""Making: what a trial finds of a file, in a process of its own, becomes its verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import onnx

from statestream.contract import signature as signatures
from statestream.v1.model_pb2 import BatchInvariance
from statestream_server.arrays import Array
from statestream_server.models.files import couples, generation, repository
from statestream_server.models.files.modelfile import ModelFile
from statestream_server.models.form import entries, told
from statestream_server.models.form.couple import GrowingError, coupled
from statestream_server.models.form.draft import drafted
from statestream_server.models.form.pairs import UnsettledError
from statestream_server.models.form.plan import Plan, counted
from statestream_server.models.form.surgery import Change
from statestream_server.models.graphs import guards, operators
from statestream_server.models.graphs.refused import FusionError
from statestream_server.models.graphs.runtime import Device, Graph, GraphError
from statestream_server.models.memory.policies import PaddedRows
from statestream_server.models.model import BatchPolicy, ModelLoadError
from statestream_server.models.proof import (
    batches,
    comparing,
    coupling,
    forming,
    hiding,
    proof,
    sharing,
    warming,
    wiring,
)
from statestream_server.models.proof.building import WAYS, graph_of, in_batches, refusing, rows_of, unfolded_model
from statestream_server.models.proof.draws import Draws
from statestream_server.models.proof.sharing import Sharing
from statestream_server.models.proof.verdict import ROWS, Verdict, watch
from statestream_server.models.rows import EVERYTHING, Rows, columns_of, is_batched

_log = logging.getLogger(__name__)
_TIMES: Final = 6
"""How much more of a file's time a pair takes that is run as its files lie there, too."""


def prove(path: Path, device: Device, policy: BatchPolicy = BatchPolicy.PAD, *, said: str | None = None) -> Verdict:
    """Loads and tries a version in this process, which it may end; see trials.py.

    Args:
        path: Its file; of an encoder-decoder either one.
        device: What it runs on.
        policy: What is done where it answers in other bits alone than in a batch.
        said: What is told of the file in place of its model.toml; None for that.

    Raises:
        ModelLoadError: It cannot be served: the file, the reason, what to do.
    """
    with refusing(path):
        watch.doing("reading it")
        watch.sized(couples.size(path), 0)
        encoder, file = couples.read(path, said)
        couples.check_kind(encoder, file)
        both = [file] if encoder is None else [encoder, file]
        nbytes = sum(one.nbytes for one in both)
        _sized(nbytes, file, apart=encoder is not None and not file.described)
        refused, first = list[str](), None
        forms = _couples(encoder, file, device, refused) if encoder is not None else _forms(file, device, refused)
        for reader, form in forms:
            try:
                couples.check_kind(reader, form)
                verdict = _prove_form(reader, form, nbytes, device, policy)
            except ModelLoadError as error:
                first = first or error
                refused.append(str(error).removeprefix(f"{path}: "))
                continue
            for one in both:
                one.check_unchanged()
            return verdict
        assert first is not None
        raise first


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """A file as it is tried; see `batches.Source`."""

    file: ModelFile
    device: Device

    def graph(self, changes: Sequence[Change]) -> Graph:
        return graph_of(self._formed(changes), self.device)

    def model(self, changes: Sequence[Change]) -> onnx.ModelProto:
        return self._formed(changes).whole()

    def load(self, model: onnx.ModelProto) -> Graph:
        return Graph(guards.guarded(model).SerializeToString(), self.device)

    def _formed(self, changes: Sequence[Change]) -> ModelFile:
        return self.file.formed(Plan(self.file.signature, changes))


def _forms(file: ModelFile, device: Device, refused: list[str]) -> Iterator[tuple[None, ModelFile]]:
    """A file as it is proved: as its signature says, or in the forms that it may have, those that allow most first.

    There is no encoder before it.
    """
    beside, found = file.path.with_suffix(".toml").name, 0
    if file.described:
        if file.path.with_name(beside).exists():
            _log.warning("%s: its %s is not read, it has a signature of its own", file.path, beside)
        yield None, file
        return
    try:
        said = entries.loads(file.told[0]) if file.told else told.Told()
        if said.chain and file.chain is None:
            raise told.ToldError(
                f"it names a chain, and {file.path.name} beside it is a model; a folder holds one of both"
            )
        if said.by_size():
            raise told.ToldError(f"sizes has {', '.join(said.by_size())}; tell the shapes of one of them")
        draft = drafted(file.proto, said, file.chain)
        draft = dataclasses.replace(draft, notes=[*draft.notes, *file.made])
        if not draft.states:
            yield None, file.formed(forming.plain(draft, said))
            return
        watch.doing("looking for its axes")
        for plan in forming.plans(draft, said, _Source(file, device), refused):
            found += 1
            yield None, file.formed(plan)
    except told.ToldError as error:
        raise ModelLoadError(f"{file.path.with_suffix('.toml')}: {error}") from error
    except UnsettledError as error:
        if refused and found:
            return  # What was found against its forms says more.
        where = "it" if file.chain is not None else f"{beside} beside it"
        raise ModelLoadError(f"{file.path}: {error}; say in {where}: {' or '.join(error.lines)}") from error


def _couples(
    encoder: ModelFile, file: ModelFile, device: Device, refused: list[str]
) -> Iterator[tuple[ModelFile, ModelFile]]:
    """An encoder and a decoder as they are proved: as their signatures say, or in the forms that they may have."""
    if file.described:
        yield encoder, file
        return
    where, found = repository.settling(file.path), False
    try:
        said = entries.loads(file.told[0]) if file.told else told.Told()
        if said.chain:
            raise told.ToldError(
                f"it names a chain, and {encoder.path.name} with {file.path.name} is an encoder and its decoder; rename"
                " the files of the chain"
            )
        for entry in ("sizes", "window", "context", "columns", "horizon", "feedback", "ahead", "stateless"):
            if getattr(said, entry):
                raise told.ToldError(f"{entry} is not for an encoder and its decoder; serve {file.path.name} alone")
        watch.doing("looking for what the decoder takes of the encoder")
        couple = coupled(encoder.proto, file.proto, said)
        known = generation.bounds(couple, said, generation.read(file.path))
        pair = comparing.Pair(graph_of(encoder, device), graph_of(file, device), couple, known, said)
        made = coupling.Coupling(pair, (encoder, file), couple, known, said)
        pair.decode(pair.drawn(1, 3), [known.start] * 2)  # What grows is seen here, whatever it is called.
        changes = made.changes()
        watch.doing("looking for its axes")
        for first, second in made.forms(_Source(file.formed(Plan(file.signature, changes)), device), changes, refused):
            reader, form = encoder.formed(first), file.formed(second)
            watch.doing("comparing it with its files")
            formed = graph_of(reader, device), graph_of(form, device)
            if why := pair.compare(*formed, first.signature, second.signature):
                raise ModelLoadError(f"{file.path}: {why}")
            found = True
            yield reader, form
    except GrowingError as error:
        raise ModelLoadError(f"{file.path}: {error}") from error
    except told.ToldError as error:
        raise ModelLoadError(f"{where if file.told else file.path}: {error}") from error
    except UnsettledError as error:
        if refused and found:
            return  # What was found against its forms says more.
        lines = " or ".join(error.lines)
        raise ModelLoadError(f"{file.path}: {error}; say in {where.name} beside it: {lines}") from error


def _sized(nbytes: int, file: ModelFile, *, apart: bool) -> None:
    """Tells how large a version is; `apart`: it is run as its files lie there, too, which takes time and no memory."""
    row = sum(column.nbytes for column in columns_of(file.signature))
    watch.sized(nbytes, row + apart * _TIMES * nbytes // ROWS)


def _prove_form(
    encoder: ModelFile | None, file: ModelFile, nbytes: int, device: Device, policy: BatchPolicy
) -> Verdict:
    """Proves a file as its signature says that it is."""
    _sized(nbytes, file, apart=encoder is not None and file.plan is not None)
    if not file.signature.states:
        file, found, way = _prove_calls(file, device, policy)
        told = None if file.plan is None else file.plan.values()
        return Verdict(couples.digest(encoder, file), plan=told, shared=tuple(found), batch_invariance=found.finding,
                       invariance_note=found.note, draws=way.kind)  # fmt: skip
    verdict = Verdict(couples.digest(encoder, file), plan=None if file.plan is None else file.plan.values())
    starts = dict[str, Array]()
    if encoder is not None:
        found, way = _prove_calls(encoder, device, policy)[1:]
        starts = comparing.contexts(graph_of(encoder, device), encoder.signature, file.signature, way)
        plan = None if encoder.plan is None else encoder.plan.values()
        verdict = dataclasses.replace(verdict, encoder_shared=tuple(found), encoder_plan=plan)
    file = dataclasses.replace(file, signature=counted(file.signature, full=True))
    graph = graph_of(file, device)
    watch.doing("running it as its author wrote it")
    return wiring.proved(
        graph,
        file.signature,
        str(file.path),
        lambda way: _prove_rows(verdict, file, graph, device, policy, way),
        starts,
    )


def _prove_calls(file: ModelFile, device: Device, policy: BatchPolicy) -> tuple[ModelFile, Sharing, Draws]:
    """A file without memory, what was found of its graph, and how its inputs are drawn.

    A graph that says itself what it is may say lengths of its author's example where they are free.
    """
    graph, where = graph_of(file, device), str(file.path)
    watch.doing("running it as its author wrote it")
    freed = list[str]()
    while True:
        try:
            way = wiring.proved(graph, file.signature, where, lambda way: way)
            break
        except wiring.ShapeError as error:
            if file.plan is None or freed.count(error.name) > 1:
                raise
            file = file.formed(file.plan.freed(error.name, error.rank, rows=error.name not in freed))
            freed.append(error.name)
    if not is_batched(file.signature):
        wiring.first_runs(graph, way)
    watch.doing("running batches of calls")
    found = sharing.shared(graph, way, policy, where)[1]
    if found.rows > 1 and all(spec.HasField("batch_axis") for spec in file.signature.inputs):
        source = _Source(file, device)
        why = batches.across_calls(file.signature, file.whole, source.load)
        found = found.apart(why) if why else found
    return file, found, way


def _prove_rows(
    verdict: Verdict, file: ModelFile, graph: Graph, device: Device, policy: BatchPolicy, way: Draws
) -> Verdict:
    where = str(file.path)
    for spec in (*file.signature.inputs, *file.signature.outputs):
        if min(signatures.step_shape(spec), default=0) < 0:
            raise ModelLoadError(
                f"{where}: {spec.name!r} has steps of shape {list(signatures.step_shape(spec))}; a model with memory"
                " needs steps of one shape, so that sessions can share a batch: export it with fixed lengths"
            )
    watch.doing("looking for what hides NaN")
    verdict = dataclasses.replace(verdict, hides=_hidden(file, device, way), draws=way.kind)
    rows, verdict = _proved(verdict, file, graph, device, way)
    rows = in_batches(rows, file.signature, device)
    watch.doing("running batches of rows")
    found = proof.invariance(rows, PaddedRows(rows), way, where, rounded=_rounded(file))
    if verdict.fused and not device.apart and (wide := unfolded_model(file)) is not None:
        watch.doing("running several steps at once")
        several = dataclasses.replace(verdict, unfolded=True)
        with contextlib.suppress(FusionError, GraphError, ModelLoadError):
            together = rows_of(several, file, None, device)
            same = proof.invariance(
                together, PaddedRows(together), Draws(wide[1], way.kind), where, rounded=_rounded(file)
            )
            if same.finding == found.finding:
                rows, found, verdict = together, same, several
    arranged = "plain"
    if found.finding == BatchInvariance.BATCH_INVARIANCE_PADDED and policy == BatchPolicy.PAD:
        arranged = "padded"
    elif policy == BatchPolicy.SERIALISE and found.difference:
        arranged = "serial"
    elif found.difference:
        _log.warning("%s: %s", where, found.note)
    verdict = dataclasses.replace(verdict, policy=arranged, batch_invariance=found.finding, invariance_note=found.note)
    if device.apart:
        watch.doing("warming its device")
        warming.warm(WAYS[arranged](rows), way, where)
    return verdict


def _rounded(file: ModelFile) -> Mapping[str, float]:
    return proof.COARSE if operators.rounds_coarsely(file.proto) else proof.ROUNDED


def _hidden(file: ModelFile, device: Device, way: Draws) -> Mapping[str, str]:
    try:
        return hiding.hidden(file.whole(), way, device)
    except FusionError:  # Too large to be taken apart: then nothing is let through.
        return dict.fromkeys((spec.name for spec in file.signature.inputs), EVERYTHING)


def _proved(verdict: Verdict, file: ModelFile, graph: Graph, device: Device, way: Draws) -> tuple[Rows, Verdict]:
    """Rows that the graph itself gathers and commits, where they lie, if it can; else rows that NumPy does."""
    plain = rows_of(dataclasses.replace(verdict, fused=False), file, graph, device)
    watch.doing("wrapping it with its memory")
    verdict = dataclasses.replace(verdict, fused=True)
    try:
        fused = rows_of(verdict, file, None, device)
        if device.apart and not proof.keeps_others(fused, way):
            text = "%s: %s does not commit rows in place; every step copies all of them there"
            _log.warning(text, file.path, device.name)
            verdict = dataclasses.replace(verdict, in_place=False)
            fused = rows_of(verdict, file, None, device)
    except (FusionError, GraphError, MemoryError) as error:
        _log.warning("%s: rows are copied in and out at every step, the graph cannot do it: %s", file.path, error)
        return plain, dataclasses.replace(verdict, fused=False)
    watch.doing("comparing it wrapped and alone")
    same = proof.agree(fused, plain, way, _rounded(file))
    if not same or (device.apart and not proof.refuses_the_same(fused, plain, way)):
        _log.warning("%s: rows are copied in and out at every step: wrapped, the graph gives other results", file.path)
        return plain, dataclasses.replace(verdict, fused=False)
    return fused, verdict
