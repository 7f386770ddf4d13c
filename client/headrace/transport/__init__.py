"""How batches reach the server: one narrow interface, three ways.

``cuda`` shares a GPU's memory with a server on this machine, ``system`` the machine's own; requests
that say where a batch lies go over HTTP (:mod:`http`) or gRPC (:mod:`shared`). ``grpc`` sends
everything inside messages.
"""

from headrace.transport.base import Slot, Transport
from headrace.transport.connect import Connection, connect
from headrace.transport.memory import slot_bytes
from headrace.transport.system import leftovers, sweep

__all__ = ["Connection", "Slot", "Transport", "connect", "leftovers", "slot_bytes", "sweep"]
