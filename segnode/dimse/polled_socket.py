"""The socket of an association that this side asks for, whatever the number of its descriptor.

pynetdicom looks by select(2) whether there is something to read, which knows no descriptor from 1024 on: in a process that
has more open, as one that receives from hundreds of peers, each association would be aborted as soon as it is asked for.
"""

import ssl

from pynetdicom.transport import AssociationSocket

from segnode.descriptors import readable


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
