"""The Storage SCU: sends files to an application entity, SEGs in the forms that it accepts, and asks for what it holds."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from ssl import SSLContext
from typing import Any, Final

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

from segnode.config import DimseAddress, FormName
from segnode.connections import trouble
from segnode.dicom.header import read_file_meta, read_header
from segnode.dicom.native import in_native
from segnode.dicom.status import SUCCESS, meaning_of
from segnode.dicom.transfer_syntaxes import STORED_TRANSFER_SYNTAXES
from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, uid_name
from segnode.dimse.peer import ANSWER_S, DimsePeer, look_at
from segnode.dimse.send_lane import MAXIMUM_PDU, SendLane
from segnode.dimse.switches import set_switches
from segnode.errors import (
    AlreadyThere,
    BrokeOffWhenAsked,
    CannotAsk,
    CannotReadBack,
    DeliveryDeferred,
    DeliveryRefused,
    FormRefused,
    NotLetIn,
    Refusal,
    UnreadablePixels,
)
from segnode.pipeline.ports import Encoded, Identified
from segnode.seg.forms import FORMS

_FIND: Final = StudyRootQueryRetrieveInformationModelFind
_GET: Final = StudyRootQueryRetrieveInformationModelGet
_NATIVE: Final = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_MOST_CONTEXTS: Final = 128
_CONNECT_S: Final = 10
_NEGOTIATE_S: Final = 30
_PENDING: Final = (0xFF00, 0xFF01)
_BROKE_OFF: Final = ", or broke off: see that DICOM is served there, and whether it wants TLS"
_PERMANENT: Final = 1  # the result of an A-ASSOCIATE-RJ (PS3.8 9.3.4)


@dataclass(frozen=True)
class DimseDestination:
    """An archive that is reached by C-STORE."""

    peer: DimsePeer

    @property
    def where(self) -> str:
        """Its AE title."""
        return self.peer.address.ae_title

    @contextmanager
    def reach(self, forms: Sequence[FormName]) -> Iterator["StoreDoor"]:
        """Offer every form in one association; see the port Destination."""
        wanted = {(str(FORMS[f].sop_class_uid), str(FORMS[f].transfer_syntax_uid)) for f in forms}
        with storing(self.peer, wanted) as lane:
            yield StoreDoor(lane)

    @contextmanager
    def passage(self, kinds: Collection[tuple[str, str]]) -> Iterator[SendLane]:
        """Offer every kind in one association; see the port Destination."""
        with storing(self.peer, set(kinds)) as lane:
            yield lane

    def held(self, wanted: Identified) -> bytes | None:
        """Ask by C-FIND and fetch by C-GET, in an association of their own; see the port Destination.

        An archive that knows no C-FIND but C-GET holds what that gives.
        """
        sop_class = wanted.sop_class_uid
        syntaxes = {str(form.transfer_syntax_uid) for form in FORMS.values() if form.sop_class_uid == sop_class}
        syntaxes = syntaxes or set(STORED_TRANSFER_SYNTAXES)
        kinds = {(str(_FIND), str(ImplicitVRLittleEndian)), (str(_GET), str(ImplicitVRLittleEndian))}
        kinds |= {(sop_class, syntax) for syntax in syntaxes}
        received: list[bytes] = []

        def keep(event: Event) -> int:
            # Some archives give out more than they are asked for.
            if event.request.AffectedSOPInstanceUID == wanted.sop_instance_uid:  # type: ignore[union-attr]
                received[:] = [event.encoded_dataset()]
            return SUCCESS

        with self._asking(kinds, sop_class, keep) as association:
            accepted = {context.abstract_syntax for context in association.accepted_contexts}
            if not accepted & {_FIND, _GET}:
                raise CannotAsk(f"{self.where} accepts neither C-FIND nor C-GET")
            if _FIND in accepted and not _find(association, wanted, self.where):
                return None
            if _GET not in accepted:
                raise CannotReadBack(f"{self.where} accepts no C-GET")
            status = get_instance(association, wanted, self.where)
        if received:
            return received[0]
        if _FIND not in accepted:
            return None
        raise CannotReadBack(f"{self.where} answers C-GET with status 0x{status:04X} and gives nothing")

    def send_as_is(self, part10: bytes) -> str:
        """Offer the object uncompressed, as every archive takes what it takes at all; see the port Destination."""
        header = read_header(BytesIO(part10))
        sop_class = header.sop_class_uid
        kinds = {(sop_class, str(syntax)) for syntax in _NATIVE}
        with storing(self.peer, kinds) as lane:
            syntax = next((str(syntax) for syntax in _NATIVE if lane.accepts(sop_class, str(syntax))), None)
            if syntax is None:
                raise DeliveryRefused(f"{self.where} does not accept SOP class {uid_name(sop_class)}")
            try:
                return lane.store(part10 if header.transfer_syntax_uid == syntax else in_native(BytesIO(part10), syntax))
            except AlreadyThere as there:
                return str(there)
            except (FormRefused, UnreadablePixels) as refusal:
                raise DeliveryRefused(f"{self.where} refuses {uid_name(sop_class)}: {refusal}") from refusal

    @contextmanager
    def _asking(self, kinds: set[tuple[str, str]], gets: str, keep: Callable[[Event], int]) -> Iterator[Association]:
        """An association to ask in. Raises CannotAsk where it is rejected for good, as that for storing is not."""
        try:
            with associate(self.peer, kinds, gets=gets, keep=keep) as association:
                yield association
        except NotLetIn as rejection:
            raise CannotAsk(str(rejection)) from rejection


@dataclass(frozen=True)
class StoreDoor:
    """An association that SEGs are sent in."""

    lane: SendLane

    def accepts(self, form: FormName) -> bool:
        """Whether the form's SOP class was accepted with its transfer syntax."""
        return self.lane.accepts(str(FORMS[form].sop_class_uid), str(FORMS[form].transfer_syntax_uid))

    def store(self, encoded: Encoded) -> str:
        """Send by C-STORE; see the port Door."""
        return self.lane.store(encoded.part10)


def send_files(
    files: Sequence[Path],
    address: DimseAddress,
    calling_ae: str,
    timeout_s: float = ANSWER_S,
    tls: SSLContext | None = None,
) -> Iterator[tuple[Path, str]]:
    """Send Part 10 files as they are to what is a DimsePeer; yields each with what was answered.

    Raises DeliveryDeferred and DeliveryRefused, naming the file that was not taken.
    """
    peer = DimsePeer(address, calling_ae, timeout_s, tls)
    for batch in _batches(files):
        with storing(peer, set(batch.values())) as lane:
            for file in batch:
                try:
                    yield file, lane.store(file)
                except AlreadyThere as claim:
                    yield file, str(claim)
                except FormRefused as error:
                    raise DeliveryRefused(f"{file}: {address.ae_title} refuses {uid_name(batch[file][0])}: {error}") from error


def echo(peer: DimsePeer) -> tuple[str, str]:
    """Have an application entity answer C-ECHO; its implementation class UID, and version name where it gives one.

    Raises DeliveryDeferred when it cannot be reached, DeliveryRefused when it answers something else than success.
    """
    with associate(peer, {(str(Verification), str(ImplicitVRLittleEndian))}) as association:
        if not association.accepted_contexts:
            raise DeliveryRefused(f"{peer.where} accepts the association, but no C-ECHO in it")
        status = association.send_c_echo()
        if "Status" not in status:
            raise DeliveryDeferred(f"{peer.where} accepts the association, but does not answer C-ECHO")
        if status.Status != SUCCESS:
            raise DeliveryRefused(f"{peer.where} answers C-ECHO with status 0x{status.Status:04X}")
        acceptor = association.acceptor
        return str(acceptor.implementation_class_uid), str(acceptor.implementation_version_name or "")


def _batches(files: Iterable[Path]) -> Iterator[dict[Path, tuple[str, str]]]:
    """Files in turn, with the SOP class and transfer syntax of each: no batch needs more contexts than an association has."""
    batch: dict[Path, tuple[str, str]] = {}
    for path in files:
        try:
            with path.open("rb") as file:
                meta = read_file_meta(file)
        except Refusal as refusal:
            raise DeliveryRefused(f"{path} cannot be sent: {refusal}") from refusal
        kind = (meta.sop_class_uid, meta.transfer_syntax_uid)
        if kind not in batch.values() and len(set(batch.values())) == _MOST_CONTEXTS:
            yield batch
            batch = {}
        batch[path] = kind
    if batch:
        yield batch


@contextmanager
def storing(peer: DimsePeer, kinds: set[tuple[str, str]]) -> Iterator[SendLane]:
    """As `associate`: a lane to send objects of these kinds in. Raises DeliveryDeferred, DeliveryRefused."""
    lane = SendLane()
    with associate(peer, kinds, handlers=[(evt.EVT_CONN_OPEN, lane.attach)]) as association:
        # What it would poll for is seen when the next object is sent; release and abort end the pause.
        association._reactor_checkpoint.clear()
        try:
            yield lane.use(association)
        finally:
            association._reactor_checkpoint.set()


@contextmanager
def associate(
    peer: DimsePeer,
    kinds: set[tuple[str, str]],
    *,
    gets: str | None = None,
    keep: Callable[[Event], int] | None = None,
    handlers: Sequence[Any] = (),
) -> Iterator[Association]:
    """An association that proposes each (SOP class, transfer syntax) in a context of its own. Raises DeliveryDeferred.

    To connect and to negotiate may not take as long as an answer. Objects of the class that is got by C-GET are given to
    `keep`: the peer is the SCU of `gets`. Of other events `handlers` are told.
    """
    set_switches()
    ae = AE(peer.calling_ae)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout, ae.acse_timeout = min(_CONNECT_S, peer.timeout_s), min(_NEGOTIATE_S, peer.timeout_s)
    ae.dimse_timeout = ae.network_timeout = peer.timeout_s
    contexts = [build_context(sop_class, [syntax]) for sop_class, syntax in sorted(kinds)]
    roles: list[Any] = [build_role(gets, scp_role=True)] if gets else []
    opened: list[Event] = []
    handlers = [*handlers, (evt.EVT_CONN_OPEN, opened.append), *([(evt.EVT_C_STORE, keep)] if keep else [])]
    address = peer.address
    try:
        association = ae.associate(
            address.host,
            address.port,
            contexts=contexts,
            ae_title=address.ae_title,
            max_pdu=MAXIMUM_PDU,
            ext_neg=roles,
            evt_handlers=handlers,
            tls_args=(peer.tls, address.host) if peer.tls else None,
        )
    except OSError as error:  # the host's name is not known now
        raise DeliveryDeferred(f"{peer.where} cannot be reached: {trouble(error)}") from error
    if association.is_rejected:
        answer = association.acceptor.primitive
        kind = NotLetIn if answer is not None and answer.result == _PERMANENT else DeliveryDeferred
        raise kind(f"{peer.where} rejected the association of {peer.calling_ae} ({_rejection(association)})")
    if not association.is_established and not association.rejected_contexts:
        reason = look_at(peer) if peer.tls or not opened else ""
        raise DeliveryDeferred(f"{peer.where} cannot be reached{f': {reason}' if reason else _BROKE_OFF}")
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _rejection(association: Association) -> str:
    answer = association.acceptor.primitive
    return answer.reason_str if answer is not None else "no reason given"


def _find(association: Association, wanted: Identified, where: str) -> bool:
    """Whether the archive lists an object of that UID. Raises CannotAsk, DeliveryDeferred."""
    found, broke_off = False, f"{where} accepts C-FIND and breaks off when it is asked"
    try:
        answers = association.send_c_find(_identifier(wanted), _FIND)
    except RuntimeError as error:  # pynetdicom's, where the association broke off before
        raise BrokeOffWhenAsked(broke_off) from error
    for status, match in answers:
        if "Status" not in status:  # as archives do to those that may send, but not ask
            raise BrokeOffWhenAsked(broke_off)
        code = int(status.Status)
        if code in _PENDING:
            found = found or (match is not None and match.get("SOPInstanceUID") == wanted.sop_instance_uid)
        elif code != SUCCESS:
            _raise_if_passing(code, f"{where} answers C-FIND with status 0x{code:04X}")
            raise CannotAsk(f"{where} answers C-FIND with status 0x{code:04X}")
    return found


def get_instance(association: Association, wanted: Identified, where: str) -> int:
    """Have the archive send the object of that UID; the status it ends with. Raises DeliveryDeferred."""
    code, broke_off = SUCCESS, f"{where} broke off while it gave out an object"
    try:
        answers = association.send_c_get(_identifier(wanted), _GET)
    except RuntimeError as error:  # pynetdicom's, where the association broke off before
        raise DeliveryDeferred(broke_off) from error
    for status, _ in answers:
        if "Status" not in status:
            raise DeliveryDeferred(broke_off)
        code = int(status.Status)
    _raise_if_passing(code, f"{where} answers C-GET with status 0x{code:04X}")
    return code


def _identifier(wanted: Identified) -> Dataset:
    """The unique keys of an object (PS3.4 C.6.2.1)."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "IMAGE"
    identifier.StudyInstanceUID = wanted.study_instance_uid
    identifier.SeriesInstanceUID = wanted.series_instance_uid
    identifier.SOPInstanceUID = wanted.sop_instance_uid
    return identifier


def _raise_if_passing(code: int, answer: str) -> None:
    if meaning_of(code) == "later":
        raise DeliveryDeferred(answer)
