"""NVIDIA's driver and libraries, asked without ONNX Runtime: which GPUs there are, and what results depend on."""

from __future__ import annotations

import ctypes
import sys
from typing import NamedTuple

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NO_DEVICE = 100
"""The driver's number for "no GPU that this process may see"."""
_MAJOR, _MINOR = 75, 76
"""The driver's numbers of the attributes that make up the compute capability."""
_LIBRARIES = (
    ("cuDNN", "cudnnGetVersion", ("libcudnn.so.9",)),
    ("cuBLAS", "cublasLtGetVersion", ("libcublasLt.so.13", "libcublasLt.so.12")),
)


class DriverError(RuntimeError):
    """The driver shows no GPU; the message says why."""


class Gpu(NamedTuple):
    """One GPU: its name, and its compute capability as (major, minor)."""

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} ({self.capability[0]}.{self.capability[1]})"


def has_driver() -> bool:
    """Whether NVIDIA's driver is installed, as where there is a GPU of theirs."""
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return False
    return True


def gpus() -> list[Gpu]:
    """The GPUs that this process may use, in CUDA's order; `CUDA_VISIBLE_DEVICES` counts.

    Raises:
        DriverError: There is no driver, or it has no GPU for this process.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise DriverError(f"there is no NVIDIA driver here ({_DRIVER} is missing)") from error
    code = driver.cuInit(0)
    if code == _NO_DEVICE:
        raise DriverError("the NVIDIA driver shows this process no GPU (is CUDA_VISIBLE_DEVICES set?)")
    if code:
        raise DriverError(f"the NVIDIA driver does not start (cuInit gave {code}); does nvidia-smi work?")
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        raise DriverError("the NVIDIA driver shows this process no GPU (is CUDA_VISIBLE_DEVICES set?)")
    return [_gpu(driver, number) for number in range(count.value)]


def libraries() -> str:
    """The versions of NVIDIA's libraries that choose how numbers are added up, for instance "cuDNN 91002"."""
    found = []
    for title, function, names in _LIBRARIES:
        for name in names:
            try:
                ask = getattr(ctypes.CDLL(name), function)
            except (OSError, AttributeError):
                continue
            ask.restype = ctypes.c_size_t
            found.append(f"{title} {ask()}")
            break
    return ", ".join(found)


def _gpu(driver: ctypes.CDLL, number: int) -> Gpu:
    device, name, value = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(errors="replace"), (capability[0], capability[1]))
