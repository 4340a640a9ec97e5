"""Proof of placement: the labels of a SEG lie in the patient where the model put them, and are those that it returned.

What is compared is the bytes that are about to leave, the headers of the source images, and what the model returned. Nothing
here comes from what orders slices, numbers segments or writes SEGs: a fault in one of these is not repeated, it is found.
All coordinates are millimetres in the LPS patient coordinate system (PS3.3 C.7.6.2.1.1).
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import imagecodecs
import msgspec
import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.multival import MultiValue
from pydicom.pixels.utils import iter_pixels, pixel_array

from segnode.dicom.transfer_syntaxes import DEFLATED_IMAGE_FRAME
from segnode.dicom.uids import is_uid
from segnode.dicom.volume import Volume
from segnode.errors import Misplaced
from segnode.seg.segments import LabelDictionary, Segment

Numbers = npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer]

_SAME_PLACE_MM: Final = 0.01
# Of a pixel, or of the distance of slices: what is nearer is nearest to its own place.
_HALF: Final = 0.5
# What has no number among the described segments: more than any has.
_NOT_DESCRIBED: Final = 1 << 16
_Place = tuple[list[float], list[float], list[float]]
# Planar images have no place: they all lie here, and so do the frames on them, which are told apart by what they are made from.
_NOWHERE: Final[_Place] = ([0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [1.0, 1.0])


class ModelLabels(msgspec.Struct, frozen=True):
    """Labels as their model returned them: by the name of the image that a slice lies on, each slice in zstd.

    A slice has `layers`, in which labels overlap. Where the grid is the model's own, its `affine` says where slices lie,
    which are then by their number, from 0, and of `size` (rows, columns).
    """

    dtype: str
    slices: dict[str, bytes]
    layers: int = 1
    affine: list[list[float]] | None = None
    size: tuple[int, int] = (0, 0)

    def plane(self, key: str, image: "ImagePlane") -> Labels:
        """The labels (layers, rows, columns) of an image."""
        size = self.layers * image.rows * image.columns * np.dtype(self.dtype).itemsize
        labels: Labels = np.frombuffer(imagecodecs.zstd_decode(self.slices[key], out=size), self.dtype)
        return labels.reshape(self.layers, image.rows, image.columns)


def model_labels(labelmap: Labels, names: Sequence[str], affine: Numbers | None = None) -> ModelLabels:
    """What a model returned, ([layers,] slices, rows, columns), for these images, to be kept until its SEG is proven.

    With an affine, (slice, row, column) to LPS mm, it lies there and on no image.
    """
    layers = labelmap.reshape(-1, *labelmap.shape[-3:])
    keys = names if affine is None else [str(number) for number in range(layers.shape[1])]
    planes = zip(keys, layers.swapaxes(0, 1), strict=True)
    # In a fifth of the time that zlib takes for its fastest level.
    slices = {key: bytes(imagecodecs.zstd_encode(plane.tobytes(), level=1)) for key, plane in planes}
    own = None if affine is None else affine.tolist()
    return ModelLabels(labelmap.dtype.str, slices, len(layers), own, (layers.shape[2], layers.shape[3]))


def image_names(volume: Volume) -> list[str]:
    """The images that the slices of a volume lie on: SOP instance UIDs, of frames with their numbers."""
    frames = volume.frame_numbers or (0,) * len(volume.sop_instance_uids)
    return [_name(uid, frame) for uid, frame in zip(volume.sop_instance_uids, frames, strict=True)]


def _name(sop_instance_uid: str, frame_number: int) -> str:
    """An image by its SOP instance UID, or a frame of a multi-frame image by its number as well."""
    return f"{sop_instance_uid} frame {frame_number}" if frame_number else sop_instance_uid


@dataclass(frozen=True, eq=False)
class ImagePlane:
    """Where pixels lie: `position` is the centre of the first, `down` and `across` lead to the next row and column."""

    position: Numbers
    down: Numbers
    across: Numbers
    rows: int
    columns: int

    @property
    def corners(self) -> Numbers:
        """The centres of the first pixel, and of the last of the first column and of the first row, as (3, 3)."""
        ends = np.array([np.zeros(3), self.down * (self.rows - 1), self.across * (self.columns - 1)])
        return np.asarray(self.position + ends)

    @property
    def pixel_mm(self) -> float:
        """The shorter side of a pixel."""
        return float(min(np.linalg.norm(self.down), np.linalg.norm(self.across)))

    @property
    def normal(self) -> Numbers:
        """The direction that slices follow each other in."""
        normal = np.cross(self.across, self.down)
        return np.asarray(normal / np.linalg.norm(normal))

    def centre(self, mask: npt.NDArray[np.bool_]) -> Numbers:
        """The centre of pixels (rows, columns) of which there is one at least."""
        rows, columns = np.nonzero(mask)
        return np.asarray(self.position + rows.mean() * self.down + columns.mean() * self.across)


class SourceHeader(msgspec.Struct, frozen=True):
    """Of a source image, as its file says it: whose it is, and where its pixels lie."""

    sop_instance_uid: str
    study_instance_uid: str
    patient_id: str
    frame_of_reference_uid: str
    position: list[float]
    orientation: list[float]
    spacing: list[float]
    rows: int
    columns: int
    # From 1, of a multi-frame image.
    frame_number: int = 0

    @property
    def name(self) -> str:
        """How messages call it, and no other image of the series."""
        return _name(self.sop_instance_uid, self.frame_number)

    @property
    def plane(self) -> ImagePlane:
        """Where its pixels lie."""
        return _plane(self.position, self.orientation, self.spacing, (self.rows, self.columns))


@dataclass(frozen=True, eq=False)
class _Stated:
    """What an image says of itself, or of one of its frames: `groups` are searched one after the other."""

    image: Dataset
    groups: Sequence[Dataset]
    frame_number: int = 0

    def number(self, sequence: str, keyword: str, default: float) -> float:
        """A number of a frame. It is the default where none is said."""
        value = self._said(sequence, keyword)
        return default if value in (None, "") else float(value)

    @property
    def is_planar(self) -> bool:
        """Whether it has no place in the patient."""
        return not self.frame_number and not self.image.get("ImagePositionPatient")

    @property
    def place(self) -> _Place:
        """Position, orientation and spacing."""
        if self.is_planar:
            return _NOWHERE
        return (
            _floats(self._said("PlanePositionSequence", "ImagePositionPatient")),
            _floats(self._said("PlaneOrientationSequence", "ImageOrientationPatient")),
            _floats(self._said("PixelMeasuresSequence", "PixelSpacing")),
        )

    def _said(self, sequence: str, keyword: str) -> Any:
        if not self.frame_number:
            return self.image.get(keyword)
        return next((_first(group, sequence).get(keyword) for group in self.groups if group.get(sequence)), None)

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """The pixels, (rows, columns), in modality units."""
        index = self.frame_number - 1 if self.frame_number else None
        slope = np.float32(self.number("PixelValueTransformationSequence", "RescaleSlope", 1) or 1)
        intercept = np.float32(self.number("PixelValueTransformationSequence", "RescaleIntercept", 0))
        return np.asarray(pixel_array(self.image, raw=True, index=index).astype(np.float32) * slope + intercept)

    @property
    def header(self) -> SourceHeader:
        """What the proof keeps."""
        return SourceHeader(
            str(self.image.SOPInstanceUID),
            str(self.image.get("StudyInstanceUID") or ""),
            str(self.image.get("PatientID") or ""),
            str(self.image.get("FrameOfReferenceUID") or ""),
            *self.place,
            int(self.image.Rows),
            int(self.image.Columns),
            self.frame_number,
        )


def _stated(image: Dataset) -> list[_Stated]:
    """A single-frame image, or the frames of another."""
    frames, shared = image.get("PerFrameFunctionalGroupsSequence"), image.get("SharedFunctionalGroupsSequence") or ()
    if not frames:
        return [_Stated(image, ())]
    return [_Stated(image, (frame, *shared), number) for number, frame in enumerate(frames, start=1)]


def source_header(image: Dataset) -> SourceHeader:
    """What the proof needs of a single-frame image."""
    return _Stated(image, ()).header


def plane_of(image: Dataset) -> ImagePlane:
    """Where the pixels of a single-frame image lie, by its header."""
    return source_header(image).plane


def _plane(position: list[float], orientation: list[float], spacing: list[float], size: tuple[int, int]) -> ImagePlane:
    between_rows, between_columns = spacing
    down, across = np.array(orientation[3:]) * between_rows, np.array(orientation[:3]) * between_columns
    return ImagePlane(np.array(position), down, across, *size)


def _floats(values: Iterable[Any]) -> list[float]:
    return [float(value) for value in values]


def require_images_in_volume(volume: Volume, images: Iterable[Dataset]) -> list[SourceHeader]:
    """Prove that each slice of a volume is the image it is said to be, in pixels and in place, and that none is lost.

    `images` are those of the series, read from where they are kept, with their pixels, in any order; only localizers may be
    left out. What the files of the slices say is what their SEG is to be proven against. Raises Misplaced.
    """
    number_of = {name: number for number, name in enumerate(image_names(volume))}
    to_index = np.asarray(np.linalg.inv(volume.affine), np.float64)
    seen: dict[str, SourceHeader] = {}
    for image in images:
        for stated in _stated(image):
            name = _name(str(image.SOPInstanceUID), stated.frame_number)
            if name in number_of:
                seen[name] = stated.header
                _require_slice(volume.array[number_of[name]], number_of[name], to_index, stated, seen[name])
            elif "LOCALIZER" not in (image.get("ImageType") or ()):
                raise Misplaced(f"SOP instance {name} is no slice of the volume, and no localizer")
    if not len(volume.array) == len(volume.sop_instance_uids) == len(seen):
        raise Misplaced(f"the volume has {len(volume.array)} slices, of which {len(seen)} are images of the series")
    return [*seen.values()]


def _require_slice(
    values: npt.NDArray[np.float32], number: int, to_index: Numbers, stated: _Stated, header: SourceHeader
) -> None:
    what = f"slice {number + 1} of the volume and its image (SOP instance {header.name})"
    plane, (rows, columns) = header.plane, values.shape
    if (plane.rows, plane.columns) != (rows, columns):
        raise Misplaced(f"{what} differ in size")
    found = plane.corners @ to_index[:3, :3].T + to_index[:3, 3]
    off = np.abs(found - [(number, 0, 0), (number, rows - 1, 0), (number, 0, columns - 1)]).max(axis=0)
    if off.max() > _HALF and not stated.is_planar:
        raise Misplaced(f"{what} lie {off[0]:.2f} slices, {off[1]:.2f} rows and {off[2]:.2f} columns apart")
    if not np.array_equal(values, stated.values):
        raise Misplaced(f"{what} hold different pixels")


def require_placed(seg: Dataset, images: Sequence[SourceHeader], labels: ModelLabels, dictionary: LabelDictionary) -> None:
    """Prove of a SEG, as its bytes are read, that it says in the patient's space what the model returned.

    `images` are the source images. Raises Misplaced, saying what differs: which segment, on which image, how far in mm.
    """
    sources = _in_order(images, labels) if labels.affine is None else _own_slices(labels.affine, labels)
    _require_same_patient(seg, images[0])
    numbers = _numbers(dictionary, seg.SegmentationType)
    _require_same_segments(seg, numbers)
    if labels.layers > 1 and seg.SegmentationType == "LABELMAP":
        raise Misplaced("the model returned segments that overlap, which a LABELMAP does not hold")
    frames = _frames(seg)
    on = [_slice_under(number, frame, sources) for number, frame in enumerate(frames, start=1)]
    (where, of), most = Counter(zip(on, (frame.segment for frame in frames), strict=True)).most_common(1)[0]
    if most > 1:
        whose = f" of segment {of}" if of else ""
        raise Misplaced(f"{most} frames{whose} lie on {where.name} {where.number} of {len(sources)}")
    proof = _Proof(seg, frames, on, sources, labels, _number_of_value(numbers))
    proof.require_no_image_lost()
    proof.require_same_labels()


@dataclass(frozen=True, eq=False)
class _Source:
    """A source image, or a slice of the model's own: its key and its place in the order along the normal, from 1."""

    number: int
    key: str
    plane: ImagePlane
    name: str = "image"


@dataclass(frozen=True, eq=False)
class _Frame:
    """Where a frame lies, the image it says it was made from, and the segment that it is of, 0 for all."""

    plane: ImagePlane
    made_from: str
    segment: int


def _in_order(images: Sequence[SourceHeader], labels: ModelLabels) -> Mapping[str, _Source]:
    """The images that the model has labelled, by UID, in their order along the normal."""
    planes = {image.name: image.plane for image in images}
    lost = labels.slices.keys() - planes.keys()
    if lost:
        raise Misplaced(f"{len(lost)} images that the model has labelled are not among the source images: {min(lost)}")
    normal = planes[next(iter(labels.slices))].normal
    in_order = sorted(labels.slices, key=lambda name: float(planes[name].position @ normal))
    return {name: _Source(number, name, planes[name]) for number, name in enumerate(in_order, start=1)}


def _own_slices(affine: list[list[float]], labels: ModelLabels) -> Mapping[str, _Source]:
    """The slices of a grid of the model's own, by their key, where its affine puts them."""
    step, down, across, first = np.array(affine)[:3].T
    planes = {key: ImagePlane(first + int(key) * step, down, across, *labels.size) for key in labels.slices}
    return {key: _Source(int(key) + 1, key, plane, "slice") for key, plane in planes.items()}


def _require_same_patient(seg: Dataset, image: SourceHeader) -> None:
    # Images may be without a frame of reference, which a SEG is not.
    frame = image.frame_of_reference_uid if is_uid(image.frame_of_reference_uid) else ""
    said = {"PatientID": image.patient_id, "StudyInstanceUID": image.study_instance_uid, "FrameOfReferenceUID": frame}
    for keyword, value in said.items():
        if value and seg.get(keyword) != value:
            raise Misplaced(f"the SEG has not the {keyword} of its images")


def _numbers(dictionary: LabelDictionary, kind: str) -> Mapping[int, Segment]:
    """The segments by the number that they must have: the dictionary's; counted 1, 2, 3 in their order in a BINARY."""
    by_number = {segment.number or segment.value: segment for segment in dictionary.segment}
    if kind == "LABELMAP":
        return by_number
    return {place: by_number[number] for place, number in enumerate(sorted(by_number), start=1)}


def _require_same_segments(seg: Dataset, numbers: Mapping[int, Segment]) -> None:
    described = {item.SegmentNumber: item for item in seg.SegmentSequence}
    for number, segment in numbers.items():
        item = described.get(number, Dataset())
        kind = _first(item, "SegmentedPropertyTypeCodeSequence")
        modifier = _first(kind, "SegmentedPropertyTypeModifierCodeSequence")
        codes = [code.get("CodeValue") for code in (kind, modifier, _first(item, "AnatomicRegionSequence"))]
        expected = [code and code.value for code in (segment.type, segment.modifier, segment.region)]
        if codes != expected or _text(item.SegmentLabel) != segment.label.strip():
            raise Misplaced(f"segment {number} of the SEG is not described as {segment.label}")


def _first(item: Dataset, sequence: str) -> Dataset:
    return next(iter(item.get(sequence) or ()), Dataset())


def _text(value: str | MultiValue[str]) -> str:
    return (value if isinstance(value, str) else "\\".join(value)).strip()


def _frames(seg: Dataset) -> list[_Frame]:
    shared, size = seg.SharedFunctionalGroupsSequence[0], (int(seg.Rows), int(seg.Columns))
    everywhere, orientation, spacing = _NOWHERE
    if "PlaneOrientationSequence" in shared:
        orientation = _floats(shared.PlaneOrientationSequence[0].ImageOrientationPatient)
        spacing = _floats(shared.PixelMeasuresSequence[0].PixelSpacing)
    return [
        _Frame(
            _plane(_position(groups) or everywhere, orientation, spacing, size),
            _made_from(groups),
            int(_first(groups, "SegmentIdentificationSequence").get("ReferencedSegmentNumber", 0)),
        )
        for groups in seg.PerFrameFunctionalGroupsSequence
    ]


def _position(groups: Dataset) -> list[float]:
    return _floats(_first(groups, "PlanePositionSequence").get("ImagePositionPatient", ()))


def _made_from(groups: Dataset) -> str:
    """The name of the one image, or frame, that a frame says it was made from; nothing where it lies on none."""
    item = _first(_first(groups, "DerivationImageSequence"), "SourceImageSequence")
    return _name(str(item.get("ReferencedSOPInstanceUID", "")), int(item.get("ReferencedFrameNumber") or 0))


def _pixels(seg: Dataset) -> Iterator[npt.NDArray[Any]]:
    """The frames, (rows, columns) each, by pydicom, which does not know deflated ones (PS3.5 A.4.13)."""
    if seg.file_meta.TransferSyntaxUID != DEFLATED_IMAGE_FRAME:
        yield from iter_pixels(seg, raw=True)
        return
    dtype, count = f"<u{seg.BitsAllocated // 8}", seg.Rows * seg.Columns
    for frame in generate_frames(seg.PixelData, number_of_frames=int(seg.NumberOfFrames)):
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame)
        yield np.frombuffer(inflated, dtype, count).reshape(seg.Rows, seg.Columns)


def _slice_under(number: int, frame: _Frame, sources: Mapping[str, _Source]) -> _Source:
    """The image that a frame lies on, which must be the one that it was made from; of a grid of its own, the nearest slice."""
    if next(iter(sources.values())).name == "slice":
        if frame.made_from:
            raise Misplaced(f"frame {number} says that it was made from {frame.made_from}, and lies on a grid of its own")
        source = min(sources.values(), key=lambda source: float(np.linalg.norm(frame.plane.position - source.plane.position)))
    elif frame.made_from in sources:
        source = sources[frame.made_from]
    else:
        raise Misplaced(f"frame {number} says that it was made from {frame.made_from}, which the model has not labelled")
    apart = np.linalg.norm(frame.plane.corners - source.plane.corners, axis=1)
    turned = float(apart.max()) > _HALF * source.plane.pixel_mm
    if (
        (frame.plane.rows, frame.plane.columns) != (source.plane.rows, source.plane.columns)
        or float(apart[0]) > _SAME_PLACE_MM
        or turned
    ):
        where = f"{source.name} {source.number} of {len(sources)}"
        which = f" (SOP instance {frame.made_from}), which it was made from" if frame.made_from else ""
        raise Misplaced(f"frame {number} does not lie on {where}{which}: {apart.max():.2f} mm away")
    return source


def _number_of_value(numbers: Mapping[int, Segment]) -> npt.NDArray[np.uint32]:
    """The segment number of each value that the model may have returned, which no frame has where it is not described."""
    number_of = np.full(_NOT_DESCRIBED, _NOT_DESCRIBED, np.uint32)
    number_of[0] = 0
    for number, segment in numbers.items():
        number_of[segment.value] = number
    return number_of


@dataclass(frozen=True, eq=False)
class _Proof:
    """A SEG beside what the model returned: `on` is the image, or slice, that each frame lies on."""

    seg: Dataset
    frames: Sequence[_Frame]
    on: Sequence[_Source]
    sources: Mapping[str, _Source]
    labels: ModelLabels
    numbers: npt.NDArray[np.uint32]

    def require_no_image_lost(self) -> None:
        """An image without a frame is one where the model found nothing, or nothing of a segment."""
        framed = {(source.key, frame.segment) for source, frame in zip(self.on, self.frames, strict=True)}
        for source in self.sources.values():
            if (source.key, 0) in framed:
                continue
            found = [int(number) for number in np.unique(self.returned(source)) if number]
            lost = [number for number in found if (source.key, number) not in framed]
            if lost:
                which = f" (SOP instance {source.key})" if source.name == "image" else ""
                where = f"{source.name} {source.number} of {len(self.sources)}{which}"
                raise Misplaced(f"the SEG has no frame on {where}, where the model found segments {lost[:10]}")

    def require_same_labels(self) -> None:
        """Each frame holds what the model returned for its image."""
        voxels = np.zeros(_NOT_DESCRIBED + 1, np.int64)
        differing = []
        for frame, pixels, source in zip(self.frames, _pixels(self.seg), self.on, strict=True):
            returned = self.expected(source, frame.segment)
            written = pixels.astype(np.uint16) * np.uint16(frame.segment) if frame.segment else pixels
            if not np.array_equal(returned, written):
                differing.append(source.number)
                differs = returned != written
                voxels += np.bincount(returned[differs], minlength=len(voxels))
                voxels += np.bincount(written[differs], minlength=len(voxels))
        if voxels[_NOT_DESCRIBED]:
            raise Misplaced(f"the SEG does not describe a segment of {voxels[_NOT_DESCRIBED]:,} voxels that the model returned")
        if differing:
            voxels[0] = 0
            number = int(voxels.argmax())
            how = f"{int(voxels[number]):,} voxels differ, {self._how_far(number)}"
            name = self.on[0].name
            where = f"{len(set(differing))} {name}s differ, the first is {name} {min(differing)} of {len(self.sources)}"
            raise Misplaced(f"segment {number} is not where the model put it: {how}; {where}")

    def expected(self, source: _Source, segment: int) -> npt.NDArray[np.unsignedinteger]:
        """What a frame on a source must hold: the segment numbers, of all or of one."""
        returned = self.returned(source)
        if not segment:
            return np.asarray(returned[0])
        return np.asarray((returned == segment).any(axis=0).astype(np.uint16) * np.uint16(segment))

    def returned(self, source: _Source) -> npt.NDArray[np.unsignedinteger]:
        """What the model returned for an image (layers, rows, columns), in segment numbers."""
        values = self.labels.plane(source.key, source.plane)
        # Mostly a value is the number, and looking each up takes longer than all the rest.
        if values.max(initial=0) < self.as_they_are:
            return values.astype(np.uint16)
        return self.numbers[values]

    @cached_property
    def as_they_are(self) -> int:
        """The first value that is not the number of its segment."""
        return int(np.argmax(self.numbers != np.arange(len(self.numbers))))

    def _how_far(self, number: int) -> str:
        placed = ((source.plane, (self.returned(source) == number).any(axis=0)) for source in self.sources.values())
        found = _centre(placed)
        frames = zip(self.frames, _pixels(self.seg), strict=True)
        written = _centre(
            (f.plane, pixels == 1 if f.segment else pixels == number) for f, pixels in frames if f.segment in (0, number)
        )
        if found is None or written is None:
            return "the SEG has none of it" if written is None else "the model returned none of it"
        return f"its centre lies {np.linalg.norm(found - written):.2f} mm away"


def _centre(planes: Iterable[tuple[ImagePlane, npt.NDArray[np.bool_]]]) -> Numbers | None:
    """The centre of what is marked on planes; None where nothing is."""
    total, count = np.zeros(3), 0
    for plane, mask in planes:
        size = int(np.count_nonzero(mask))
        if size:
            total, count = total + size * plane.centre(mask), count + size
    return np.asarray(total / count) if count else None
