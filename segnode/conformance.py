"""The DICOM Conformance Statement (PS3.2, by the outline of its annex N), written from the tables that the code uses."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Final

from segnode.config import DimseConfig, NodeConfig, PeerConfig
from segnode.dicom.attributes import INSTANCE_ATTRIBUTES, ITEM_ATTRIBUTES, SERIES_ATTRIBUTES, STUDY_ATTRIBUTES
from segnode.dicom.status import (
    COMMITMENT_FAILURES,
    PROCESSING_FAILURE,
    QUERY_STATUSES,
    STATUS_OF,
    STORED_WITH_MISMATCH,
    SUCCESS,
)
from segnode.dicom.transfer_syntaxes import STORED_TRANSFER_SYNTAXES
from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, uid_name
from segnode.dimse.admission import REJECTIONS
from segnode.dimse.scp import MAXIMUM_PDU
from segnode.dimse.services import Service, services
from segnode.seg.forms import FORMS

_SCU: Final = (
    ("Verification", "`segnode echo`, `segnode doctor`", "1.2.840.10008.1.1"),
    ("Storage", "results, and what rules forward", "every SOP class that is held"),
    ("Storage Commitment", 'destinations with `confirm = "commitment"`', "1.2.840.10008.1.20.1"),
    ("Query (Study Root)", '`expect = "find"`, `confirm = "read-back"`, `segnode slim`', "1.2.840.10008.5.1.4.1.2.2.1"),
    ("Retrieve by C-GET (Study Root)", '`confirm = "read-back"`, `segnode slim`', "1.2.840.10008.5.1.4.1.2.2.3"),
)
_ROLES: Final = {None: "SCU", (True, False): "SCU", (False, True): "SCP", (True, True): "SCU, SCP"}


def statement() -> str:
    """The whole statement, in Markdown."""
    parts = (_overview, _introduction, _implementation_model, _services, _network, _security, _annexes)
    return "\n".join(line for part in parts for line in part()) + "\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield ""
    for row in (heads, ["---"] * len(heads), *rows):
        yield f"| {' | '.join(row)} |"
    yield ""


def _overview() -> Iterator[str]:
    yield "# DICOM Conformance Statement"
    yield f"segnode {version('segnode')}. `segnode conformance` prints this from the tables that the program itself reads."
    yield ""
    yield "## 1 Overview"
    yield "A node that receives images by DIMSE and DICOMweb, has models segment them, and delivers the results as"
    yield "Segmentation and Label Map Segmentation objects. Whatever it receives it keeps, and gives out, as it came."
    yield from _table(
        ("service", "segnode is", "SOP classes"),
        [
            *((service.name, "SCP", str(len(service.sop_classes))) for service in services()),
            *((name, f"SCU: {use}", sop_class) for name, use, sop_class in _SCU),
            ("DICOMweb: STOW-RS, QIDO-RS, WADO-RS", "origin server", "see 4.4"),
            ("DICOMweb: STOW-RS, QIDO-RS, WADO-RS", "user agent, for destinations by `http(s)://`", ""),
        ],
    )


def _introduction() -> Iterator[str]:
    yield "## 2 Introduction"
    yield "For who connects devices and archives to a segnode. That two statements fit each other does not show that"
    yield "the two work together: try it, with `segnode echo`, `segnode send` and `segnode rules test`."
    yield ""
    yield "AE: application entity. SCP, SCU: who serves and who uses a service. Clauses are those of the standard of"
    yield "2024 and later."
    yield ""


def _implementation_model() -> Iterator[str]:
    yield "## 3 Implementation model"
    yield "One application entity, in several processes that share its ports. What it receives is written to disk and"
    yield "its row committed before success is said. A series that is complete is handed to the rules: a model makes a"
    yield "segmentation of it, or it is forwarded. What is owed to a destination is tried until it is taken, in an"
    yield "association or a request of its own."
    yield ""


def _services() -> Iterator[str]:
    yield "## 4 Services and interoperability"
    yield "### 4.1 What is served (SCP)"
    yield from _table(
        ("service", "roles that the peer may have", "right in `may` of its `[[peers]]`", "transfer syntaxes, best first"),
        [(s.name, _ROLES[s.roles], s.right or _right_by_status(s), _syntaxes_of(s)) for s in services()],
    )
    yield "A peer may propose any of the transfer syntaxes, in any order: of those in a context the first of this"
    yield "node's order is accepted. Who wants objects to arrive in another one, compressed for example, proposes it in"
    yield "a context of its own. A service that the peer has no right to is answered with result 1 (user rejection)."
    yield ""
    yield "**Storage** is at level 2 (full): every attribute is kept, private ones too, nothing is coerced, and the"
    yield "data set is kept byte for byte, digital signatures included. Objects without a Study Instance UID (hanging"
    yield "protocols, implant templates and the like) are not taken. Private SOP classes are taken where `[dimse]"
    yield "private_sop_classes` names them."
    yield from _table(("status of C-STORE", "when"), _statuses())
    yield "Each failure has an Error Comment (0000,0902), and the Offending Element (0000,0901) where there is one;"
    yield "neither holds a patient's data. After A700 the same association may go on: as soon as there is room objects"
    yield "are taken again."
    yield ""
    yield "**Storage Commitment**: N-ACTION is answered at once, N-EVENT-REPORT follows in the same association when"
    yield "that is left open for a second, else in one of the node's own to the destination with the AE title of who"
    yield "asked. Failure reasons:"
    yield from _table(("reason", ""), [(f"{code:04X}", text) for code, text in COMMITMENT_FAILURES.items()])
    yield ""
    yield "**Query/Retrieve**, Patient Root and Study Root, every level; relational queries and combined dates and times are"
    yield "not negotiated. C-FIND has the matcher of QIDO-RS. C-MOVE sends to DIMSE destinations by their AE title. C-MOVE and"
    yield "C-GET send an object as it is held, or natively, or a segmentation in another form that the receiver takes."
    yield from _table(
        ("status of C-FIND, C-MOVE, C-GET", "when"), [(f"{code:04X}", text) for code, text in QUERY_STATUSES.items()]
    )
    yield "### 4.2 What is used (SCU)"
    yield from _table(("service", "when", "SOP classes"), _SCU)
    yield "Objects are proposed in the transfer syntax that they are held in; where that is not accepted natively,"
    yield "explicit and then implicit little endian. Segmentations that the node makes are offered in the forms that"
    yield "the destination's `seg` lists:"
    yield from _table(
        ("form", "SOP class", "transfer syntax"),
        [(name, uid_name(str(form.sop_class_uid)), uid_name(str(form.transfer_syntax_uid))) for name, form in FORMS.items()],
    )
    yield "### 4.3 What is searched by"
    yield "The index keeps these attributes; C-FIND and QIDO-RS match them by the rules of PS3.4 C.2.2.2."
    yield from _table(
        ("level", "attributes"),
        [
            ("study", _words(STUDY_ATTRIBUTES)),
            ("series", _words(SERIES_ATTRIBUTES)),
            ("instance", _words(INSTANCE_ATTRIBUTES)),
            *((sequence, _words(keys)) for sequence, keys in ITEM_ATTRIBUTES.items()),
        ],
    )
    yield "### 4.4 DICOMweb"
    yield "[What the node conforms to: DICOMweb](dicomweb.md) says it; OPTIONS and `/dicom-web/openapi.json` of a"
    yield "running node do too."
    yield ""


def _right_by_status(service: Service) -> str:
    return "store (else status 0124)" if service.name == "Storage" else ""


def _syntaxes_of(service: Service) -> str:
    is_long = service.transfer_syntaxes == STORED_TRANSFER_SYNTAXES
    return "all of annex 7.2" if is_long else ", ".join(uid_name(uid) for uid in service.transfer_syntaxes)


def _statuses() -> Iterator[tuple[str, str]]:
    yield f"{SUCCESS:04X}", "The object is on disk and its row is committed; or it is held already."
    yield f"{STORED_WITH_MISMATCH:04X}", "The same, of a segmentation whose SegmentationType is not one of its SOP class."
    for kind, status in sorted(STATUS_OF.items(), key=lambda item: item[1]):
        yield f"{status:04X}", (inspect.getdoc(kind) or "").partition("\n")[0]
    yield f"{PROCESSING_FAILURE:04X}", "Something unforeseen; the node's log has it."


def _words(keywords: Iterable[str]) -> str:
    return ", ".join(keywords)


def _network() -> Iterator[str]:
    node, dimse, peer = NodeConfig(), DimseConfig(), PeerConfig(ae_title="A", hosts=("::1",))
    yield "## 5 Network communication"
    yield "### 5.1 Associations"
    yield from _table(
        ("", "by default", "configured by"),
        [
            ("AE titles", node.ae_title, "`[node] ae_title`, `[dimse] ae_titles`, `any_called_ae`"),
            ("address", node.dicom, "`[node] dicom`; IPv4 or IPv6"),
            ("address by TLS", "none", "`[node] dicom_tls`"),
            ("associations that are open at once", str(dimse.max_associations), "`[dimse] max_associations`"),
            ("of one of the `[[peers]]`", str(peer.max_associations), "`[[peers]] max_associations`"),
            ("associations to a destination at once", "4", "`[[destinations]] max_associations`"),
            ("request of an association, TLS handshake (ARTIM)", f"{dimse.artim:g} s", "`[dimse] artim`"),
            ("idle associations are aborted after", f"{dimse.idle:g} s", "`[dimse] idle`"),
            ("an answer of a destination", "120 s", "`[[destinations]] timeout`"),
            ("maximum length of a PDU, both ways", f"{MAXIMUM_PDU} bytes", ""),
            ("operations at once in an association", "1 (no window is negotiated)", ""),
            ("Implementation Class UID", str(IMPLEMENTATION_CLASS_UID), ""),
            ("Implementation Version Name", IMPLEMENTATION_VERSION_NAME, ""),
        ],
    )
    yield "User identity, and extended negotiation of SOP classes, are read and not answered."
    yield ""
    yield "### 5.2 Rejections"
    yield from _table(
        ("result", "source", "reason", "when"),
        [(str(r.result), str(r.source), str(r.reason), r.why) for r in REJECTIONS],
    )
    yield "A protocol version other than 1 is rejected with 1, 2, 2. Each rejection is logged, with AE titles, address"
    yield "and reason."
    yield ""


def _security() -> Iterator[str]:
    yield "## 6 Security"
    yield "- **Who is let in.** `[[peers]]` lists calling AE titles with their addresses; a node that others can reach"
    yield "  starts with such a list, or with `[dimse] accept_any = true`, only."
    yield "- **TLS** by the BCP 195 profile (PS3.15 B.12): 1.2 and 1.3, on a port of its own, as SCP; of 1.2 the suites"
    yield "  with ECDHE and AES-GCM or ChaCha20-Poly1305. With `client_ca` peers show a certificate (node"
    yield "  authentication both ways), and `certificate_subject` binds an AE title to one. As SCU 1.2 or 1.3, the"
    yield "  host's name verified. Certificates are read again at SIGHUP, and what is open stays open."
    yield "- **DICOMweb**: API keys, OIDC tokens, client certificates, TLS 1.2 and 1.3; [the same page](dicomweb.md)"
    yield "  has it."
    yield "- **Logs** hold AE titles, addresses and UIDs, and no patient's data. No audit messages (PS3.15 A.5) are"
    yield "  sent."
    yield "- The 128 bytes before a file's DICM prefix are no part of what C-STORE brings: those of files that are"
    yield "  given out are zero."
    yield ""


def _annexes() -> Iterator[str]:
    yield "## 7 Annexes"
    yield "### 7.1 SOP classes that are served"
    for service in services():
        yield ""
        yield f"{service.name}:"
        yield ""
        for uid in service.sop_classes:
            yield f"- {uid_name(uid)}"
    yield ""
    yield "### 7.2 Transfer syntaxes of Storage, in the order of preference"
    yield ""
    for number, uid in enumerate(STORED_TRANSFER_SYNTAXES, 1):
        yield f"{number}. {uid_name(uid)}"
    yield ""
    yield "### 7.3 Character sets"
    yield "Those of PS3.3 C.12.1.1.2 are decoded for the index and for DICOMweb, and kept as they are in objects."
    yield "Segmentations have the character set of their images."
    yield ""
    yield "### 7.4 Extensions"
    yield "No private SOP classes, attributes or transfer syntaxes are made."
