"""Writing LABELMAP segmentations (PS3.3 A.51 and C.8.20, Supplement 243)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.valuerep import DSfloat, format_number_as_ds

from segnode.dicom.codes import Code
from segnode.dicom.geometry import Vector
from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, MANUFACTURER, derived_uid, is_uid
from segnode.seg.colour import recommended_cielab
from segnode.seg.forms import Form
from segnode.seg.pixels import set_pixels
from segnode.seg.segments import LabelDictionary, Segment

# Part of every derived UID: raise it when the same labels are written as another object.
ENCODER_REVISION: Final = "3"

_COPIED = (
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
)
# Type 2 there, type 2 here: written empty where the source lacks them.
_REQUIRED_THOUGH_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)
_SEGMENTATION = Code("DCM", "113076", "Segmentation")
_SOURCE_IMAGE = Code("DCM", "121322", "Source image for image processing operation")
_BACKGROUND = Code("DCM", "125040", "Background")
_PROCESSING_EQUIPMENT = Code("DCM", "109102", "Processing Equipment")
_LOSSY = "LossyImageCompression"


@dataclass(frozen=True)
class Algorithm:
    """What made the labels: its name and version, and its family as coded in CID 7162."""

    name: str
    version: str
    family: Code


@dataclass(frozen=True)
class Identity:
    """What a new SEG is called and says of its origin: `created` has a zone, `tracking_uids` is by segment number."""

    sop_instance_uid: str
    series_instance_uid: str
    series_description: str
    created: datetime
    device_serial_number: str
    software_version: str
    tracking_uids: Mapping[int, str]


def write_labelmap(
    labelmap: npt.NDArray[np.unsignedinteger],
    affine: Vector,
    images: Sequence[Dataset],
    dictionary: LabelDictionary,
    algorithm: Algorithm,
    identity: Identity,
    form: Form,
) -> bytes:
    """A LABELMAP SEG as a Part 10 file.

    `labelmap` is (slices, rows, columns), uint8 or uint16, of segment numbers; `affine` maps (slice, row, column) to LPS
    mm; `images` are the headers of the single-frame images that the slices lie on, one a slice, in slice order.
    """
    dataset = _identification(images[0], algorithm, identity, form)
    dataset.update(_image_description(labelmap, images))
    dataset.SegmentSequence = _segments(dictionary, algorithm, identity)
    dataset.ReferencedSeriesSequence = [_referenced_series(images)]
    dataset.update(_functional_groups(affine, images))
    _use_a_character_set_for(dataset, dictionary, algorithm)
    set_pixels(dataset, labelmap, form)
    return _part10(dataset, form)


def _identification(image: Dataset, algorithm: Algorithm, identity: Identity, form: Form) -> Dataset:
    """Patient, study, series, equipment and SOP common (PS3.3 A.51.3)."""
    dataset = Dataset()
    for keyword in _COPIED:
        if keyword in image:
            dataset.add_new(keyword, image[keyword].VR, image[keyword].value)
    for keyword in _REQUIRED_THOUGH_EMPTY:
        if keyword not in dataset:
            setattr(dataset, keyword, None)
    if not is_uid(str(dataset.get("FrameOfReferenceUID") or "")):
        # Positions need one (PS3.3 A.51.3); a series without its own is a frame of reference of its own.
        dataset.FrameOfReferenceUID = derived_uid("frame of reference", str(image.SeriesInstanceUID))
    dataset.SOPClassUID = form.sop_class_uid
    dataset.SOPInstanceUID = identity.sop_instance_uid
    dataset.SeriesInstanceUID = identity.series_instance_uid
    dataset.SeriesNumber = _series_number(image)
    dataset.SeriesDescription = identity.series_description[:64]
    dataset.Modality = "SEG"
    dataset.InstanceNumber = 1
    created = identity.created.astimezone(_zone_of(image))
    dataset.InstanceCreationDate = dataset.ContentDate = dataset.SeriesDate = created.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.ContentTime = dataset.SeriesTime = created.strftime("%H%M%S.%f")
    dataset.Manufacturer = dataset.ManufacturerModelName = MANUFACTURER
    dataset.DeviceSerialNumber = identity.device_serial_number
    dataset.SoftwareVersions = identity.software_version
    dataset.ContributingEquipmentSequence = [_contribution(identity)]
    dataset.ContentLabel = "SEGMENTATION"
    dataset.ContentDescription = f"{algorithm.name} {algorithm.version}"[:64]
    dataset.ContentCreatorName = None
    return dataset


def _contribution(identity: Identity) -> Dataset:
    """What made this object, as it stays said when an archive puts its own name into the equipment module (PS3.3 C.12.1)."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [_code(_PROCESSING_EQUIPMENT)]
    item.Manufacturer = item.ManufacturerModelName = MANUFACTURER
    item.StationName = item.DeviceSerialNumber = identity.device_serial_number
    item.SoftwareVersions = identity.software_version
    item.ContributionDateTime = identity.created.strftime("%Y%m%d%H%M%S.%f%z")
    return item


def _zone_of(image: Dataset) -> tzinfo | None:
    """The zone that the study's dates and times are in; None, which is local time, where it does not say."""
    offset = str(image.get("TimezoneOffsetFromUTC") or "")
    try:
        return datetime.strptime(offset, "%z").tzinfo
    except ValueError:
        return None


def _series_number(image: Dataset) -> int:
    """A number that sorts behind the source series and tells of it: series 3 gives 301."""
    source = int(image.get("SeriesNumber") or 0)
    return source * 100 + 1 if 0 <= source < 10_000_000 else 1


def _image_description(labelmap: npt.NDArray[np.unsignedinteger], images: Sequence[Dataset]) -> Dataset:
    """General image, image pixel and segmentation image (PS3.3 C.8.20.2)."""
    dataset = Dataset()
    bits = labelmap.dtype.itemsize * 8
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SegmentationType = "LABELMAP"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = labelmap.shape
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelPaddingValue = 0
    dataset.SegmentsOverlap = "NO"
    lossy = next((image for image in images if image.get(_LOSSY) == "01"), None)
    dataset.LossyImageCompression = "01" if lossy is not None else "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if lossy is not None and keyword in lossy:
            dataset.add_new(keyword, lossy[keyword].VR, lossy[keyword].value)
    return dataset


def _segments(dictionary: LabelDictionary, algorithm: Algorithm, identity: Identity) -> list[Dataset]:
    """The dictionary's segments by number, then the background: viewers that colour by position expect number 1 first."""
    ordered = sorted(dictionary.segment, key=lambda segment: segment.segment_number)
    items = [_segment(segment, algorithm, identity.tracking_uids.get(segment.segment_number)) for segment in ordered]
    return [*items, _background(algorithm)]


def _segment(segment: Segment, algorithm: Algorithm, tracking_uid: str | None) -> Dataset:
    item = _algorithm_item(algorithm)
    item.SegmentNumber = segment.segment_number
    item.SegmentLabel = segment.label
    item.SegmentedPropertyCategoryCodeSequence = [_code(segment.category)]
    item.SegmentedPropertyTypeCodeSequence = [_code(segment.type)]
    if segment.modifier is not None:
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [_code(segment.modifier)]
    if segment.region is not None:
        item.AnatomicRegionSequence = [_code(segment.region)]
    if segment.colour is not None:
        item.RecommendedDisplayCIELabValue = recommended_cielab(segment.colour)
    if tracking_uid is not None:
        item.TrackingID, item.TrackingUID = segment.label, tracking_uid
    return item


def _background(algorithm: Algorithm) -> Dataset:
    item = _algorithm_item(algorithm)
    item.SegmentNumber = 0
    item.SegmentLabel = "Background"
    item.SegmentedPropertyCategoryCodeSequence = [_code(_BACKGROUND)]
    item.SegmentedPropertyTypeCodeSequence = [_code(_BACKGROUND)]
    return item


def _algorithm_item(algorithm: Algorithm) -> Dataset:
    identification = Dataset()
    identification.AlgorithmFamilyCodeSequence = [_code(algorithm.family)]
    identification.AlgorithmName = algorithm.name
    identification.AlgorithmVersion = algorithm.version
    item = Dataset()
    item.SegmentAlgorithmType = "AUTOMATIC"
    item.SegmentAlgorithmName = algorithm.name
    item.SegmentationAlgorithmIdentificationSequence = [identification]
    return item


def _code(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme
    item.CodeMeaning = code.meaning
    return item


def _referenced_series(images: Sequence[Dataset]) -> Dataset:
    """Common instance reference (PS3.3 C.12.2): every image that a frame refers to."""
    item = Dataset()
    item.SeriesInstanceUID = images[0].SeriesInstanceUID
    item.ReferencedInstanceSequence = [_reference(image) for image in images]
    return item


def _reference(image: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = image.SOPClassUID
    item.ReferencedSOPInstanceUID = image.SOPInstanceUID
    return item


def _functional_groups(affine: Vector, images: Sequence[Dataset]) -> Dataset:
    """Multi-frame dimension and functional groups (PS3.3 C.7.6.17, C.7.6.16); frames differ in their position only."""
    organization_uid = derived_uid("dimension organization", *(str(image.SOPInstanceUID) for image in images))
    organization, index = Dataset(), Dataset()
    organization.DimensionOrganizationUID = index.DimensionOrganizationUID = organization_uid
    index.DimensionIndexPointer = Tag("ImagePositionPatient")
    index.FunctionalGroupPointer = Tag("PlanePositionSequence")
    index.DimensionDescriptionLabel = "Image Position Patient"
    dataset = Dataset()
    dataset.DimensionOrganizationType = "3D"
    dataset.DimensionOrganizationSequence = [organization]
    dataset.DimensionIndexSequence = [index]
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(affine, images[0])]
    dataset.PerFrameFunctionalGroupsSequence = [_frame_groups(i, image) for i, image in enumerate(images)]
    return dataset


def _shared_groups(affine: Vector, image: Dataset) -> Dataset:
    measures, orientation = Dataset(), Dataset()
    between_slices = f"{np.linalg.norm(affine[:3, 0]):.10g}"
    thickness = image.get("SliceThickness")
    measures.SliceThickness = _decimal(thickness) if thickness and thickness > 0 else between_slices
    measures.SpacingBetweenSlices = between_slices
    measures.PixelSpacing = [_decimal(value) for value in image.PixelSpacing]
    orientation.ImageOrientationPatient = [_decimal(value) for value in image.ImageOrientationPatient]
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    return shared


def _decimal(value: DSfloat) -> str:
    """A DS as the source wrote it; where that is longer than a DS may be, rounded to what fits (PS3.5 6.2)."""
    written = str(value)
    return written if len(written) <= 16 else format_number_as_ds(float(value))


def _frame_groups(index: int, image: Dataset) -> Dataset:
    source = _reference(image)
    source.SpatialLocationsPreserved = "YES"
    source.PurposeOfReferenceCodeSequence = [_code(_SOURCE_IMAGE)]
    derivation, content, position = Dataset(), Dataset(), Dataset()
    derivation.DerivationCodeSequence = [_code(_SEGMENTATION)]
    derivation.SourceImageSequence = [source]
    content.DimensionIndexValues = [index + 1]
    position.ImagePositionPatient = [_decimal(value) for value in image.ImagePositionPatient]
    groups = Dataset()
    groups.DerivationImageSequence = [derivation]
    groups.FrameContentSequence = [content]
    groups.PlanePositionSequence = [position]
    return groups


def _use_a_character_set_for(dataset: Dataset, dictionary: LabelDictionary, algorithm: Algorithm) -> None:
    """Keep the source's character set unless what we write ourselves does not fit it: then UTF-8 holds both."""
    codes = [c for s in dictionary.segment for c in (s.category, s.type, s.modifier, s.region) if c is not None]
    own = [*(s.label for s in dictionary.segment), *(c.meaning for c in codes), algorithm.name, algorithm.version]
    if not all(text.isascii() for text in own):
        for element in dataset:
            if element.VR == "PN" and element.value:
                element.value = str(element.value)
        dataset.SpecificCharacterSet = "ISO_IR 192"


def _part10(dataset: Dataset, form: Form) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = form.transfer_syntax_uid
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    dataset.file_meta = meta
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
