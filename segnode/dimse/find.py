"""The Query SCU: asks an application entity how many instances of a series it has (PS3.4 C.6.2, Study Root)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.association import Association
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from segnode.dicom.status import SUCCESS
from segnode.dimse.peer import DimsePeer
from segnode.dimse.scu import associate
from segnode.errors import DeliveryFailed, FindFailed

_STUDY_ROOT: Final = StudyRootQueryRetrieveInformationModelFind
_ANSWER_S: Final = 10.0
_PENDING: Final = (0xFF00, 0xFF01)


@dataclass(frozen=True)
class DimseCatalogue:
    """A peer that is asked by C-FIND; it has ten seconds for an answer at most, because the sweep waits for it."""

    peer: DimsePeer

    def count_instances(self, study_instance_uid: str, series_instance_uid: str) -> int:
        """What the peer says, or where that has no number its instances counted; see the port Catalogue."""
        kinds = {(str(_STUDY_ROOT), str(syntax)) for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian)}
        try:
            with associate(self.peer.within(_ANSWER_S), kinds) as association:
                if not association.accepted_contexts:
                    raise FindFailed(f"{self.peer.address.ae_title} accepts the association, but no C-FIND (Study Root) in it")
                return self._count(association, study_instance_uid, series_instance_uid)
        except DeliveryFailed as failure:
            raise FindFailed(str(failure)) from failure

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
