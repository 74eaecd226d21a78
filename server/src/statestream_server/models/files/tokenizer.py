"""The tokenizer.json beside a model: what the tokenizers library saved, which says how text and tokens relate."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final, NamedTuple

from statestream_server.models.files import files
from statestream_server.models.model import ModelLoadError
from statestream_server.models.words import Tokenized

NAME: Final = "tokenizer.json"
_MOST_BYTES: Final = 64 << 20


class Read(NamedTuple):
    """A tokenizer, its file, and the SHA-256 of that."""

    words: Tokenized
    path: Path
    digest: str


def beside(path: Path) -> Read | None:
    """The tokenizer beside a model's file; None where there is none.

    Raises:
        ModelLoadError: It cannot be read, is none, or the library is not installed.
    """
    path = path.with_name(NAME)
    if not os.path.lexists(path):
        return None
    size = files.stamp(path).size
    if size > _MOST_BYTES:
        raise ModelLoadError(f"{path}: {size} bytes; expected {_MOST_BYTES} at most")
    content = b"".join(files.blocks(path))
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ModelLoadError(
            f"{path}: the tokenizers library is not installed: pip install 'statestream-server[text]', or take the file"
            " away to serve tokens alone"
        ) from error
    try:
        made = Tokenizer.from_str(content.decode())
        # Neither is of the model: a text that is too long is refused, and every source has its own length.
        made.no_truncation()
        made.no_padding()
    except Exception as error:  # The library raises nothing narrower.
        said = " ".join(str(error).split())
        raise ModelLoadError(f"{path}: is no tokenizer that the library reads ({said}); save it again") from error
    return Read(Tokenized(made), path, hashlib.sha256(content).hexdigest())
