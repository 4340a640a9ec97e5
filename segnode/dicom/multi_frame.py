"""Frames of enhanced and legacy-converted multi-frame images, each with a header as a single-frame image has it."""

from collections.abc import Sequence
from typing import Final

from pydicom import Dataset

from segnode.errors import NotAVolume

# What a functional group says of a frame, by the attribute that a single-frame image has for it (PS3.3 C.7.6.16.2).
_GROUPS: Final = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
}
_OF_ALL_FRAMES: Final = (
    "NumberOfFrames",
    "PixelData",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *(keyword for keywords in _GROUPS.values() for keyword in keywords),
)


class FrameHeader(Dataset):
    """The header of a frame: what its image says of all of them, and its own place and rescale.

    `frame_number` is from 1; `image` is the header of the multi-frame image.
    """

    frame_number: int
    image: Dataset


def is_multi_frame(image: Dataset) -> bool:
    """Whether an image is of a multi-frame class with functional groups, or has several frames."""
    return "PerFrameFunctionalGroupsSequence" in image or int(image.get("NumberOfFrames") or 1) > 1


def frame_headers(image: Dataset) -> Sequence[FrameHeader]:
    """The headers of the frames of a multi-frame image, in their order. Raises NotAVolume where nothing says where they lie."""
    what = f"SOP instance {image.SOPInstanceUID} is multi-frame"
    items, count = image.get("PerFrameFunctionalGroupsSequence"), int(image.get("NumberOfFrames") or 1)
    if not items:
        raise NotAVolume(f"{what} and has no PerFrameFunctionalGroupsSequence: where its frames lie is not said")
    if len(items) != count:
        raise NotAVolume(f"{what}: PerFrameFunctionalGroupsSequence has {len(items)} items for {count} frames (NumberOfFrames)")
    shared = next(iter(image.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    of_all = Dataset()
    of_all.update(image)
    for keyword in _OF_ALL_FRAMES:
        if keyword in of_all:
            delattr(of_all, keyword)
    return [_frame_header(image, of_all, number, (item, shared)) for number, item in enumerate(items, start=1)]


def frames_without_groups(image: Dataset) -> Sequence[FrameHeader]:
    """The headers of the frames of a multi-frame image that says the same of all of them: a clip."""
    of_all = Dataset()
    of_all.update({element.tag: element for element in image if element.keyword not in ("NumberOfFrames", "PixelData")})
    return [_frame_header(image, of_all, number, ()) for number in range(1, int(image.get("NumberOfFrames") or 1) + 1)]


def with_pixels(header: Dataset, image: Dataset) -> Dataset:
    """An image that was read with its pixels, or of it the frame that a header is of."""
    if not isinstance(header, FrameHeader):
        return image
    frame = FrameHeader()
    frame.update(header)
    frame.frame_number, frame.image = header.frame_number, image
    return frame


def _frame_header(image: Dataset, of_all: Dataset, number: int, groups: Sequence[Dataset]) -> FrameHeader:
    header = FrameHeader()
    header.update(of_all)
    header.frame_number, header.image = number, image
    for sequence, keywords in _GROUPS.items():
        group = next((item[sequence][0] for item in groups if item.get(sequence)), Dataset())
        for keyword in keywords:
            if keyword in group:
                header[keyword] = group[keyword]
    return header
