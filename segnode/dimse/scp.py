"""The Storage and Verification SCP: takes every storage SOP class in every transfer syntax, stored as received."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from segnode.config import Address
from segnode.dicom.status import PROCESSING_FAILURE, STATUS_OF, SUCCESS
from segnode.dicom.transfer_syntaxes import STORED_TRANSFER_SYNTAXES
from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from segnode.dimse.switches import set_switches
from segnode.errors import Refusal
from segnode.pipeline.receive import Receiver

_log = structlog.get_logger()

MAXIMUM_PDU: Final = 131072
_LONGEST_COMMENT: Final = 64


@dataclass(frozen=True)
class StorageScp:
    """A listening SCP."""

    server: ThreadedAssociationServer

    def stop(self) -> None:
        """Accept no more associations, and end the open ones."""
        self.server.shutdown()


def start_scp(receiver: Receiver, ae_title: str, address: Address) -> StorageScp:
    """Listen for associations; returns when the port is open. Raises OSError when it cannot be."""
    set_switches(receiver.objects.incoming)
    ae = AE(ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = MAXIMUM_PDU
    ae.maximum_associations = 64
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(str(context.abstract_syntax), list(STORED_TRANSFER_SYNTAXES))
    ae.add_supported_context(Verification)
    handlers = [(evt.EVT_C_STORE, _storing(receiver))]
    return StorageScp(ae.start_server(address, block=False, evt_handlers=handlers))  # type: ignore[arg-type]


def _storing(receiver: Receiver) -> Callable[[Event], Dataset]:
    def store(event: Event) -> Dataset:
        try:
            event.request._dataset_file.close()  # type: ignore[union-attr]  # the switches say that there is one
            receiver.receive(event.dataset_path)
        except Refusal as refusal:
            _log.warning("refused", reason=str(refusal), calling_ae=event.assoc.requestor.ae_title)
            return _response(STATUS_OF[type(refusal)], str(refusal), refusal.attribute)
        except Exception:  # noqa: BLE001  the border of an association: the sender is told, and the node serves on
            _log.exception("storing broke")
            return _response(PROCESSING_FAILURE, "unforeseen error; the node's log has the details")
        return _response(SUCCESS)

    return store


def _response(status: int, comment: str = "", attribute: str | None = None) -> Dataset:
    response = Dataset()
    response.Status = status
    if comment:
        response.ErrorComment = comment[:_LONGEST_COMMENT]
    tag = tag_for_keyword(attribute) if attribute else None
    if tag is not None:
        response.OffendingElement = [tag]
    return response
