"""A version's files: one, or an encoder and a decoder that fit each other."""

from __future__ import annotations

import hashlib
from pathlib import Path

from statestream.contract import signature as signatures
from statestream_server.models.files import modelfile
from statestream_server.models.files.modelfile import ModelFile
from statestream_server.models.files.repository import DECODER, ENCODER, pair
from statestream_server.models.model import ModelLoadError


def size(path: Path) -> int:
    """Bytes of the files before they are read; what is too large to be read is refused."""
    parts = pair(path) or modelfile.parts(path)
    return sum(modelfile.check_size(each).size for each in parts)


def read(path: Path, said: str | None = None) -> tuple[ModelFile | None, ModelFile]:
    """The encoder, where there is one, and the file with the memory."""
    both = pair(path)
    if both is None:
        return None, modelfile.read(path, said)
    return modelfile.read(both[0], said), modelfile.read(both[1], said)


def check_kind(encoder: ModelFile | None, file: ModelFile) -> None:
    """Checks that files are what their names say, and that an encoder gives what its decoder starts from.

    Raises:
        ModelLoadError: They are not.
    """
    if encoder is None:
        if file.signature.HasField("decoding"):
            raise ModelLoadError(f"{file.path}: is a decoder; name it {DECODER} and put its {ENCODER} beside it")
        return
    if encoder.described != file.described:
        one, other = (encoder, file) if encoder.described else (file, encoder)
        raise ModelLoadError(f"{one.path}: has a signature, and {other.path.name} has none; export both alike")
    if not file.described and file.plan is None:
        return  # It is formed first.
    if not file.signature.HasField("decoding") or not file.signature.states:
        raise ModelLoadError(f"{file.path}: signature has no states or no decoding; export it as a decoder")
    if encoder.signature.states:
        raise ModelLoadError(f"{encoder.path}: signature has states; an encoder has inputs and outputs only")
    _check_handover(encoder, file)


def digest(encoder: ModelFile | None, file: ModelFile) -> str:
    """The digest of a version: of its file, or of both."""
    if encoder is None:
        return file.digest()
    return hashlib.sha256(f"{encoder.digest()} {file.digest()}".encode()).hexdigest()


def _check_handover(encoder: ModelFile, decoder: ModelFile) -> None:
    """Checks that the encoder gives what the decoder's states start from."""
    outputs = {spec.name: spec for spec in encoder.signature.outputs}
    for state in decoder.signature.states:
        if not state.from_encoder:
            continue
        where = f"{decoder.path}: state {state.input!r} starts from encoder output {state.from_encoder!r}"
        if state.from_encoder not in outputs:
            raise ModelLoadError(f"{where}, which does not exist; the encoder's outputs are {sorted(outputs)}")
        spec = outputs[state.from_encoder]
        given, wanted = (spec.dtype, signatures.step_shape(spec)), (state.dtype, signatures.row_shape(state))
        if given != wanted:
            raise ModelLoadError(
                f"{where}, which is {given[0]}{list(given[1])} a row; expected {wanted[0]}{list(wanted[1])}"
            )
