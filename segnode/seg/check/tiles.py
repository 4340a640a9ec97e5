"""The rules for tiles of a total pixel matrix (PS3.3 C.7.6.17.3, C.8.12.14, C.8.12.6.1)."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from pydicom import Dataset

from segnode.seg.check.finding import Finding, error, has, items, number, numbers, text, value_of, warning

_FRAME: Final = "PerFrameFunctionalGroupsSequence[{}]."
_PLACE: Final = "PlanePositionSlideSequence[0]."
_MODULE: Final = "PS3.3 C.8.12.14"
_TILED: Final = "PS3.3 C.7.6.17.3"
_FROM_TILE: Final = 0.5  # of the spacing of pixels: what is farther off is another pixel


def check_tiles(
    dataset: Dataset,
    places: Sequence[tuple[Any, ...]],
    segments: Sequence[tuple[Any, ...]],
    described: Sequence[int],
) -> Iterator[Finding]:
    """Tiles are as many as the matrix has, and lie within it, where they say.

    `places` has for each frame the values of its Plane Position (Slide): column, row, X, Y and Z offset, each a tuple of its
    numbers; `segments` the number that each frame refers to; `described` the numbers of SegmentSequence in their order.
    """
    organized = text(dataset, "DimensionOrganizationType")
    if organized not in ("TILED_FULL", "TILED_SPARSE") and value_of(dataset, "TotalPixelMatrixRows") is None:
        return
    keywords = ("TotalPixelMatrixRows", "TotalPixelMatrixColumns", "Rows", "Columns")
    sizes = [number(dataset, keyword) or 0 for keyword in keywords]
    for keyword, size in zip(keywords[:2], sizes[:2], strict=True):
        if size < 1:
            yield error(keyword, _MODULE, "is absent or not above 0; tiles are parts of a total pixel matrix")
    yield from _origin(dataset)
    if min(sizes) < 1:
        return
    if organized == "TILED_FULL":
        yield from _full(dataset, sizes, places, segments, described)
    for index, place in enumerate(places):
        if place:
            yield from _within(sizes, place[0], f"{_FRAME.format(index)}{_PLACE}")
    yield from _offsets(dataset, places)


def _origin(dataset: Dataset) -> Iterator[Finding]:
    """Where the matrix lies on the slide."""
    origin = items(dataset, "TotalPixelMatrixOriginSequence")
    if len(origin) != 1:
        yield error("TotalPixelMatrixOriginSequence", _MODULE, "has not one item; say where the first pixel lies on the slide")
    for keyword in ("XOffsetInSlideCoordinateSystem", "YOffsetInSlideCoordinateSystem"):
        if origin and len(numbers(origin[0], keyword)) != 1:
            path = f"TotalPixelMatrixOriginSequence[0].{keyword}"
            yield error(path, _MODULE, "is absent or no number; say where the first pixel lies on the slide")
    needed = text(dataset, "DimensionOrganizationType") == "TILED_FULL" or has(dataset, "ImageOrientationSlide")
    if needed and len(numbers(dataset, "ImageOrientationSlide")) != 6:
        yield error("ImageOrientationSlide", _MODULE, "is absent or has not six cosines")


def _full(
    dataset: Dataset,
    sizes: Sequence[int],
    places: Sequence[tuple[Any, ...]],
    segments: Sequence[tuple[Any, ...]],
    described: Sequence[int],
) -> Iterator[Finding]:
    """TILED_FULL has every tile, row by row, for each focal plane, for each segment; what frames say is the same."""
    down, across = (-(-sizes[axis] // sizes[axis + 2]) for axis in (0, 1))
    focal = number(dataset, "TotalPixelMatrixFocalPlanes")
    if focal is None or focal < 1:
        yield error("TotalPixelMatrixFocalPlanes", _MODULE, "is absent or not above 0; TILED_FULL needs it")
    if has(dataset, "ConcatenationUID"):  # the tiles are those of all its instances
        return
    a_segment = down * across * max(focal or 1, 1)
    times = 1 if text(dataset, "SegmentationType") == "LABELMAP" else len(described)
    frames = number(dataset, "NumberOfFrames")
    if frames is not None and frames != a_segment * times:
        of = f"{down} x {across} tiles" + (f" in {focal} focal planes" if a_segment > down * across else "")
        what = f"is {frames}; TILED_FULL has {a_segment * times}, {of}{f' for each of {times} segments' if times > 1 else ''}"
        yield error("NumberOfFrames", _TILED, what)
        return
    for index, (place, segment) in enumerate(zip(places, segments, strict=True)):
        row, column = divmod(index % (down * across), across)
        implied = (column * sizes[3] + 1, row * sizes[2] + 1)
        if place and (*place[0][0], *place[0][1]) != implied:
            what = f"is not the place that TILED_FULL gives the frame, column {implied[0]} and row {implied[1]}"
            yield error(f"{_FRAME.format(index)}PlanePositionSlideSequence", _TILED, what)
        if segment and times > 1 and segment[0] != described[index // a_segment % times]:
            what = f"is {segment[0]}, where the order of TILED_FULL makes it {described[index // a_segment % times]}"
            path = f"{_FRAME.format(index)}SegmentIdentificationSequence[0].ReferencedSegmentNumber"
            yield error(path, _TILED, what)


def _within(sizes: Sequence[int], place: tuple[Any, ...], path: str) -> Iterator[Finding]:
    """A tile begins within the matrix, whose first pixel is 1, 1."""
    for axis, found, size in (("Row", place[1], sizes[0]), ("Column", place[0], sizes[1])):
        if found and not 1 <= found[0] <= size:
            what = f"is {found[0]:.0f}; the total pixel matrix has {axis.lower()}s 1 to {size}"
            yield error(f"{path}{axis}PositionInTotalImagePixelMatrix", "PS3.3 C.8.12.6.1", what)


def _offsets(dataset: Dataset, places: Sequence[tuple[Any, ...]]) -> Iterator[Finding]:
    """The offset of a tile on the slide is that of its first pixel in the matrix."""
    origin, cosines = items(dataset, "TotalPixelMatrixOriginSequence")[:1], numbers(dataset, "ImageOrientationSlide")
    shared = items(dataset, "SharedFunctionalGroupsSequence")[:1]
    spacing = [numbers(item, "PixelSpacing") for group in shared for item in items(group, "PixelMeasuresSequence")[:1]]
    offset = [numbers(origin[0], f"{axis}OffsetInSlideCoordinateSystem") for axis in "XY"] if origin else []
    complete = [index for index, place in enumerate(places) if place and all(len(part) == 1 for part in place[0][:4])]
    if not complete or not spacing or len(spacing[0]) != 2 or len(cosines) != 6 or [len(part) for part in offset] != [1, 1]:
        return
    said = np.array([[part[0] for part in places[index][0][:4]] for index in complete], np.float64)
    between_rows, between_columns = spacing[0]
    along, down = np.array(cosines[:2]) * between_columns, np.array(cosines[3:5]) * between_rows
    expected = np.array([part[0] for part in offset]) + np.outer(said[:, 0] - 1, along) + np.outer(said[:, 1] - 1, down)
    with np.errstate(all="ignore"):
        off = np.abs(said[:, 2:] - expected).max(axis=1)
    for index, distance in zip(complete, off.tolist(), strict=True):
        if not distance <= _FROM_TILE * min(between_rows, between_columns):
            what = f"lies {distance:.4g} mm from where row and column in the total pixel matrix are"
            yield warning(f"{_FRAME.format(index)}PlanePositionSlideSequence", "PS3.3 C.8.12.6.1", what)
