"""Writing segmentations: labelmaps, stacked segments and probabilities as Part 10 files (PS3.3 A.51 and C.8.20)."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from segnode.dicom.attributes import COPIED_ATTRIBUTES, TYPE_2_ATTRIBUTES
from segnode.dicom.codes import PROCESSING_EQUIPMENT, REPLACED, SEGMENTATION, SOURCE_IMAGE
from segnode.dicom.geometry import Vector
from segnode.dicom.transfer_syntaxes import encoding_of
from segnode.dicom.uids import MANUFACTURER, UUID_ROOT, derived_uid, is_uid, segmentation_class
from segnode.errors import LabelError
from segnode.seg.codecs import CODECS, CodecName
from segnode.seg.forms import Form
from segnode.seg.frame_groups import SourceImage
from segnode.seg.frame_items import FrameItem, decimals, referenced_series
from segnode.seg.header_items import (
    code_item,
    contribution_item,
    dimension_item,
    following_series_number,
    reference_item,
    set_creation,
)
from segnode.seg.part10 import part10
from segnode.seg.pixels import pixel_data
from segnode.seg.segmentation import DescribedSegment, SegmentationType
from segnode.seg.segments import LabelDictionary
from segnode.seg.write.describe import (
    Algorithm,
    described_segments,
    require_described,
    segment_items,
    set_palette,
    texts,
    with_background,
    without_colours,
)
from segnode.seg.write.layout import Layout, Pixels, lay_out, lay_out_layers, shaped
from segnode.seg.write.placement import Matrix, Placement, on_volume, source_of, text_of

__all__ = ["ENCODER_REVISION", "Algorithm", "Identity", "StoredAs", "write_labelmap", "write_labels", "write_segmentation"]

# Part of every derived UID: raise it when the same labels are written as another object.
ENCODER_REVISION: Final = "5"

_COPIED: Final = (*COPIED_ATTRIBUTES, "FrameOfReferenceUID", "PositionReferenceIndicator")
_REQUIRED_THOUGH_EMPTY: Final = (*TYPE_2_ATTRIBUTES, "PositionReferenceIndicator")
_SPECIMEN = (
    "ContainerIdentifier",
    "IssuerOfTheContainerIdentifierSequence",
    "ContainerTypeCodeSequence",
    "SpecimenDescriptionSequence",
)
_LOSSY = "LossyImageCompression"


FractionalType = Literal["PROBABILITY", "OCCUPANCY"]


@dataclass(frozen=True)
class Identity:
    """What a new SEG is called and says of its origin: `created` has a zone, `tracking_uids` is by segment number.

    Without a series number the SEG gets one that tells of the source's. `replaces` is an earlier SEG of the same series, of
    the SOP class `replaced_class`, its own where that is not given; `series_created` when the first of that series was.
    `station_name` is how what made it calls itself, the serial number where it does not; further UIDs are derived under
    `uid_root`.
    """

    sop_instance_uid: str
    series_instance_uid: str
    series_description: str
    created: datetime
    device_serial_number: str
    software_version: str
    tracking_uids: Mapping[int, str] = field(default_factory=dict)
    manufacturer: str = MANUFACTURER
    manufacturer_model_name: str = MANUFACTURER
    series_number: int | None = None
    instance_number: int = 1
    content_label: str = "SEGMENTATION"
    content_description: str = ""
    content_creator_name: str = ""
    series_created: datetime | None = None
    replaces: str = ""
    replaced_class: str = ""
    station_name: str = ""
    uid_root: str = UUID_ROOT


@dataclass(frozen=True)
class Pyramid:
    """The multi-resolution pyramid that a SEG is a level of (PS3.3 C.8.12.14)."""

    uid: str
    label: str = ""


@dataclass(frozen=True)
class StoredAs:
    """How a segmentation is stored; `maximum_fractional_value` stands for 1 in a FRACTIONAL one, `palette` is of a LABELMAP."""

    type: SegmentationType = "LABELMAP"
    codec: CodecName = "native"
    omit_empty_frames: bool = True
    fractional_type: FractionalType = "PROBABILITY"
    maximum_fractional_value: int = 255
    palette: bool = False


def write_labelmap(
    labelmap: npt.NDArray[np.unsignedinteger],
    affine: Vector,
    images: Sequence[Dataset],
    dictionary: LabelDictionary,
    algorithm: Algorithm,
    identity: Identity,
    form: Form,
) -> bytes:
    """A LABELMAP SEG with a frame for every slice, as a Part 10 file.

    `labelmap` is (slices, rows, columns), uint8 or uint16, of segment numbers; `affine` maps (slice, row, column) to LPS
    mm; `images` are the headers of the single-frame images, or of the frames of one image, that the slices lie on, one a
    slice, in slice order; on planar images slices have no place. Raises LabelError, NotAVolume.
    """
    return write_labels(labelmap, on_volume(images, affine), dictionary, algorithm, identity, form)


def write_labels(
    labels: npt.NDArray[np.unsignedinteger],
    placement: Placement,
    dictionary: LabelDictionary,
    algorithm: Algorithm,
    identity: Identity,
    form: Form,
) -> bytes:
    """A SEG of segment numbers ([layers,] planes, rows, columns), uint8 or uint16, that lie where a placement says.

    One layer becomes a LABELMAP with a frame for every plane. Layers, in which segments may overlap, become a BINARY, native,
    whose segments count 1, 2, 3 … in the order of the dictionary's numbers. Raises LabelError.
    """
    segments = described_segments(dictionary, algorithm, identity.tracking_uids)
    named = replace(identity, content_description=f"{algorithm.name} {algorithm.version}"[:64])
    if labels.ndim == 3:
        stored_as = StoredAs("LABELMAP", form.codec.name, omit_empty_frames=False)
        return write_segmentation(labels, placement, segments, stored_as, named)
    layout = lay_out_layers(labels, [segment.number for segment in segments], placement.order)
    counted = [replace(segment, number=number) for number, segment in enumerate(segments, start=1)]
    require_described(counted, "BINARY")
    return _write(layout, labels.shape[-2:], placement, counted, StoredAs("BINARY"), named, None)


def write_segmentation(
    pixels: Pixels,
    placement: Placement,
    segments: Sequence[DescribedSegment],
    stored_as: StoredAs,
    identity: Identity,
    pyramid: Pyramid | None = None,
) -> bytes:
    """A SEG as a Part 10 file, of pixels that lie where a placement says.

    `pixels` are labels (planes, rows, columns) of segment numbers; stacked segments (planes, rows, columns, segments) of 0
    and 1, in the order of `segments`; or probabilities, which are stacked too, of 0 to 1; one plane needs no axis of planes.
    On a slide they are the total pixel matrix, as one plane. Raises LabelError for pixels that do not fit the segments, the
    placement or the form; OverlappingSegments for segments that a LABELMAP cannot hold.
    """
    _require_form(stored_as)
    require_described(segments, stored_as.type)
    planes = _require_placed(shaped(pixels, placement.matrix), placement)
    full = placement.matrix is not None and placement.matrix.full
    layout = lay_out(
        planes,
        stored_as.type,
        [segment.number for segment in segments],
        placement.order,
        omit_empty=stored_as.omit_empty_frames and not full,
        maximum=stored_as.maximum_fractional_value,
    )
    return _write(layout, planes.shape[1:3], placement, segments, stored_as, identity, pyramid)


def _write(
    layout: Layout,
    size: tuple[int, ...],
    placement: Placement,
    segments: Sequence[DescribedSegment],
    stored_as: StoredAs,
    identity: Identity,
    pyramid: Pyramid | None,
) -> bytes:
    """Frames of rows and columns (`size`) as a Part 10 file."""
    codec = CODECS[stored_as.codec]
    full = placement.matrix is not None and placement.matrix.full
    described = with_background(segments) if stored_as.type == "LABELMAP" else tuple(segments)
    header = _identification(placement, identity, stored_as.type)
    header.update(_image_description(layout, size, placement.images, stored_as))
    if stored_as.palette:
        set_palette(header, described)
        described = without_colours(described)
    header.update(_organization(layout, placement, stored_as.type, identity))
    if placement.matrix is not None:
        header.update(_slide(placement.images[0], placement.matrix, placement.orientation, pyramid))
    own = [identity.series_description, identity.content_description, identity.content_creator_name]
    equipment = [identity.manufacturer, identity.manufacturer_model_name, identity.device_serial_number]
    _use_a_character_set_for(header, [*texts(described), *own, *equipment])
    items = [] if full else _frame_items(layout, placement, stored_as.type)
    encoding = encoding_of(codec.transfer_syntax_uid)
    sequences = {
        "ReferencedSeriesSequence": referenced_series(_references(placement.images, header), encoding),
        "SegmentSequence": segment_items(described, encoding),
    }
    return part10(header, items, pixel_data(layout.frames, codec), codec, sequences)


def _require_form(stored_as: StoredAs) -> None:
    codec, kind = CODECS.get(stored_as.codec), stored_as.type
    if kind not in get_args(SegmentationType):
        raise LabelError(f"SegmentationType is none of {', '.join(get_args(SegmentationType))}")
    if codec is None:
        raise LabelError(f"{stored_as.codec} is no way to write labels, which are never lossy: take one of {', '.join(CODECS)}")
    if kind == "BINARY" and 1 not in codec.bits:
        able = ", ".join(name for name, other in CODECS.items() if 1 in other.bits)
        raise LabelError(f"{codec.name} has no frames of 1 bit, which a BINARY segmentation has: take one of {able}")
    if not 1 <= stored_as.maximum_fractional_value <= 255:
        raise LabelError(f"MaximumFractionalValue is {stored_as.maximum_fractional_value}: 8 bits hold 1 to 255")
    if stored_as.fractional_type not in get_args(FractionalType):
        raise LabelError(f"SegmentationFractionalType is none of {', '.join(get_args(FractionalType))}")
    if stored_as.palette and kind != "LABELMAP":
        raise LabelError(f"a {kind} segmentation has no palette: give its segments colours (RecommendedDisplayCIELabValue)")


def _require_placed(planes: Pixels, placement: Placement) -> Pixels:
    if len(planes) != len(placement.places):
        raise LabelError(f"the pixels have {len(planes)} planes, where {len(placement.places)} are placed: give one for each")
    if placement.size is not None and planes.shape[1:3] != placement.size:
        rows, columns = placement.size
        raise LabelError(
            f"the planes have {planes.shape[1]} rows and {planes.shape[2]} columns, where the images they lie on have {rows}"
            f" and {columns}: resample them, or place them on a grid of their own"
        )
    return planes


def _identification(placement: Placement, identity: Identity, kind: SegmentationType) -> Dataset:
    """Patient, study, series, equipment and SOP common (PS3.3 A.51.3)."""
    dataset, image = Dataset(), placement.images[0]
    for keyword in _COPIED:
        if keyword in image:
            dataset.add_new(keyword, image[keyword].VR, image[keyword].value)
    for keyword in _REQUIRED_THOUGH_EMPTY:
        if keyword not in dataset:
            setattr(dataset, keyword, None)
    if not placement.has_positions:
        # Without positions a frame of reference would say what is not so (PS3.3 A.51.3).
        del dataset.PositionReferenceIndicator
        if "FrameOfReferenceUID" in dataset:
            del dataset.FrameOfReferenceUID
    elif not is_uid(str(dataset.get("FrameOfReferenceUID") or "")):
        # Positions need one (PS3.3 A.51.3); a series without its own is a frame of reference of its own.
        series = str(image.SeriesInstanceUID)
        dataset.FrameOfReferenceUID = derived_uid("frame of reference", series, root=identity.uid_root)
    if placement.matrix is not None or not placement.has_positions:
        dataset.PatientOrientation = image.get("PatientOrientation") or None
    dataset.SOPClassUID = segmentation_class(kind)
    dataset.SOPInstanceUID = identity.sop_instance_uid
    dataset.SeriesInstanceUID = identity.series_instance_uid
    dataset.SeriesNumber = following_series_number(image) if identity.series_number is None else identity.series_number
    dataset.SeriesDescription = identity.series_description[:64]
    dataset.Modality = "SEG"
    dataset.InstanceNumber = identity.instance_number
    set_creation(dataset, identity.created, image, identity.series_created)
    if identity.replaces:
        dataset.ReferencedImageSequence = [_replaced_item(identity.replaced_class or dataset.SOPClassUID, identity.replaces)]
    dataset.Manufacturer, dataset.ManufacturerModelName = identity.manufacturer, identity.manufacturer_model_name
    dataset.DeviceSerialNumber = identity.device_serial_number
    dataset.SoftwareVersions = identity.software_version
    dataset.ContributingEquipmentSequence = [_contribution(identity)]
    dataset.ContentLabel = identity.content_label
    dataset.ContentDescription = identity.content_description or None
    dataset.ContentCreatorName = identity.content_creator_name or None
    return dataset


def _replaced_item(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    """The item of ReferencedImageSequence (PS3.3 C.12.4): a SEG is an image, what it replaces is one that relates to it."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    item.PurposeOfReferenceCodeSequence = [code_item(REPLACED)]
    return item


def _contribution(identity: Identity) -> Dataset:
    """What made this object; by the station's name the node knows its own again."""
    item = contribution_item(PROCESSING_EQUIPMENT, identity.software_version, identity.created)
    item.StationName = identity.station_name or identity.device_serial_number
    item.DeviceSerialNumber = identity.device_serial_number
    return item


def _image_description(layout: Layout, size: tuple[int, ...], images: Sequence[Dataset], stored_as: StoredAs) -> Dataset:
    """General image, image pixel and segmentation image (PS3.3 C.8.20.2)."""
    dataset = Dataset()
    bits = 1 if layout.frames.dtype == np.bool_ else layout.frames.dtype.itemsize * 8
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SegmentationType = stored_as.type
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.NumberOfFrames = len(layout.frames)
    dataset.Rows, dataset.Columns = size
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    dataset.SegmentsOverlap = layout.overlap
    if stored_as.type == "LABELMAP":
        dataset.PixelPaddingValue = 0
    if stored_as.type == "FRACTIONAL":
        dataset.SegmentationFractionalType = stored_as.fractional_type
        dataset.MaximumFractionalValue = stored_as.maximum_fractional_value
    lossy = next((image for image in images if text_of(image, _LOSSY) == "01"), None)
    dataset.LossyImageCompression = "01" if lossy is not None else "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if lossy is not None and keyword in lossy:
            dataset.add_new(keyword, lossy[keyword].VR, lossy[keyword].value)
    return dataset


def _references(images: Sequence[Dataset], header: Dataset) -> dict[str, list[SourceImage]]:
    """Every image that frames were made from, then what the SEG replaces, by its series (PS3.3 C.12.2)."""
    of_series: dict[str, list[SourceImage]] = {}
    for image in images:
        of_series.setdefault(text_of(image, "SeriesInstanceUID"), []).append(source_of(image))
    for item in header.get("ReferencedImageSequence", ()):
        replaced = SourceImage(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID, ())
        of_series.setdefault(str(header.SeriesInstanceUID), []).append(replaced)
    return of_series


# A dimension: the attribute that tells frames apart, the functional group it is in, and what it is called.
_SEGMENT_NUMBER: Final = ("ReferencedSegmentNumber", "SegmentIdentificationSequence", "Segment Number")
_POSITION: Final = ("ImagePositionPatient", "PlanePositionSequence", "Image Position Patient")
_ROW: Final = ("RowPositionInTotalImagePixelMatrix", "PlanePositionSlideSequence", "Row Position")
_COLUMN: Final = ("ColumnPositionInTotalImagePixelMatrix", "PlanePositionSlideSequence", "Column Position")
_LABEL: Final = ("FrameLabel", "FrameContentSequence", "Frame Label")


def _organization(layout: Layout, placement: Placement, kind: SegmentationType, identity: Identity) -> Dataset:
    """Multi-frame dimension and what frames share (PS3.3 C.7.6.17, C.7.6.16)."""
    uid = _organization_uid(placement, kind, identity)
    place = (_ROW, _COLUMN) if placement.matrix is not None else (_POSITION,) if placement.has_positions else (_LABEL,)
    dimensions = place if kind == "LABELMAP" else (_SEGMENT_NUMBER, *place)
    organization, dataset = Dataset(), Dataset()
    organization.DimensionOrganizationUID = uid
    organized = _organization_type(layout, placement)
    if organized:
        dataset.DimensionOrganizationType = organized
    dataset.DimensionOrganizationSequence = [organization]
    dataset.DimensionIndexSequence = [dimension_item(uid, *dimension) for dimension in dimensions]
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(placement)]
    return dataset


def _organization_uid(placement: Placement, kind: SegmentationType, identity: Identity) -> str:
    """Labelmaps on the same images are organised alike, and everything else in a way of its own."""
    if kind == "LABELMAP" and placement.matrix is None and all(place.sources for place in placement.places):
        images = (text_of(image, "SOPInstanceUID") for image in placement.images)
        return derived_uid("dimension organization", *images, root=identity.uid_root)
    return derived_uid("dimension organization", kind, identity.sop_instance_uid, root=identity.uid_root)


def _organization_type(layout: Layout, placement: Placement) -> str:
    """3D where frames lie in every place of an evenly spaced stack from the first to the last."""
    if placement.matrix is not None:
        return "TILED_FULL" if placement.matrix.full else "TILED_SPARSE"
    rank = {plane: index for index, plane in enumerate(placement.order)}
    ranks = {rank[plane] for plane in layout.planes}
    return "3D" if placement.regular and max(ranks) - min(ranks) + 1 == len(ranks) else ""


def _shared_groups(placement: Placement) -> Dataset:
    shared = Dataset()
    full = placement.matrix is not None and placement.matrix.full
    if full or not any(place.sources for place in placement.places):
        shared.DerivationImageSequence = [_derivation(placement)]
    if not placement.has_positions:
        return shared
    measures, orientation = Dataset(), Dataset()
    if placement.slice_thickness is not None:
        measures.SliceThickness = decimals((float(f"{placement.slice_thickness:.10g}"),))
    if placement.spacing_between_slices is not None:
        measures.SpacingBetweenSlices = decimals((float(f"{placement.spacing_between_slices:.10g}"),))
    measures.PixelSpacing = decimals(placement.spacing).split("\\")
    shared.PixelMeasuresSequence = [measures]
    if placement.matrix is None:
        orientation.ImageOrientationPatient = decimals(placement.orientation).split("\\")
        shared.PlaneOrientationSequence = [orientation]
    return shared


def _derivation(placement: Placement) -> Dataset:
    """Frames that were made from all of the images, and say no more of their own (PS3.3 C.7.6.16.2.6)."""
    derivation = Dataset()
    derivation.DerivationCodeSequence = [code_item(SEGMENTATION)]
    derivation.SourceImageSequence = [reference_item(image) for image in placement.images]
    for source in derivation.SourceImageSequence:
        source.SpatialLocationsPreserved = "YES" if all(place.sources for place in placement.places) else "NO"
        source.PurposeOfReferenceCodeSequence = [code_item(SOURCE_IMAGE)]
    return derivation


def _frame_items(layout: Layout, placement: Placement, kind: SegmentationType) -> list[FrameItem]:
    indices = _indices_of_planes(layout, placement)
    items = []
    for plane, number in zip(layout.planes, layout.numbers, strict=True):
        place, index = placement.places[plane], indices[plane]
        items.append(
            FrameItem(
                sources=place.sources,
                dimension_index_values=index if kind == "LABELMAP" else (number, *index),
                position=place.position,
                tile=place.tile,
                segment_number=None if kind == "LABELMAP" else number,
                label="" if place.position is not None else str(plane + 1),
            )
        )
    return items


def _indices_of_planes(layout: Layout, placement: Placement) -> dict[int, tuple[int, ...]]:
    """The dimension index values of planes that have a frame, from 1 without a gap (PS3.3 C.7.6.17.1)."""
    written = set(layout.planes)
    planes = [plane for plane in placement.order if plane in written]
    if placement.matrix is None:
        return {plane: (index,) for index, plane in enumerate(planes, start=1)}
    tiles = {plane: placement.places[plane].tile or (1, 1) for plane in planes}
    rows, columns = (sorted({tile[axis] for tile in tiles.values()}) for axis in (0, 1))
    row, column = ({value: index for index, value in enumerate(values, start=1)} for values in (rows, columns))
    return {plane: (row[tile[0]], column[tile[1]]) for plane, tile in tiles.items()}


def _slide(image: Dataset, matrix: Matrix, orientation: Sequence[float], pyramid: Pyramid | None) -> Dataset:
    """The total pixel matrix, the specimen, and the pyramid it is a level of (PS3.3 C.8.12.4, C.7.6.22)."""
    dataset, origin = Dataset(), Dataset()
    dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns = matrix.rows, matrix.columns
    dataset.ImageOrientationSlide = decimals(tuple(orientation)).split("\\")
    for axis, offset in zip("XY", matrix.origin, strict=False):
        setattr(origin, f"{axis}OffsetInSlideCoordinateSystem", decimals((offset,)))
    dataset.TotalPixelMatrixOriginSequence = [origin]
    if matrix.full:
        dataset.TotalPixelMatrixFocalPlanes = 1
    for keyword in _SPECIMEN:
        if keyword in image:
            dataset.add(image[keyword])
    if pyramid is not None:
        dataset.PyramidUID = pyramid.uid
        if pyramid.label:
            dataset.PyramidLabel = pyramid.label
    return dataset


def _use_a_character_set_for(dataset: Dataset, own: Sequence[str]) -> None:
    """Keep the source's character set unless what we write ourselves does not fit it: then UTF-8 holds both."""
    if not all(text.isascii() for text in own):
        for element in dataset:
            dataset[element.tag] = deepcopy(element) if element.VR == "SQ" else element  # which are the source's
        for element in dataset.iterall():  # which decodes what is in sequences
            if element.VR == "PN" and element.value:
                element.value = [*map(str, element.value)] if element.VM > 1 else str(element.value)
        dataset.SpecificCharacterSet = "ISO_IR 192"
