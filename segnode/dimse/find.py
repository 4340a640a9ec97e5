"""The Query and Get SCU: asks an application entity what it has, and for SEGs and images (PS3.4 C.6.2, Study Root)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pydicom import Dataset
from pydicom.uid import (
    JPEG2000,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSNearLossless,
    SegmentationStorage,
)
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)

from segnode.dicom.status import SUCCESS
from segnode.dicom.uids import SEGMENTATION_CLASSES
from segnode.dimse.peer import DimsePeer
from segnode.dimse.scu import associate, get_instance
from segnode.errors import CannotReadBack, DeliveryFailed, FindFailed
from segnode.pipeline.ports import Level, Listed
from segnode.seg.codecs import CODECS

_STUDY_ROOT: Final = StudyRootQueryRetrieveInformationModelFind
_GET: Final = StudyRootQueryRetrieveInformationModelGet
_ANSWER_S: Final = 10.0  # the sweep waits for it
# What images come in, beside what segmentations do.
_OF_IMAGES: Final = frozenset(
    str(syntax) for syntax in (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEG2000, JPEGLSNearLossless)
)
_PENDING: Final = (0xFF00, 0xFF01)


@dataclass(frozen=True)
class DimseCatalogue:
    """A peer that is asked by C-FIND, and gives out by C-GET; to say how much it has it gets ten seconds at most."""

    peer: DimsePeer

    def count_instances(self, study_instance_uid: str, series_instance_uid: str) -> int:
        """What the peer says, or where that has no number its instances counted; see the port Catalogue."""
        with _asking(self.peer.within(_ANSWER_S)) as association:
            return self._count(association, study_instance_uid, series_instance_uid)

    def find(self, level: Level, keys: Mapping[str, str]) -> list[Mapping[str, str]]:
        """Search by C-FIND; see the port Archive."""
        try:
            asked = _asked(level, keys)
            with _asking(self.peer) as association:
                return [_said(match, keys) for match in self._find(association, asked)]
        except ValueError as error:
            raise FindFailed(
                f"{self.peer.address.ae_title}: a key, or what is answered, is no value of its attribute"
            ) from error

    def fetch(self, listed: Listed) -> bytes:
        """Fetch by C-GET, into memory; see the port Archive."""
        received: list[bytes] = []

        def keep(event: Event) -> int:
            received[:] = [event.encoded_dataset()]
            return SUCCESS

        sop_class = listed.sop_class_uid or str(SegmentationStorage)
        syntaxes = {str(codec.transfer_syntax_uid) for codec in CODECS.values()}
        syntaxes |= set() if sop_class in SEGMENTATION_CLASSES else _OF_IMAGES
        kinds = {(sop_class, syntax) for syntax in syntaxes}
        kinds |= {(str(_GET), str(ImplicitVRLittleEndian))}
        where = self.peer.address.ae_title
        with associate(self.peer, kinds, gets=sop_class, keep=keep) as association:
            if _GET not in {context.abstract_syntax for context in association.accepted_contexts}:
                raise CannotReadBack(f"{where} accepts no C-GET")
            status = get_instance(association, listed, where)
        if not received:
            raise CannotReadBack(f"{where} lists it, answers C-GET with status 0x{status:04X} and gives nothing")
        return received[0]

    def _count(self, association: Association, study: str, series: str) -> int:
        asked = Dataset()
        asked.QueryRetrieveLevel = "SERIES"
        asked.StudyInstanceUID, asked.SeriesInstanceUID = study, series
        asked.NumberOfSeriesRelatedInstances = None
        found = [match for match in self._find(association, asked) if match.get("SeriesInstanceUID") == series]
        if not found:
            return 0
        if found[0].get("NumberOfSeriesRelatedInstances") is not None:
            return int(found[0].NumberOfSeriesRelatedInstances)
        del asked.NumberOfSeriesRelatedInstances
        asked.QueryRetrieveLevel = "IMAGE"
        asked.SOPInstanceUID = None
        return len({str(match.get("SOPInstanceUID")) for match in self._find(association, asked)})

    def _find(self, association: Association, asked: Dataset) -> Iterator[Dataset]:
        """Every match; one that broke off, or was cut short, is none."""
        for status, match in association.send_c_find(asked, _STUDY_ROOT):
            if "Status" not in status:
                raise FindFailed(f"{self.peer.address.ae_title} does not answer C-FIND, or broke off")
            if status.Status in _PENDING and match is not None:
                yield match
            elif status.Status != SUCCESS:
                raise FindFailed(f"{self.peer.address.ae_title} answers C-FIND with status 0x{status.Status:04X}")


@contextmanager
def _asking(peer: DimsePeer) -> Iterator[Association]:
    """An association for C-FIND. Raises FindFailed."""
    kinds = {(str(_STUDY_ROOT), str(syntax)) for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian)}
    try:
        with associate(peer, kinds) as association:
            if not association.accepted_contexts:
                raise FindFailed(f"{peer.address.ae_title} accepts the association, but no C-FIND (Study Root) in it")
            yield association
    except DeliveryFailed as failure:
        raise FindFailed(str(failure)) from failure


def _asked(level: Level, keys: Mapping[str, str]) -> Dataset:
    """The identifier of a search. Raises ValueError for a key that is no value of its attribute."""
    asked = Dataset()
    asked.QueryRetrieveLevel = level
    if not all(value.isascii() for value in keys.values()):
        asked.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in keys.items():
        setattr(asked, keyword, value or None)
    return asked


def _said(match: Dataset, keys: Mapping[str, str]) -> Mapping[str, str]:
    return {keyword: str(match.get(keyword) or "") for keyword in keys}
