"""Loading: a version is tried in a process of its own, then built here by what was found, now or at another start."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from statestream.contract import signature as signatures
from statestream_server.models.files import couples, files, modelfile, prints
from statestream_server.models.files.modelfile import ModelFile
from statestream_server.models.files.prints import Print, Trust
from statestream_server.models.files.repository import DECODER, ENCODER, file_of, pair, settling
from statestream_server.models.graphs.runtime import Device, providers_for
from statestream_server.models.model import BatchPolicy, Model, ModelLoadError
from statestream_server.models.proof import building, made, trials
from statestream_server.models.proof.kept import Kept
from statestream_server.models.proof.verdict import TrialLimits, Verdict

if TYPE_CHECKING:
    import onnx

    from statestream_server.models.form.told import Told

_log = logging.getLogger(__name__)
DEFAULT_LIMITS: Final = TrialLimits()


def load(
    name: str,
    version: int,
    folder: Path,
    *,
    device: Device | str = "auto",
    batch_policy: BatchPolicy = BatchPolicy.PAD,
    limits: TrialLimits = DEFAULT_LIMITS,
) -> Model:
    """Loads one version: tries it in a process of its own, then builds it here. Takes the time of a few runs.

    Args:
        name: The model's name.
        version: Its version.
        folder: The folder with its files.
        device: What it runs on, or "auto", "cpu", "cuda" or "cuda:<number>".
        batch_policy: What is done where it answers in other bits alone than in a batch.
        limits: What the trial may take.

    Raises:
        ModelLoadError: It cannot be served: the file, the reason, what to do.
    """
    path = file_of(folder)
    return load_file(path, name=name, version=version, device=device, batch_policy=batch_policy, limits=limits)


def load_file(
    path: Path,
    *,
    name: str,
    version: int,
    size: str = "",
    device: Device | str = "auto",
    batch_policy: BatchPolicy = BatchPolicy.PAD,
    limits: TrialLimits = DEFAULT_LIMITS,
    kept: Kept | None = None,
    trust: Trust | None = None,
) -> Model:
    """Loads one file, whatever its folder; an encoder.onnx or decoder.onnx brings the other one. See `load`.

    Args:
        path: The file.
        name: The model's name.
        version: Its version.
        size: Which of the sizes in its model.toml; "" where that has none.
        device: What it runs on, or "auto", "cpu", "cuda" or "cuda:<number>".
        batch_policy: What is done where it answers in other bits alone than in a batch.
        limits: What the trial may take.
        kept: Verdicts of earlier trials; None to try it whatever was found before.
        trust: The list of what may be loaded; None where anything may.

    Raises:
        ModelLoadError: It cannot be served: the file, the reason, what to do.
    """
    with building.refusing(path):
        place = providers_for(device) if isinstance(device, str) else device
        for part in pair(path) or modelfile.parts(path):
            modelfile.check_size(part)
        known = [prints.take(one) for one in prints.named(path)]
        if trust is not None:
            _check_trusted(known, trust)
        found = kept.find(known, size, place, batch_policy) if kept is not None else None
        verdict, graphs = found or (None, None)
        model = None
        if verdict is not None:
            with contextlib.suppress(ModelLoadError):  # Then it is tried, and that says why.
                if graphs is not None:
                    model = made.built(path, graphs, verdict, name=name, version=version, device=place)
                else:
                    model = building.build(path, verdict, name=name, version=version, device=place, policy=batch_policy)
        if verdict is None or model is None:
            found, verdict = None, _tried(path, place, batch_policy, limits, _of_size(path, size) if size else None)
            model = building.build(path, verdict, name=name, version=version, device=place, policy=batch_policy)
        for level, text in verdict.said:
            _log.log(level, "%s", text)
        own = {one.path for one in known}
        weights = [prints.take(path) for path in model.files if path not in own]
        for one in known:
            one.stamp.check()  # What was read is what was looked at.
        if kept is not None and found is None:
            kept.keep(known, size, weights, place, batch_policy, verdict, made.make(path, verdict, place))
        model.prints = (*known, *weights)
        return model


def signed(path: Path, said: Told, *, device: str = "auto", limits: TrialLimits = DEFAULT_LIMITS) -> onnx.ModelProto:
    """A file in its normal form, with its signature in it and all weights: whoever reads it needs nothing beside it.

    Args:
        path: A file without a signature.
        said: What is told of it, in place of its model.toml.
        device: What it is tried on.
        limits: What the trial may take.

    Raises:
        ModelLoadError: It cannot be served so, has a signature already, or is too large for one file.
    """
    from statestream_server.models.form import entries

    with building.refusing(path):
        place = providers_for(device)
        file = modelfile.read(path, entries.dumps(said))
        if file.described:
            raise ModelLoadError(f"{path}: has a signature already; export it again to change it")
        verdict = _tried(path, place, BatchPolicy.PAD, limits, entries.dumps(said))
        return _with_signature(file, verdict.plan)


def signed_couple(
    path: Path, said: Told, *, device: str = "auto", limits: TrialLimits = DEFAULT_LIMITS
) -> dict[str, onnx.ModelProto]:
    """An encoder and a decoder in their normal forms, by the names under which they need nothing beside them.

    Args:
        path: One of both, without a signature.
        said: What is told of them, in place of their model.toml.
        device: What they are tried on.
        limits: What the trial may take.

    Raises:
        ModelLoadError: They cannot be served so, have signatures already, or are too large for one file each.
    """
    from statestream_server.models.form import entries

    with building.refusing(path):
        place = providers_for(device)
        encoder, decoder = couples.read(path, entries.dumps(said))
        if encoder is None or decoder.described:
            raise ModelLoadError(f"{path}: has a signature already; export it again to change it")
        verdict = _tried(path, place, BatchPolicy.PAD, limits, entries.dumps(said))
        return {
            ENCODER: _with_signature(encoder, verdict.encoder_plan),
            DECODER: _with_signature(decoder, verdict.plan),
        }


def _with_signature(file: ModelFile, plan: Mapping[str, Any] | None) -> onnx.ModelProto:
    import onnx

    from statestream_server.models.form.plan import Plan

    assert plan is not None
    formed, made = file.formed(Plan.of_values(plan)), onnx.ModelProto()
    made.CopyFrom(formed.whole())
    made.metadata_props.add(key=signatures.METADATA_KEY, value=signatures.dumps(formed.signature))
    return made


def _of_size(path: Path, size: str) -> str:
    """The text of a model.toml that tells one size only."""
    from statestream_server.models.form import entries
    from statestream_server.models.form.told import ToldError

    beside = settling(path)
    try:
        text = files.told(beside)
        return entries.dumps(entries.loads(text[0] if text is not None else "").by_size()[size])
    except (ModelLoadError, ToldError, KeyError) as error:
        raise ModelLoadError(f"{beside}: changed while it was read, or tells no size {size} ({error})") from error


def _check_trusted(known: list[Print], trust: Trust) -> None:
    """Checks all files of a version; those with weights are named by one that is trusted itself."""
    trust.check(known)
    chain = known[0].path.suffix == ".toml"
    for one in known[:1] if chain else known:
        if chain or one.path.suffix == ".onnx":
            trust.check(prints.take(stamp.path) for stamp in modelfile.read(one.path).weights)


def _tried(path: Path, device: Device, policy: BatchPolicy, limits: TrialLimits, said: str | None = None) -> Verdict:
    if sys.platform == "win32":
        from statestream_server.models.proof import making

        return making.prove(path, device, policy, said=said)
    return trials.shared()(
        path, device=device.name, threads=device.threads, apart=device.apart, policy=policy, limits=limits, said=said
    )
