"""How batches reach the server: one narrow interface, two ways.

``system`` shares memory with a server on this machine; ``grpc`` sends everything inside messages.
"""

from headrace.transport.base import Slot, Transport
from headrace.transport.connect import Connection, connect
from headrace.transport.system import leftovers, sweep

__all__ = ["Connection", "Slot", "Transport", "connect", "leftovers", "sweep"]
