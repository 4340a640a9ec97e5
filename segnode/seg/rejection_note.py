"""Rejection notes: Key Object Selections that tell an archive to hide a SEG that was replaced (PS3.3 A.35.4, IHE RAD IOCM)."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydicom import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage

from segnode.dicom.attributes import COPIED_ATTRIBUTES
from segnode.dicom.codes import PROCESSING_EQUIPMENT, REJECTED, Code
from segnode.dicom.uids import MANUFACTURER, derived_uid, root_of
from segnode.seg.header_items import code_item, contribution_item, set_creation
from segnode.seg.part10 import part10_without_pixels

_COPIED: Final = (*COPIED_ATTRIBUTES, "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber")
_TITLE_MODIFIER: Final = Code("DCM", "113011", "Document Title Modifier")
_DESCRIPTION: Final = Code("DCM", "113012", "Key Object Description")
# Of the reasons in CID 7011 none is that there is a better one; the text says it.
_OTHER_FAILURE: Final = Code("DCM", "111220", "Other failure")
_OBSERVER_TYPE: Final = Code("DCM", "121005", "Observer Type")
_DEVICE: Final = Code("DCM", "121007", "Device")
_DEVICE_UID: Final = Code("DCM", "121012", "Device Observer UID")
_DEVICE_NAME: Final = Code("DCM", "121013", "Device Observer Name")


@dataclass(frozen=True)
class NoteIdentity:
    """What a rejection note is called, when it was made, and by whom: `created` has a zone."""

    sop_instance_uid: str
    series_instance_uid: str
    created: datetime
    station_name: str


def rejection_note(rejected: str, replacement: Dataset, identity: NoteIdentity) -> bytes:
    """The note that rejects a SEG of that UID, as a Part 10 file.

    `replacement` is the header of the SEG that took its place: of the same patient, study, series, SOP class and device.
    """
    note = Dataset()
    for keyword in _COPIED:
        if keyword in replacement:
            note.add(replacement[keyword])
    note.SOPClassUID, note.SOPInstanceUID = KeyObjectSelectionDocumentStorage, identity.sop_instance_uid
    note.SeriesInstanceUID = identity.series_instance_uid
    note.Modality = "KO"
    note.SeriesNumber = int(replacement.SeriesNumber) + 1
    note.SeriesDescription = "Rejection notes"
    note.ReferencedPerformedProcedureStepSequence = []
    note.InstanceNumber = int(replacement.InstanceNumber)
    set_creation(note, identity.created, replacement)
    contribution = contribution_item(PROCESSING_EQUIPMENT, str(replacement.SoftwareVersions), identity.created)
    contribution.StationName, contribution.DeviceSerialNumber = identity.station_name, replacement.DeviceSerialNumber
    note.ContributingEquipmentSequence = [contribution]
    note.CurrentRequestedProcedureEvidenceSequence = [_evidence(rejected, replacement)]
    _set_content(note, rejected, replacement)
    return part10_without_pixels(note)


def _evidence(rejected: str, replacement: Dataset) -> Dataset:
    study, series = Dataset(), Dataset()
    series.SeriesInstanceUID = replacement.SeriesInstanceUID
    series.ReferencedSOPSequence = [_reference(rejected, replacement)]
    study.StudyInstanceUID = replacement.StudyInstanceUID
    study.ReferencedSeriesSequence = [series]
    return study


def _reference(rejected: str, replacement: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = replacement.SOPClassUID, rejected
    return item


def _set_content(note: Dataset, rejected: str, replacement: Dataset) -> None:
    """TID 2010: the title is the reason, with its modifier (CID 7011), who says so, and what is rejected."""
    template = Dataset()
    template.MappingResource, template.TemplateIdentifier = "DCMR", "2010"
    note.ValueType = "CONTAINER"
    note.ContinuityOfContent = "SEPARATE"
    note.ConceptNameCodeSequence = [code_item(REJECTED)]
    note.ContentTemplateSequence = [template]
    modifier = _content("HAS CONCEPT MOD", "CODE", _TITLE_MODIFIER)
    modifier.ConceptCodeSequence = [code_item(_OTHER_FAILURE)]
    observer = _content("HAS OBS CONTEXT", "CODE", _OBSERVER_TYPE)
    observer.ConceptCodeSequence = [code_item(_DEVICE)]
    device = _content("HAS OBS CONTEXT", "UIDREF", _DEVICE_UID)
    device.UID = derived_uid(
        "device", MANUFACTURER, str(replacement.DeviceSerialNumber), root=root_of(str(note.SOPInstanceUID))
    )
    name = _content("HAS OBS CONTEXT", "TEXT", _DEVICE_NAME)
    name.TextValue = str(replacement.DeviceSerialNumber)
    description = _content("CONTAINS", "TEXT", _DESCRIPTION)
    description.TextValue = f"Made of some images of its series; replaced by {replacement.SOPInstanceUID}, made of all"
    image = _content("CONTAINS", "IMAGE", None)
    image.ReferencedSOPSequence = [_reference(rejected, replacement)]
    note.ContentSequence = [modifier, observer, device, name, description, image]


def _content(relationship: str, value_type: str, concept: Code | None) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = relationship, value_type
    if concept is not None:
        item.ConceptNameCodeSequence = [code_item(concept)]
    return item
