"""Batches in POSIX shared memory: for a server on the same machine.

One region holds every slot: ids, mask and vectors side by side. The server reads and writes it in
place; only names and offsets travel. Regions are named ``headrace-MACHINE-PID-RANDOM``, so that
the leftovers of a process that died can be told from those of one that lives.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from headrace.contract import EMBEDDING, Contract, is_leftover, machine_tag
from headrace.errors import MachineError
from headrace.transport.base import Slot, SlotSize, Transport, server_errors, wrong_shape

SHM = Path("/dev/shm")  # noqa: S108 -- where Linux keeps POSIX shared memory
_PREFIX = "headrace"
_ALIGNMENT = 64
TIDY_SECONDS = 10.0  # for a server that may hang: what it is told here is no more than tidy


class SystemTransport(Transport):
    """See :class:`Transport`; ids and vectors lie in memory that the server shares.

    Raises:
        MachineError: the region does not fit into /dev/shm.
        ServerError: the server does not take the region.
    """

    name = "system"

    def __init__(
        self,
        client: triton.InferenceServerClient,
        contract: Contract,
        *,
        slots: int,
        tidy: bool = True,
    ) -> None:
        super().__init__(client, contract)
        if tidy:
            sweep(client)
        size = SlotSize.of(contract)
        self._size = size
        token_bytes, vector_bytes = (_aligned(n) for n in (size.token_bytes, size.vector_bytes))
        self._stride = 2 * token_bytes + vector_bytes
        self._mask_at, self._vectors_at = token_bytes, 2 * token_bytes
        self._region = _Region(self._stride * slots)
        try:
            with server_errors("the server does not take POSIX shared memory"):
                client.register_system_shared_memory(
                    self._region.name, f"/{self._region.name}", self._region.size
                )
        except BaseException:
            self._region.remove()
            raise
        self.slots = slots
        for index in range(slots):
            start = self._stride * index
            ids = self._region.view(start, np.dtype(np.int32), size.tokens)
            mask = self._region.view(start + self._mask_at, np.dtype(np.int32), size.tokens)
            self._free.append(Slot(index, ids, mask))

    def _place(
        self, slot: Slot, inputs: list[triton.InferInput], output: triton.InferRequestedOutput
    ) -> None:
        for tensor, (at, size) in zip([*inputs, output], self._places(slot), strict=True):
            tensor.set_shared_memory(self._region.name, size, offset=at)

    def _places(self, slot: Slot) -> list[tuple[int, int]]:
        """Returns offset and size in bytes of the slot's ids, mask and vectors."""
        start = self._stride * slot.index
        token_bytes = slot.rows * slot.length * 4
        vector_bytes = slot.rows * self._size.dimension * self._size.dtype.itemsize
        return [
            (start, token_bytes),
            (start + self._mask_at, token_bytes),
            (start + self._vectors_at, vector_bytes),
        ]

    def _read(self, slot: Slot, result: triton.InferResult) -> NDArray[np.floating[Any]]:
        shape = list(result.get_output(EMBEDDING).shape)
        if shape != [slot.rows, self._size.dimension]:
            raise wrong_shape(slot, self._size, shape)
        return self._vectors_of(slot)

    def _vectors_of(self, slot: Slot) -> NDArray[np.floating[Any]]:
        start = self._stride * slot.index + self._vectors_at
        numbers = slot.rows * self._size.dimension
        view = self._region.view(start, self._size.dtype, numbers)
        return view.reshape(slot.rows, self._size.dimension)

    def abandon(self) -> None:
        """See :meth:`Transport.abandon`; the server keeps the memory until it is told, or ends."""
        self._region.remove()

    def _close(self) -> None:
        if self._region.gone:
            return
        # Where the server is gone, its registration is too.
        with suppress(triton.InferenceServerException):
            self._client.unregister_system_shared_memory(
                self._region.name, client_timeout=TIDY_SECONDS
            )
        self._region.remove()


class _Region:
    """A shared-memory object of this process: made, mapped, and removed."""

    def __init__(self, size: int) -> None:
        self.name = f"{_PREFIX}-{machine_tag()}-{os.getpid()}-{secrets.token_hex(6)}"
        self.size = size
        self.gone = False
        path = SHM / self.name
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise MachineError(
                f"shared memory cannot be made in {SHM} ({error.strerror}); use --transport grpc"
            ) from error
        try:
            # Takes the pages now: without it a full /dev/shm shows as a SIGBUS, much later.
            os.posix_fallocate(descriptor, 0, size)
            self._map = mmap.mmap(descriptor, size)
        except OSError as error:
            path.unlink(missing_ok=True)
            if error.errno not in {errno.ENOSPC, errno.ENOMEM, errno.EDQUOT}:
                raise
            raise MachineError(
                f"{SHM} is too small: {size / 2**20:.0f} MiB are needed there; enlarge it "
                f"(containers: --ipc=host or --shm-size), or use --transport grpc"
            ) from error
        finally:
            os.close(descriptor)

    def view(self, start: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """Returns ``count`` numbers of ``dtype`` from byte ``start`` on, in place."""
        return np.frombuffer(self._map, dtype, count, start)

    def remove(self) -> None:
        """Unlinks the object; the memory goes when the last view of it does."""
        self.gone = True
        (SHM / self.name).unlink(missing_ok=True)


def sweep(client: triton.InferenceServerClient | None = None) -> None:
    """Removes the regions of headrace processes that are gone, here and on the server.

    Only regions of this machine and PID namespace whose process is dead are touched.
    """
    found = leftovers()
    try:
        if client is not None:
            with server_errors("the server's shared memory cannot be listed"):
                status = client.get_system_shared_memory_status(client_timeout=TIDY_SECONDS)
            for name in filter(_is_leftover, status.regions):
                with server_errors(f"shared memory {name} cannot be unregistered"):
                    client.unregister_system_shared_memory(name, client_timeout=TIDY_SECONDS)
    finally:  # also where the server is gone
        for name in found:
            (SHM / name).unlink(missing_ok=True)


def leftovers() -> list[str]:
    """Returns the names of the regions here of headrace processes that are gone."""
    return [path.name for path in SHM.glob(f"{_PREFIX}-*") if _is_leftover(path.name)]


def _is_leftover(name: str) -> bool:
    parts = name.split("-")
    return len(parts) == 4 and parts[0] == _PREFIX and is_leftover(parts[1], parts[2])


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
