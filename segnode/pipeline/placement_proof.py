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
from segnode.seg.segments import LabelDictionary

Numbers = npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer]

_SAME_PLACE_MM: Final = 0.01
# Of a pixel, or of the distance of slices: what is nearer is nearest to its own place.
_HALF: Final = 0.5


class ModelLabels(msgspec.Struct, frozen=True):
    """A labelmap as its model returned it: by the SOP instance UID of the image that a slice lies on, each slice deflated."""

    dtype: str
    slices: dict[str, bytes]

    def plane(self, sop_instance_uid: str, image: "ImagePlane") -> Labels:
        """The labels (rows, columns) of an image."""
        labels: Labels = np.frombuffer(zlib.decompress(self.slices[sop_instance_uid]), self.dtype)
        return labels.reshape(image.rows, image.columns)


def model_labels(labelmap: Labels, sop_instance_uids: Sequence[str]) -> ModelLabels:
    """What a model returned, (slices, rows, columns), to be kept until its SEG is proven."""
    planes = zip(sop_instance_uids, labelmap, strict=True)
    return ModelLabels(labelmap.dtype.str, {uid: zlib.compress(np.ascontiguousarray(plane).data, 1) for uid, plane in planes})


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

    @property
    def plane(self) -> ImagePlane:
        """Where its pixels lie."""
        return _plane(self.position, self.orientation, self.spacing, (self.rows, self.columns))


def source_header(image: Dataset) -> SourceHeader:
    """What the proof needs of a single-frame image."""
    return SourceHeader(
        str(image.SOPInstanceUID),
        str(image.get("StudyInstanceUID") or ""),
        str(image.get("PatientID") or ""),
        str(image.get("FrameOfReferenceUID") or ""),
        _floats(image.ImagePositionPatient),
        _floats(image.ImageOrientationPatient),
        _floats(image.PixelSpacing),
        int(image.Rows),
        int(image.Columns),
    )


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
    number_of = {uid: number for number, uid in enumerate(volume.sop_instance_uids)}
    to_index = np.asarray(np.linalg.inv(volume.affine), np.float64)
    seen: dict[str, SourceHeader] = {}
    for image in images:
        uid = str(image.SOPInstanceUID)
        if uid in number_of:
            seen[uid] = source_header(image)
            _require_slice(volume.array[number_of[uid]], number_of[uid], to_index, image, seen[uid].plane)
        elif "LOCALIZER" not in (image.get("ImageType") or ()):
            raise Misplaced(f"SOP instance {uid} is no slice of the volume, and no localizer")
    if not len(volume.array) == len(volume.sop_instance_uids) == len(seen):
        raise Misplaced(f"the volume has {len(volume.array)} slices, of which {len(seen)} are images of the series")
    return [*seen.values()]


def _require_slice(values: npt.NDArray[np.float32], number: int, to_index: Numbers, image: Dataset, plane: ImagePlane) -> None:
    what = f"slice {number + 1} of the volume and its image (SOP instance {image.SOPInstanceUID})"
    rows, columns = values.shape
    if (plane.rows, plane.columns) != (rows, columns):
        raise Misplaced(f"{what} differ in size")
    found = plane.corners @ to_index[:3, :3].T + to_index[:3, 3]
    off = np.abs(found - [(number, 0, 0), (number, rows - 1, 0), (number, 0, columns - 1)]).max(axis=0)
    if off.max() > _HALF:
        raise Misplaced(f"{what} lie {off[0]:.2f} slices, {off[1]:.2f} rows and {off[2]:.2f} columns apart")
    slope, intercept = float(image.get("RescaleSlope") or 1), float(image.get("RescaleIntercept") or 0)
    expected = pixel_array(image, raw=True).astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if not np.array_equal(values, expected):
        raise Misplaced(f"{what} hold different pixels")


def require_placed(seg: Dataset, images: Sequence[SourceHeader], labels: ModelLabels, dictionary: LabelDictionary) -> None:
    """Prove of a LABELMAP SEG, as its bytes are read, that it says in the patient's space what the model returned.

    `images` are the source images. Raises Misplaced, saying what differs: which segment, on which image, how far in mm.
    """
    sources = _in_order(images, labels)
    _require_same_patient(seg, next(iter(sources.values())).header)
    _require_same_segments(seg, dictionary)
    frames = _frames(seg)
    on = [_image_under(number, frame, sources) for number, frame in enumerate(frames, start=1)]
    number, most = Counter(source.number for source in on).most_common(1)[0]
    if most > 1:
        raise Misplaced(f"{most} frames lie on image {number} of {len(sources)}")
    proof = _Proof(seg, frames, on, sources, labels, _number_of_value(dictionary))
    proof.require_no_image_lost()
    proof.require_same_labels()


@dataclass(frozen=True, eq=False)
class _Source:
    """A source image: its place in the order along the normal, from 1."""

    number: int
    header: SourceHeader
    plane: ImagePlane


@dataclass(frozen=True, eq=False)
class _Frame:
    """Where a frame lies, and the image it says it was made from."""

    plane: ImagePlane
    made_from: str


def _in_order(images: Sequence[SourceHeader], labels: ModelLabels) -> Mapping[str, _Source]:
    """The images that the model has labelled, by UID, in their order along the normal."""
    planes = {image.sop_instance_uid: (image, image.plane) for image in images}
    lost = labels.slices.keys() - planes.keys()
    if lost:
        raise Misplaced(f"{len(lost)} images that the model has labelled are not among the source images: {min(lost)}")
    normal = planes[next(iter(labels.slices))][1].normal
    in_order = sorted(labels.slices, key=lambda uid: float(planes[uid][1].position @ normal))
    return {uid: _Source(number, *planes[uid]) for number, uid in enumerate(in_order, start=1)}


def _require_same_patient(seg: Dataset, image: SourceHeader) -> None:
    # Images may be without a frame of reference, which a SEG is not.
    frame = image.frame_of_reference_uid if is_uid(image.frame_of_reference_uid) else ""
    said = {"PatientID": image.patient_id, "StudyInstanceUID": image.study_instance_uid, "FrameOfReferenceUID": frame}
    for keyword, value in said.items():
        if value and seg.get(keyword) != value:
            raise Misplaced(f"the SEG has not the {keyword} of its images")


def _require_same_segments(seg: Dataset, dictionary: LabelDictionary) -> None:
    described = {item.SegmentNumber: item for item in seg.SegmentSequence}
    for segment in dictionary.segment:
        number = segment.number or segment.value
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
    shared = seg.SharedFunctionalGroupsSequence[0]
    orientation = _floats(shared.PlaneOrientationSequence[0].ImageOrientationPatient)
    spacing, size = _floats(shared.PixelMeasuresSequence[0].PixelSpacing), (int(seg.Rows), int(seg.Columns))
    return [
        _Frame(
            _plane(_floats(groups.PlanePositionSequence[0].ImagePositionPatient), orientation, spacing, size),
            str(groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID),
        )
        for groups in seg.PerFrameFunctionalGroupsSequence
    ]


def _pixels(seg: Dataset) -> Iterator[npt.NDArray[Any]]:
    """The frames, (rows, columns) each, by pydicom, which does not know deflated ones (PS3.5 A.4.13)."""
    if seg.file_meta.TransferSyntaxUID != DEFLATED_IMAGE_FRAME:
        yield from iter_pixels(seg, raw=True)
        return
    dtype, count = f"<u{seg.BitsAllocated // 8}", seg.Rows * seg.Columns
    for frame in generate_frames(seg.PixelData, number_of_frames=int(seg.NumberOfFrames)):
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame)
        yield np.frombuffer(inflated, dtype, count).reshape(seg.Rows, seg.Columns)


def _image_under(number: int, frame: _Frame, sources: Mapping[str, _Source]) -> _Source:
    """The image that a frame lies on, which must be the one that it was made from."""
    made_from = sources.get(frame.made_from)
    if made_from is None:
        raise Misplaced(f"frame {number} says that it was made from {frame.made_from}, which the model has not labelled")
    apart = np.linalg.norm(frame.plane.corners - made_from.plane.corners, axis=1)
    turned = float(apart.max()) > _HALF * made_from.plane.pixel_mm
    if (
        (frame.plane.rows, frame.plane.columns) != (made_from.plane.rows, made_from.plane.columns)
        or float(apart[0]) > _SAME_PLACE_MM
        or turned
    ):
        where = f"image {made_from.number} of {len(sources)} (SOP instance {frame.made_from})"
        raise Misplaced(f"frame {number} does not lie on {where}, which it was made from: {apart.max():.2f} mm away")
    return made_from


def _number_of_value(dictionary: LabelDictionary) -> npt.NDArray[np.uint16]:
    """The segment number of each value that the model may return."""
    numbers = np.zeros(max((segment.value for segment in dictionary.segment), default=0) + 1, np.uint16)
    for segment in dictionary.segment:
        numbers[segment.value] = segment.number or segment.value
    return numbers


@dataclass(frozen=True, eq=False)
class _Proof:
    """A SEG beside what the model returned: `on` is the image that each frame lies on."""

    seg: Dataset
    frames: Sequence[_Frame]
    on: Sequence[_Source]
    sources: Mapping[str, _Source]
    labels: ModelLabels
    numbers: npt.NDArray[np.uint16]

    def require_no_image_lost(self) -> None:
        """An image without a frame is one where the model found nothing."""
        framed = {source.number for source in self.on}
        for source in self.sources.values():
            if source.number not in framed and self.returned(source).any():
                segments = [int(number) for number in np.unique(self.returned(source)) if number]
                where = f"image {source.number} of {len(self.sources)} (SOP instance {source.header.sop_instance_uid})"
                raise Misplaced(f"the SEG has no frame on {where}, where the model found segments {segments[:10]}")

    def require_same_labels(self) -> None:
        """Each frame holds what the model returned for its image."""
        voxels = np.zeros(1 << 16, np.int64)
        differing = []
        for frame, source in zip(_pixels(self.seg), self.on, strict=True):
            returned = self.returned(source)
            if not np.array_equal(returned, frame):
                differing.append(source.number)
                differs = returned != frame
                voxels += np.bincount(returned[differs], minlength=len(voxels))
                voxels += np.bincount(frame[differs], minlength=len(voxels))
        if differing:
            voxels[0] = 0
            number = int(voxels.argmax())
            how = f"{int(voxels[number]):,} voxels differ, {self._how_far(number)}"
            where = f"{len(differing)} images differ, the first is image {min(differing)} of {len(self.sources)}"
            raise Misplaced(f"segment {number} is not where the model put it: {how}; {where}")

    def returned(self, source: _Source) -> npt.NDArray[np.uint16]:
        """What the model returned for an image, in segment numbers."""
        values = self.labels.plane(source.header.sop_instance_uid, source.plane)
        # Mostly a value is the number, and looking each up takes longer than all the rest.
        if self.as_they_are and values.max(initial=0) < len(self.numbers):
            return values.astype(np.uint16)
        return self.numbers[values]

    @cached_property
    def as_they_are(self) -> bool:
        """Whether every value that the model may return is the number of its segment."""
        return bool((self.numbers == np.arange(len(self.numbers))).all())

    def _how_far(self, number: int) -> str:
        placed = ((source.plane, self.returned(source) == number) for source in self.sources.values())
        found = _centre(placed)
        frames = zip(self.frames, _pixels(self.seg), strict=True)
        written = _centre((frame.plane, pixels == number) for frame, pixels in frames)
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
