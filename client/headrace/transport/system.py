"""Slots in POSIX shared memory: for a server on the same machine.

One region holds all of them; the server reads and writes it in place.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from headrace.errors import MachineError
from headrace.transport.base import Slot, SlotSize, server_errors
from headrace.transport.memory import (
    REGISTER_SECONDS,
    TIDY_SECONDS,
    Memory,
    is_leftover_region,
    region_name,
    sweep_cuda,
)

SHM = Path("/dev/shm")  # noqa: S108 -- where Linux keeps POSIX shared memory


class SystemMemory(Memory):
    """See :class:`Memory`.

    Args:
        client: the server's client.
        size: of a slot.
        slots: how many.

    Raises:
        MachineError: the region does not fit into /dev/shm.
        ServerError: the server does not take the region.
    """

    name = "system"

    def __init__(self, client: triton.InferenceServerClient, size: SlotSize, *, slots: int) -> None:
        super().__init__(size)
        self._client = client
        self._region = _Region(self.layout.stride * slots)
        try:
            with server_errors("the server does not take POSIX shared memory"):
                client.register_system_shared_memory(
                    self._region.name,
                    f"/{self._region.name}",
                    self._region.size,
                    client_timeout=REGISTER_SECONDS,
                )
        except BaseException:
            self._region.remove()
            raise
        for index in range(slots):
            start = self.layout.stride * index
            ids = self._region.view(start, np.dtype(np.int32), size.tokens)
            mask = self._region.view(start + self.layout.mask, np.dtype(np.int32), size.tokens)
            self.slots.append(Slot(index, ids, mask))

    def vectors(self, slot: Slot) -> NDArray[np.floating[Any]]:
        """See :meth:`Memory.vectors`."""
        start = self.layout.stride * slot.index + self.layout.vectors
        numbers = slot.rows * self.size.dimension
        view = self._region.view(start, self.size.dtype, numbers)
        return view.reshape(slot.rows, self.size.dimension)

    def close(self) -> None:
        """See :meth:`Memory.close`."""
        if self._region.gone:
            return
        # Where the server is gone, its registration is too.
        with suppress(triton.InferenceServerException):
            self._client.unregister_system_shared_memory(
                self._region.name, client_timeout=TIDY_SECONDS
            )
        self._region.remove()

    def abandon(self) -> None:
        """See :meth:`Memory.abandon`; the server keeps the memory until it is told, or ends."""
        self._region.remove()

    def _whereabouts(self, slot: Slot) -> tuple[str, int]:
        return self._region.name, self.layout.stride * slot.index


class _Region:
    """A shared-memory object of this process: made, mapped, and removed."""

    def __init__(self, size: int) -> None:
        self.name = region_name()
        self.size = size
        self.gone = False
        path = SHM / self.name
        # Also where an interruption comes before anybody could call remove.
        self._unlink = weakref.finalize(self, path.unlink, missing_ok=True)
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
            self._unlink()
            if error.errno == errno.EFBIG:
                raise MachineError(
                    f"no file may have the {size / 2**20:.0f} MiB that are needed in {SHM}; raise "
                    f"the limit (ulimit -f), or use --transport grpc"
                ) from error
            if error.errno not in {errno.ENOSPC, errno.ENOMEM, errno.EDQUOT}:
                raise
            raise MachineError(
                f"{SHM} is too small: {size / 2**20:.0f} MiB more are needed there{_room()}; "
                f"enlarge it (containers: --ipc=host or --shm-size), or use --transport grpc"
            ) from error
        finally:
            os.close(descriptor)

    def view(self, start: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """Returns ``count`` numbers of ``dtype`` from byte ``start`` on, in place."""
        return np.frombuffer(self._map, dtype, count, start)

    def remove(self) -> None:
        """Unlinks the object; the memory goes when the last view of it does."""
        self.gone = True
        self._unlink()


def _room() -> str:
    with suppress(OSError):
        room = shutil.disk_usage(SHM)
        return f", and of {room.total / 2**20:.0f} MiB {room.free / 2**20:.1f} are free"
    return ""


def sweep(client: triton.InferenceServerClient | None = None) -> None:
    """Removes the regions of headrace processes that are gone, here and on the server.

    Only regions of this machine and PID namespace whose process is dead are touched.
    """
    found = leftovers()
    try:
        if client is not None:
            with server_errors("the server's shared memory cannot be listed"):
                status = client.get_system_shared_memory_status(client_timeout=TIDY_SECONDS)
            for name in filter(is_leftover_region, status.regions):
                # One that a request still uses goes the next time.
                with suppress(triton.InferenceServerException):
                    client.unregister_system_shared_memory(name, client_timeout=TIDY_SECONDS)
            sweep_cuda(client)
    finally:  # also where the server is gone
        for name in found:
            with suppress(PermissionError):  # another user's
                (SHM / name).unlink(missing_ok=True)


def leftovers() -> list[str]:
    """Returns the names of the regions in /dev/shm of headrace processes that are gone."""
    return [path.name for path in SHM.glob("headrace-*") if is_leftover_region(path.name)]
