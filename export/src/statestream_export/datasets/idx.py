"""The IDX format of MNIST: a header of big-endian numbers, then bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from statestream_export.errors import DataError

_BYTES = 0x08
_GZIP = b"\x1f\x8b"


def read(path: Path, axes: int) -> np.ndarray:
    """Reads a file of unsigned bytes, packed by gzip or not.

    Args:
        path: The file.
        axes: How many axes it must have: 3 for images [N, height, width], 1 for labels [N].

    Returns:
        The values, uint8.

    Raises:
        DataError: It is not such a file, or truncated, or has more than its header says.
    """
    data = path.read_bytes()
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path} is truncated or damaged ({error}); fetch it again") from error
    start = 4 + 4 * axes
    if data[:3] != bytes([0, 0, _BYTES]):
        raise DataError(
            f"{path} is no IDX file of bytes: it starts with {data[:4].hex(' ') or 'nothing'}; expected 00 00 08"
            f" {axes:02x}. Is it a web page that was saved under this name?"
        )
    if len(data) > 3 and data[3] != axes:
        raise DataError(f"{path} has {data[3]} axes; expected {axes}. Images have 3 and labels 1: were they exchanged?")
    if len(data) < start:
        raise DataError(f"{path} is truncated: it ends inside its header of {start} bytes; fetch it again")
    shape = struct.unpack_from(f">{axes}I", data, 4)
    size = math.prod(shape)
    if len(data) - start != size:
        raise DataError(
            f"{path} is {'truncated' if len(data) - start < size else 'too long'}: its header says {list(shape)}, so"
            f" {size} bytes, and there are {len(data) - start}; fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
