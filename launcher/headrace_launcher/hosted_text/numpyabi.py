"""Lets a Python backend that was built for NumPy 1 take texts under NumPy 2.

The backend makes an array of each text tensor's bytes when a request comes in. pybind11 before
2.12 reads an element's size where NumPy 1 kept it; under NumPy 2 it finds 0 there, takes that for
the distance between elements, and the array holds the first byte over and over. (All other tensors
go by DLPack, which NumPy's layout does not touch.) NumPy's C functions are found through a table;
here the one that makes an array gets a wrapper that drops distances which are all 0, and the
backend, which asks for the table when it makes its first array, finds ours.

Source: numpy's 2.0 migration guide (PyArray_Descr struct changes); pybind11's changelog (2.12).
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np

_TABLE = "_ARRAY_API"
_NEW_FROM_DESCR = 94  # its place in the table, in NumPy 1 and 2
_PLACES = 300  # pybind11 looks no further
_kept: list[Any] = []  # must outlive all calls


def mend() -> bool:
    """Puts the wrapper in place, before the first array; returns whether it was needed."""
    if int(np.__version__.partition(".")[0]) < 2 or _kept:
        return False
    # Here pybind11 before 2.12 looks; later ones look elsewhere, and are not concerned.
    module = importlib.import_module("numpy.core.multiarray")
    api = ctypes.pythonapi
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    api.PyCapsule_New.restype = ctypes.py_object
    api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    found = getattr(module, _TABLE)
    address = api.PyCapsule_GetPointer(found, None)
    table = (ctypes.c_void_p * _PLACES).from_buffer_copy(
        (ctypes.c_void_p * _PLACES).from_address(address)
    )
    sizes = ctypes.POINTER(ctypes.c_ssize_t)
    kind = ctypes.PYFUNCTYPE(
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int),
        *(sizes, sizes, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p),
    )
    original = kind(table[_NEW_FROM_DESCR] or 0)

    def new_from_descr(*given: Any) -> Any:
        subtype, descr, ndim, shape, strides, data, *rest = given
        if data and strides and ndim and not any(strides[axis] for axis in range(ndim)):
            strides = None  # NumPy finds them out
        return original(subtype, descr, ndim, shape, strides, data, *rest)

    wrapper = kind(new_from_descr)
    table[_NEW_FROM_DESCR] = ctypes.cast(wrapper, ctypes.c_void_p).value
    _kept.extend((table, original, wrapper, found))
    setattr(module, _TABLE, api.PyCapsule_New(ctypes.addressof(table), None, None))
    return True
