"""Free ports are different ones, whatever the system gives first."""

from __future__ import annotations

import socket

import pytest

from headrace.errors import UsageError
from headrace_launcher.ports import free_port


def test_a_port_that_is_another_servers_to_be_is_not_given(monkeypatch):
    real, given = socket.socket.bind, [0]

    class Repeating(socket.socket):
        """Gives the first port again where it is free."""

        def bind(self, address):
            try:
                real(self, (address[0], given[0]))
            except OSError:
                real(self, address)
            given[0] = self.getsockname()[1]

    monkeypatch.setattr(socket, "socket", Repeating)
    first = free_port("127.0.0.1")
    assert free_port("127.0.0.1") == first
    assert free_port("127.0.0.1", {first}) != first


def test_an_address_that_is_none_of_this_machine_is_refused():
    with pytest.raises(UsageError, match=r"--listen 192\.0\.2\.1: this machine has no such"):
        free_port("192.0.2.1")
