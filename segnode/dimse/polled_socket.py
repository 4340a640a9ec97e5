"""The socket of an association that this side asks for, whatever the number of its descriptor.

pynetdicom looks by select(2) whether there is something to read, which knows no descriptor from 1024 on: in a process that
has more open, as one that receives from hundreds of peers, each association would be aborted as soon as it is asked for.
"""

import ssl
import time
from typing import Final

from pynetdicom.transport import AssociationSocket

from segnode.descriptors import readable
from segnode.dimse.guarded_socket import PDU_DEADLINE_S

# No PDU that was agreed on is so long.
_LONGEST_PDU: Final = 16 << 20
_BLOCK: Final = 1 << 16


class PolledSocket(AssociationSocket):
    """Takes the place of pynetdicom's own."""

    @property
    def ready(self) -> bool:
        """Whether there is something to read now."""
        connected = self.socket
        if connected is None or not self._is_connected:
            return False
        try:
            comes = bool(readable(0, connected.fileno()))
        except ValueError:  # it was closed by another thread
            self.event_queue.put("Evt17")
            return False
        return comes or (isinstance(connected, ssl.SSLSocket) and bool(connected.pending()))

    def recv(self, nr_bytes: int) -> bytearray:
        """So many bytes, or fewer where the connection ends. Raises OSError for too many, and when they do not come in time.

        pynetdicom's own waits for ever for the rest of a PDU, and whatever ends an association waits for it.
        """
        connected, received = self.socket, bytearray()
        if connected is None or nr_bytes > _LONGEST_PDU:
            raise OSError(f"a PDU of {nr_bytes} bytes is not read")
        until = time.monotonic() + min(PDU_DEADLINE_S, self.assoc.network_timeout or PDU_DEADLINE_S)
        try:
            while len(received) < nr_bytes:
                connected.settimeout(max(until - time.monotonic(), 0.001))
                block = connected.recv(min(nr_bytes - len(received), _BLOCK))
                if not block:
                    break
                received += block
        finally:
            connected.settimeout(None)
        return received
