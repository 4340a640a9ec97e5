"""The header of a Segmentation that was made of another: what is copied, what is new, and what is said of its origin."""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from io import BytesIO
from typing import Final

import numpy as np
from pydicom import DataElement, Dataset
from pydicom.filereader import read_sequence
from pydicom.tag import Tag

from segnode.dicom.attributes import TYPE_2_ATTRIBUTES
from segnode.dicom.codes import BACKGROUND, MODIFYING_EQUIPMENT, SOURCE_IMAGE
from segnode.dicom.transfer_syntaxes import Encoding
from segnode.dicom.uids import MANUFACTURER, derived_uid, is_uid, root_of, segmentation_class
from segnode.errors import CannotConvert, UnreadablePixels
from segnode.seg.colour import recommended_cielab
from segnode.seg.convert.groups import GEOMETRY, KeptGroups
from segnode.seg.frame_items import decimals
from segnode.seg.header_items import (
    code_item,
    contribution_item,
    dimension_item,
    following_series_number,
    reference_item,
    set_creation,
)
from segnode.seg.part10 import sequence_value
from segnode.seg.plain_sequences import plain_items, plain_value, written_items
from segnode.seg.segmentation import Segmentation, SegmentationType

_PALETTE: Final = tuple(f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue"))
# Of the type, the encoding, the dimensions or the signature of the source: what the new object needs is written anew.
_DROPPED: Final = (
    "MaximumFractionalValue",
    "SegmentationFractionalType",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "SegmentsOverlap",
    "ICCProfile",
    "PaletteColorLookupTableUID",
    *(f"{table}{part}" for table in _PALETTE for part in ("Descriptor", "Data")),
    *(f"Segmented{table}Data" for table in _PALETTE),
    "DimensionOrganizationType",
    "DimensionIndexSequence",
    "DimensionOrganizationSequence",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "InstanceCreatorUID",
    "DigitalSignaturesSequence",
    "MACParametersSequence",
    "DataSetTrailingPadding",
)
# Type 2 of every SEG: written empty where the source lacks them.
_REQUIRED_THOUGH_EMPTY: Final = (*TYPE_2_ATTRIBUTES, "ContentDescription")
# Of the source and of the new object alike.
_COPIED_WHOLE: Final = ("SourceImageSequence",)
_LISTED: Final = "ReferencedSeriesSequence"
_SERIES: Final = int(Tag("SeriesInstanceUID"))
_SEGMENT: Final = ("ReferencedSegmentNumber", "SegmentIdentificationSequence")


@dataclass(frozen=True)
class Part:
    """One object of those that a source becomes: `numbers` maps the segment numbers of the source to those here."""

    type: SegmentationType
    numbers: Mapping[int, int]
    place: int = 1
    parts: int = 1
    bits: int = 8
    frames: int = 0


@dataclass(frozen=True)
class Dimensions:
    """What tells planes apart: attributes with their functional groups (keywords), and how they are organized.

    `shared` are the shared functional groups; `own_geometry` orientation and spacing that are of each frame.
    """

    pointers: tuple[tuple[str, str], ...]
    organization_type: str | None
    shared: Dataset
    own_geometry: Collection[str] = ()


def header_of(
    source: Segmentation,
    part: Part,
    dimensions: Dimensions,
    uids: tuple[str, str],
    now: datetime,
    station_name: str,
    encoding: Encoding,
) -> tuple[Dataset, dict[str, bytes]]:
    """The header of a part, without per-frame groups and pixels; `uids` are its SOP instance and series instance UID.

    Then the values of sequences that are not in it, by keyword, in the encoding of the part.
    """
    plain = {} if encoding.implicit_vr else _plain_sequences(source.header)
    sequences = {keyword: plain[keyword] for keyword in _COPIED_WHOLE if keyword in plain}
    header = _copied(source.header, {"SegmentSequence", *sequences})
    for keyword in _DROPPED:
        if keyword in header:
            del header[keyword]
    _complete(header)
    _identify(header, source, part, uids, now)
    _describe_image(header, source, part)
    if segments := _plain_segments(source, part, plain.get("SegmentSequence", b"")):
        sequences["SegmentSequence"] = segments
    else:
        header.SegmentSequence = _segments(source, part)
    _set_dimensions(header, part, dimensions)
    _refer_to_source(header, source)
    if listed := plain.get(_LISTED, b""):
        # What the source refers to, and behind it the source itself.
        sequences[_LISTED] = listed + sequence_value(header[_LISTED].value[-1:])
        del header[_LISTED]
    contribution = _contribution(source, part, now, station_name)
    header.ContributingEquipmentSequence = [*header.get("ContributingEquipmentSequence", ()), contribution]
    return header, sequences


def _plain_sequences(header: Dataset) -> dict[str, bytes]:
    """The long sequences that are written plainly: to decode them and write them again took most of the header's time."""
    values = {keyword: plain_value(header, keyword) for keyword in (*_COPIED_WHOLE, _LISTED, "SegmentSequence")}
    items = {keyword: plain_items(value) for keyword, value in values.items()}
    if any(item.get(_SERIES) == header.get("SeriesInstanceUID") for item in items[_LISTED]):
        # The source is referred to in the item of its own series, which is written anew.
        del items[_LISTED]
    return {keyword: values[keyword] for keyword, found in items.items() if found}


def _plain_segments(source: Segmentation, part: Part, value: bytes) -> bytes:
    """As _segments, of plain items that are to be written as they are; empty where one is not."""
    if not value or _has_palette(source.header) or any(number != new for number, new in part.numbers.items()):
        return b""
    written = dict(zip((segment.number for segment in source.segments), written_items(value), strict=True))
    chosen = [source.segment[number] for number in sorted(part.numbers)]
    if any(segment.algorithm_type != "MANUAL" and not segment.algorithm_name for segment in chosen):
        return b""
    found = b"".join(written[segment.number] for segment in chosen)
    if part.type == "LABELMAP" and 0 not in part.numbers:
        first = written[chosen[0].number]
        read = read_sequence(
            BytesIO(first), is_implicit_VR=False, is_little_endian=True, bytelength=len(first), encoding="iso8859"
        )
        found += sequence_value([_background(read)])
    return found


def _copied(dataset: Dataset, without: Collection[str] = ()) -> Dataset:
    """A data set whose elements can be changed without those of the other; items of sequences are shared, and not changed.

    A deep copy takes a second for the references of a large object.
    """
    copied, left_out = Dataset(), {Tag(keyword) for keyword in without}
    for tag in dataset.keys() - left_out:
        element = dataset[tag]
        copied.add(DataElement(element.tag, element.VR, element.value, already_converted=True))
    return copied


def _complete(header: Dataset) -> None:
    """What every SEG has and some writers leave out."""
    for keyword in _REQUIRED_THOUGH_EMPTY:
        if keyword not in header:
            setattr(header, keyword, None)
    if not header.get("Manufacturer"):
        header.Manufacturer = MANUFACTURER
    defaults = {
        "ManufacturerModelName": header.Manufacturer,
        "DeviceSerialNumber": "unknown",
        "SoftwareVersions": "unknown",
        "ContentLabel": "SEGMENTATION",
        "LossyImageCompression": "00",
    }
    for keyword, value in defaults.items():
        if not header.get(keyword):
            setattr(header, keyword, value)
    if header.get("FrameOfReferenceUID") and "PositionReferenceIndicator" not in header:
        header.PositionReferenceIndicator = None


def _identify(header: Dataset, source: Segmentation, part: Part, uids: tuple[str, str], now: datetime) -> None:
    """SOP common, general series and the description of the content."""
    header.SOPClassUID = segmentation_class(part.type)
    header.SOPInstanceUID, header.SeriesInstanceUID = uids
    header.Modality = "SEG"
    header.SeriesNumber = following_series_number(source.header)
    header.InstanceNumber = part.place
    set_creation(header, now, header)
    header.DerivationDescription = f"{source.type} segmentation converted to {part.type}"
    if part.parts > 1:
        tells = f"part {part.place} of {part.parts}"
        header.ContentLabel = f"{str(header.ContentLabel)[:9]} {part.place}OF{part.parts}"[:16]
        header.ContentDescription = f"{str(header.get('ContentDescription') or '')[:45]} ({tells})".strip()
        header.DerivationDescription += f", {tells}"


def _describe_image(header: Dataset, source: Segmentation, part: Part) -> None:
    """Image pixel and segmentation image (PS3.3 C.8.20.2)."""
    header.ImageType = ["DERIVED", "PRIMARY"]
    header.SegmentationType = part.type
    header.SamplesPerPixel, header.PixelRepresentation = 1, 0
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = part.bits
    header.HighBit = part.bits - 1
    header.NumberOfFrames = part.frames
    if part.type == "LABELMAP":
        header.add_new("PixelPaddingValue", "US", 0)
    if part.type == "FRACTIONAL":
        header.SegmentationFractionalType, header.MaximumFractionalValue = "OCCUPANCY", 255
    overlap = source.header.get("SegmentsOverlap")
    known = overlap in ("YES", "NO") and source.type == "BINARY"
    header.SegmentsOverlap = "NO" if "LABELMAP" in (source.type, part.type) else overlap if known else "UNDEFINED"


def _segments(source: Segmentation, part: Part) -> list[Dataset]:
    """The segments of the part by their new number, then the background of a LABELMAP."""
    colour_of = _palette(source.header, part.numbers)
    items = {int(item.SegmentNumber): item for item in source.header.SegmentSequence}
    found = []
    for number, new in sorted(part.numbers.items(), key=lambda pair: pair[1]):
        item = _copied(items[number])
        item.SegmentNumber = new
        if number in colour_of:
            item.RecommendedDisplayCIELabValue = [*recommended_cielab(colour_of[number])]
        if item.get("SegmentAlgorithmType") != "MANUAL" and not item.get("SegmentAlgorithmName"):
            item.SegmentAlgorithmName = "unknown"
        found.append(item)
    if part.type == "LABELMAP" and 0 not in part.numbers.values():
        found.append(_background(found))
    return found


def _background(segments: Sequence[Dataset]) -> Dataset:
    item = Dataset()
    for keyword in ("SegmentAlgorithmType", "SegmentAlgorithmName", "SegmentationAlgorithmIdentificationSequence"):
        if segments and keyword in segments[0]:
            item[keyword] = deepcopy(segments[0][keyword])
    if not item.get("SegmentAlgorithmType"):
        item.SegmentAlgorithmType = "MANUAL"
    item.SegmentNumber = 0
    item.SegmentLabel = "Background"
    item.SegmentedPropertyCategoryCodeSequence = [code_item(BACKGROUND)]
    item.SegmentedPropertyTypeCodeSequence = [code_item(BACKGROUND)]
    return item


def _has_palette(header: Dataset) -> bool:
    return bool(header.get("PhotometricInterpretation") == "PALETTE COLOR")


def _palette(header: Dataset, numbers: Collection[int]) -> Mapping[int, tuple[int, int, int]]:
    """The sRGB colour of numbers in a PALETTE COLOR image; none for any other. Raises CannotConvert for a wrong palette."""
    if not _has_palette(header):
        return {}
    from segnode.dicom.display import palette_colours  # noqa: PLC0415  seldom needed

    try:
        colours = palette_colours(np.array([*numbers], np.uint16), header).tolist()
    except UnreadablePixels as error:
        wrong = "RedPaletteColorLookupTableDescriptor, or another of its palette, is missing or wrong"
        raise CannotConvert(f"{wrong}: the colours of its segments cannot be kept") from error
    return {number: (red, green, blue) for number, (red, green, blue) in zip(numbers, colours, strict=True)}


def _set_dimensions(header: Dataset, part: Part, dimensions: Dimensions) -> None:
    """Multi-frame dimension and the shared functional groups (PS3.3 C.7.6.17, C.7.6.16)."""
    root = root_of(str(header.SOPInstanceUID))
    uid = derived_uid("dimension organization", str(header.SOPInstanceUID), root=root)
    organization = Dataset()
    organization.DimensionOrganizationUID = uid
    header.DimensionOrganizationSequence = [organization]
    pointers = dimensions.pointers if part.type == "LABELMAP" else (_SEGMENT, *dimensions.pointers)
    header.DimensionIndexSequence = [dimension_item(uid, *pointer, pointer[0]) for pointer in pointers]
    if dimensions.organization_type is not None:
        header.DimensionOrganizationType = dimensions.organization_type
    header.SharedFunctionalGroupsSequence = [dimensions.shared]
    geometry = any(keyword in dimensions.shared for keyword in GEOMETRY) or dimensions.own_geometry
    if not header.get("FrameOfReferenceUID") and geometry:
        # Positions need one (PS3.3 A.51.3); a series without its own is a frame of reference of its own.
        series = next((str(item.SeriesInstanceUID) for item in header.get("ReferencedSeriesSequence", ())), "")
        header.FrameOfReferenceUID = derived_uid("frame of reference", series or str(header.SeriesInstanceUID), root=root)
        header.PositionReferenceIndicator = None


def shared_groups(source: Segmentation, kept: KeptGroups, *, keep_places: bool) -> Dataset:
    """What all frames share, with orientation and spacing where each frame says the same. Raises CannotConvert."""
    shared = deepcopy(next(iter(source.header.get("SharedFunctionalGroupsSequence") or ()), Dataset()))
    of_frames = ["SegmentIdentificationSequence", "FrameContentSequence", *kept.geometry]
    if not keep_places:
        of_frames += ["PlanePositionSequence", "PlanePositionSlideSequence"]
    for keyword in of_frames:
        if keyword in shared:
            del shared[keyword]
    table = source.table
    if len(table.orientations) > 1:
        raise CannotConvert("ImageOrientationPatient differs from frame to frame: a segmentation has one for all its frames")
    missing = {keyword for keyword in GEOMETRY if keyword not in shared} - kept.own_geometry
    if "PlaneOrientationSequence" in missing and table.orientations and not source.is_tiled:
        item = Dataset()
        item.ImageOrientationPatient = decimals(table.orientations[0]).split("\\")
        shared.PlaneOrientationSequence = [item]
    if "PixelMeasuresSequence" in missing and table.spacings:
        item = Dataset()
        item.PixelSpacing = decimals(table.spacings[0]).split("\\")
        if table.slice_thickness:
            item.SliceThickness = decimals((table.slice_thickness,))
        if table.spacing_between_slices:
            item.SpacingBetweenSlices = decimals((table.spacing_between_slices,))
        shared.PixelMeasuresSequence = [item]
    return shared


def _refer_to_source(header: Dataset, source: Segmentation) -> None:
    """The SEG that this was made of, in the general reference and in the common instance reference (PS3.3 C.12.2)."""
    reference = reference_item(source.header)
    reference.PurposeOfReferenceCodeSequence = [code_item(SOURCE_IMAGE)]
    header.ReferencedInstanceSequence = [*header.get("ReferencedInstanceSequence", ()), reference]
    series = str(source.header.get("SeriesInstanceUID") or "")
    if not is_uid(series):
        raise CannotConvert("SeriesInstanceUID is missing: the new object could not refer to the one that it was made of")
    listed = list(header.get("ReferencedSeriesSequence", ()))
    own = [item for item in listed if item.get("SeriesInstanceUID") == series]
    item = Dataset()
    item.SeriesInstanceUID = series
    item.ReferencedInstanceSequence = [
        *(i for same in own for i in same.ReferencedInstanceSequence),
        reference_item(source.header),
    ]
    header.ReferencedSeriesSequence = [*(other for other in listed if other.get("SeriesInstanceUID") != series), item]


def _contribution(source: Segmentation, part: Part, now: datetime, station_name: str) -> Dataset:
    item = contribution_item(MODIFYING_EQUIPMENT, version("segnode"), now)
    item.ContributionDescription = f"{source.type} segmentation converted to {part.type}"
    if station_name:
        item.StationName = station_name
    return item
