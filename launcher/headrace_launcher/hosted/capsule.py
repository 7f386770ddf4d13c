"""Arrays for Triton's stub, by DLPack."""

from __future__ import annotations

import ctypes
from typing import Any

from numpy.typing import NDArray


class Capsule:
    """Hands an array to Triton's stub by DLPack and ends the capsule's life as the protocol asks.

    The stub renames a capsule that it has consumed to a name that NumPy's destructor does not
    know, which fills the log with errors. Keeping the capsule and renaming it to the protocol's
    own ``used_dltensor`` once the stub is done keeps the log clean.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self._capsule: Any = None

    def __dlpack__(self, **_: Any) -> Any:
        self._capsule = self._array.__dlpack__()
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def settle(self) -> None:
        """Renames the capsule, when the stub has taken what is in it."""
        if self._capsule is not None:
            api = ctypes.pythonapi
            api.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
            api.PyCapsule_SetName(self._capsule, b"used_dltensor")
