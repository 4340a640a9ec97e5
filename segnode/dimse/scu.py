"""The Storage SCU: sends files to an application entity, and SEGs in the best form that it accepts."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from segnode.config import DimseAddress, FormName
from segnode.dicom.header import read_header
from segnode.dicom.status import SUCCESS, require_stored
from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, uid_name
from segnode.dimse.switches import set_switches
from segnode.errors import DeliveryDeferred, DeliveryRefused, FormRefused, Refusal
from segnode.pipeline.ports import Segmentation, Sent
from segnode.seg.forms import FORMS

_MAXIMUM_PDU: Final = 131072
_MOST_CONTEXTS: Final = 128
_CONNECT_S: Final = 10
_NEGOTIATE_S: Final = 30
_ANSWER_S: Final = 120


@dataclass(frozen=True)
class DimseDestination:
    """An archive that is reached by C-STORE."""

    address: DimseAddress
    calling_ae: str

    def send(self, segmentation: Segmentation, forms: Sequence[FormName]) -> Sent:
        """Offer every form in one association and send the best that is accepted; see the port Destination."""
        wanted = {(str(FORMS[f].sop_class_uid), str(FORMS[f].transfer_syntax_uid)) for f in forms}
        with associate(self.address, self.calling_ae, wanted) as association:
            accepted = {(c.abstract_syntax, c.transfer_syntax[0]) for c in association.accepted_contexts}
            refusals = []
            for name in forms:
                form = FORMS[name]
                if (form.sop_class_uid, form.transfer_syntax_uid) not in accepted:
                    refusals.append(f"{name} not accepted at negotiation")
                    continue
                try:
                    return Sent(name, _store(association, segmentation.part10(name)))
                except FormRefused as refusal:
                    refusals.append(f"{name} {refusal}")
        what = uid_name(segmentation.sop_class_uid)
        raise DeliveryRefused(f"{self.address.ae_title} refuses SOP class {what}: {', '.join(refusals)}")

    def send_as_is(self, part10: bytes) -> str:
        """Offer the object uncompressed, as every archive takes what it takes at all; see the port Destination."""
        sop_class = read_header(BytesIO(part10)).sop_class_uid
        kinds = {(sop_class, str(syntax)) for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)}
        with associate(self.address, self.calling_ae, kinds) as association:
            if association.accepted_contexts:
                try:
                    return _store(association, part10)
                except FormRefused as refusal:
                    raise DeliveryRefused(f"{self.address.ae_title} refuses {uid_name(sop_class)}: {refusal}") from refusal
        raise DeliveryRefused(f"{self.address.ae_title} does not accept SOP class {uid_name(sop_class)}")


def send_files(files: Sequence[Path], address: DimseAddress, calling_ae: str) -> Iterator[tuple[Path, str]]:
    """Send Part 10 files as they are; yields each with what was answered.

    Raises DeliveryDeferred and DeliveryRefused, naming the file that was not taken.
    """
    for batch in _batches(files):
        with associate(address, calling_ae, set(batch.values())) as association:
            for file in batch:
                try:
                    yield file, _store(association, file)
                except (FormRefused, ValueError) as error:
                    raise DeliveryRefused(f"{file}: {address.ae_title} refuses {uid_name(batch[file][0])}: {error}") from error


def echo(address: DimseAddress, calling_ae: str, within: float) -> str:
    """Have an application entity answer C-ECHO, each step within some seconds; its implementation class UID.

    Raises DeliveryDeferred when it cannot be reached, DeliveryRefused when it answers something else than success.
    """
    with associate(address, calling_ae, {(str(Verification), str(ImplicitVRLittleEndian))}, within) as association:
        if not association.accepted_contexts:
            raise DeliveryRefused(f"{_where(address)} accepts the association, but no C-ECHO in it")
        status = association.send_c_echo()
        if "Status" not in status:
            raise DeliveryDeferred(f"{_where(address)} accepts the association, but does not answer C-ECHO")
        if status.Status != SUCCESS:
            raise DeliveryRefused(f"{_where(address)} answers C-ECHO with status 0x{status.Status:04X}")
        return str(association.acceptor.implementation_class_uid)


def _batches(files: Iterable[Path]) -> Iterator[dict[Path, tuple[str, str]]]:
    """Files in turn, with the SOP class and transfer syntax of each: no batch needs more contexts than an association has."""
    batch: dict[Path, tuple[str, str]] = {}
    for path in files:
        try:
            with path.open("rb") as file:
                header = read_header(file)
        except Refusal as refusal:
            raise DeliveryRefused(f"{path} cannot be sent: {refusal}") from refusal
        kind = (header.sop_class_uid, header.transfer_syntax_uid)
        if kind not in batch.values() and len(set(batch.values())) == _MOST_CONTEXTS:
            yield batch
            batch = {}
        batch[path] = kind
    if batch:
        yield batch


@contextmanager
def associate(
    address: DimseAddress, calling_ae: str, kinds: set[tuple[str, str]], within: float = _ANSWER_S
) -> Iterator[Association]:
    """An association that proposes each (SOP class, transfer syntax) in a context of its own. Raises DeliveryDeferred.

    `within` is how many seconds an answer may take; to connect and to negotiate may not take that long by default.
    """
    set_switches()
    ae = AE(calling_ae)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout, ae.acse_timeout = min(_CONNECT_S, within), min(_NEGOTIATE_S, within)
    ae.dimse_timeout = ae.network_timeout = within
    contexts = [build_context(sop_class, [syntax]) for sop_class, syntax in sorted(kinds)]
    try:
        association = ae.associate(
            address.host, address.port, contexts=contexts, ae_title=address.ae_title, max_pdu=_MAXIMUM_PDU
        )
    except OSError as error:  # the host's name is not known now
        raise DeliveryDeferred(f"{_where(address)} cannot be reached: {error.strerror}") from error
    if association.is_rejected:
        raise DeliveryDeferred(f"{_where(address)} rejected the association ({_rejection(association)})")
    if not association.is_established and not association.rejected_contexts:
        raise DeliveryDeferred(f"{_where(address)} cannot be reached, or broke off")
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _where(address: DimseAddress) -> str:
    return f"{address.ae_title}@{address.host}:{address.port}"


def _rejection(association: Association) -> str:
    answer = association.acceptor.primitive
    return answer.reason_str if answer is not None else "no reason given"


def _store(association: Association, source: bytes | Path) -> str:
    try:
        status = association.send_c_store(dcmread(BytesIO(source)) if isinstance(source, bytes) else source)
    except RuntimeError:  # pynetdicom's, where the association broke off before; where it does so now, nothing is answered
        status = Dataset()
    if "Status" not in status:
        raise DeliveryDeferred("the association broke off before the object was acknowledged")
    code = int(status.Status)
    answer = f"status 0x{code:04X}" + (f" {status.ErrorComment}" if "ErrorComment" in status else "")
    return require_stored(code, answer)
