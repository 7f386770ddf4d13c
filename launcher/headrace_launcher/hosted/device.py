"""GPU memory in and out of Triton's tensors (DLPack), and the CUDA driver behind it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .engine import DeviceArray

# dlpack.h of dmlc/dlpack, version 0: the one that Triton's stub knows.
_CUDA = 2
_NAME = b"dltensor"
_CODES = {(0, 32): "int32", (2, 16): "float16", (2, 32): "float32"}
_KINDS = {np.dtype(name): kind for kind, name in _CODES.items()}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


_API = ctypes.PyDLL(None)  # our own: others set other types on ctypes.pythonapi
_API.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_API.PyCapsule_GetPointer.restype = ctypes.c_void_p
_API.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_API.PyCapsule_New.restype = ctypes.py_object
_KEEP = _Deleter(lambda _: None)  # what is handed out stays its owner's


def imported(tensor: Any) -> DeviceArray:
    """Returns where a tensor in a GPU's memory lies.

    Args:
        tensor: has ``__dlpack__``; must outlive what is done with the result.
    """
    capsule = tensor.__dlpack__()
    address = _API.PyCapsule_GetPointer(capsule, _NAME)
    found = ctypes.cast(address, ctypes.POINTER(_Managed)).contents.tensor
    return DeviceArray(
        address=found.data + found.byte_offset,
        shape=tuple(found.shape[: found.ndim]),
        dtype=np.dtype(_CODES[found.code, found.bits]),
        device=found.device_id,
    )


class Exported:
    """Shows an array in a GPU's memory to whoever reads DLPack; it must outlive its readers.

    What is to be read must have been computed: streams are not told of each other.
    """

    def __init__(self, array: DeviceArray) -> None:
        self._array = array
        self._shape = (ctypes.c_int64 * len(array.shape))(*array.shape)
        code, bits = _KINDS[array.dtype]
        self._managed = _Managed(
            tensor=_Tensor(
                data=array.address,
                device_type=_CUDA,
                device_id=array.device,
                ndim=len(array.shape),
                code=code,
                bits=bits,
                lanes=1,
                shape=self._shape,
            ),
            deleter=_KEEP,
        )

    def __dlpack__(self, *, stream: Any = None) -> Any:
        del stream
        return _API.PyCapsule_New(ctypes.addressof(self._managed), _NAME, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self._array.device


class Driver:
    """The CUDA driver, for one GPU; its errors are :class:`RuntimeError`.

    Args:
        device: number of the GPU in this process.
    """

    def __init__(self, device: int) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self.device = device
        self.call("cuInit", 0)
        self._context = self.call("cuDevicePrimaryCtxRetain", device)

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a function of the driver and returns its one result, or None."""
        error, *results = getattr(self._driver, name)(*arguments)
        if int(error) != 0:
            said = self._driver.cuGetErrorString(error)[1]
            raise RuntimeError(f"CUDA failed: {name}: {said!r}")
        return results[0] if results else None

    def enter(self) -> None:
        """Makes the GPU this thread's; every thread must, once."""
        self.call("cuCtxSetCurrent", self._context)

    def close(self) -> None:
        """Gives the GPU back."""
        self.call("cuDevicePrimaryCtxRelease", self.device)
