"""TCP ports of this machine: free, usable, listened to."""

from __future__ import annotations

import socket
from collections.abc import Collection

from headrace.errors import UsageError


def free_port(host: str, besides: Collection[int] = ()) -> int:
    """Returns a port that is free now.

    Args:
        host: address of this machine.
        besides: ports that it is not to be, free as they may be.

    Raises:
        UsageError: ``host`` is no address of this machine.
    """
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise UsageError(
                f"--listen {host}: this machine has no such IPv4 address ({error.strerror}); "
                f"use 127.0.0.1, or 0.0.0.0 for every one"
            ) from error
        port = int(probe.getsockname()[1])
        # While this one is held it is not given once more.
        return free_port(host, besides) if port in besides else port


def check_port(host: str, port: int, option: str) -> None:
    """Checks that a server can listen to a port.

    Args:
        host: address of this machine.
        port: the port.
        option: which of the server's ports it is: ``grpc``, ``http`` or ``metrics``.

    Raises:
        UsageError: it cannot.
    """
    free_port(host)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"port {port} of {host} cannot be used ({error}); pass another one with "
                f"--{option}-port, or 0 for a free one"
            ) from error


def listens(endpoint: str) -> bool:
    """Returns whether somebody listens at ``HOST:PORT``."""
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except OSError:
        return False
    return True
