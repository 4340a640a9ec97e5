"""Import: labels of a training set become segmentations of the images that they were made of."""

import hashlib
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Final, Literal

import numpy as np

from segnode.datasets.classes import Class, Classes, classes_of_dictionary
from segnode.datasets.formats import FormatName, LabelFile, format_of
from segnode.datasets.grid import Grid, affine_text, fit, fits, require_shape
from segnode.datasets.images import Images, read_images
from segnode.datasets.layers import Layers
from segnode.datasets.manifest import Manifest, classes_in, manifest_of, pseudonym
from segnode.datasets.pairing import about
from segnode.datasets.sources import Series, Source, Wanted
from segnode.dicom.geometry import Vector
from segnode.dicom.header import read_header
from segnode.dicom.uids import derived_uid
from segnode.errors import BadDataset, CannotWrite, GridMismatch, NotAVolume, OverlappingSegments, Refusal
from segnode.seg.combine import Labelmap, label_type
from segnode.seg.segmentation import DescribedSegment
from segnode.seg.segments import LabelDictionary
from segnode.seg.write import Identity, StoredAs, write_segmentation
from segnode.seg.write.placement import on_slices
from segnode.store.filesystem import synchronise

# Part of every derived UID: raise it when the same labels are written as another object.
_REVISION: Final = "1"
_LARGEST_STACK: Final = 4 << 30

Overlap = Literal["binary", "split", "error"]


@dataclass(frozen=True)
class Import:
    """What is to be imported, as what, and how; without a dictionary the manifest has one."""

    format: FormatName
    dictionary: LabelDictionary | None = None
    assume_grid: bool = False
    overlap: Overlap = "binary"


@dataclass(frozen=True)
class Imported:
    """A segmentation that came of labels, `created` as it says; `was_there` says that it did so before, of the same."""

    where: str
    series_instance_uid: str
    sop_instance_uid: str
    file: Path
    created: datetime
    was_there: bool = False


@dataclass(frozen=True)
class _Candidate:
    """An image series that labels may be of."""

    series: Series
    grid: Grid


def import_dataset(
    path: Path,
    images: Source,
    out: Path,
    asked: Import,
    *,
    wanted: Wanted | None = None,
    progress: Callable[[Iterable[LabelFile]], Iterator[LabelFile]] = iter,
) -> list[Imported]:
    """Write a segmentation for each label of a set into the folder `out`, which gets all of them or none.

    What an earlier import of the same wrote is left as it is. Raises BadDataset, GridMismatch, LabelError, CannotWrite,
    NotAVolume, OverlappingSegments, FindFailed.
    """
    if not path.exists():
        raise BadDataset(f"{path} is not there")
    format_ = format_of(asked.format)
    if format_.zipped and path.is_file() and not zipfile.is_zipfile(path):
        raise BadDataset(f"{path} is no zip, or a broken one")
    manifest = manifest_of(path)
    if manifest is not None and manifest.format != asked.format:
        raise BadDataset(f"{path} is a set of format {manifest.format}, as its manifest says, and not {asked.format}")
    classes = _classes(asked, manifest, path)
    found = _Matching(images, images.series(wanted or Wanted({}, {})), manifest, assume_grid=asked.assume_grid)
    chosen: dict[str, str] = {}
    work = out.parent / f".{out.name}.{token_hex(4)}.part"
    try:
        created = _changed_at(path)
        work.mkdir(parents=True)
        made = []
        for label in progress(format_.labels(path, manifest, classes)):
            candidate = found.of(label)
            uid = candidate.series.series_instance_uid
            if uid in chosen:
                raise BadDataset(f"{chosen[uid]} and {label.where} both are labels of image series {uid}: take one of them")
            chosen[uid] = label.where
            made += _write(label, candidate, images, classes, manifest, asked, created, work)
        if not made:
            raise BadDataset(f"{path} holds no labels")
        return _into_place(made, work, out)
    except OSError as error:
        raise CannotWrite(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _changed_at(path: Path) -> datetime:
    """When a set was changed last: what is made of it says so, and a repeat says the same."""
    files = [file for file in path.rglob("*") if file.is_file()] or [path]
    return datetime.fromtimestamp(max(file.stat().st_mtime for file in files), UTC)


def _classes(asked: Import, manifest: Manifest | None, path: Path) -> Classes:
    if asked.dictionary is not None:
        return classes_of_dictionary(asked.dictionary)
    if manifest is None:
        raise BadDataset(f"{path} has no manifest with a label dictionary: give one (--labels)")
    return classes_in(manifest)


class _Matching:
    """Finds the images of labels: by the manifest, by the affine in the patient's space, or by the grid that is assumed."""

    def __init__(self, source: Source, series: Sequence[Series], manifest: Manifest | None, *, assume_grid: bool) -> None:
        self._source = source
        self._manifest = manifest
        self._assume_grid = assume_grid
        self._series = [each for each in series if not each.is_segmentation]
        self._grids: dict[str, Grid | None] = {}

    def of(self, label: LabelFile) -> _Candidate:
        """The image series of labels. Raises BadDataset, GridMismatch."""
        named = self._of_entry(label)
        if named is not None:
            grid = self._grid(named)
            if grid is None:
                raise BadDataset(f"{label.where}: image series {named.series_instance_uid} is no volume")
            return _Candidate(named, grid)
        if label.affine is None and not self._assume_grid:
            raise GridMismatch(
                f"{label.where} does not say where its labels lie in the patient, and the manifest names no images that are"
                " here: --assume-grid takes them to lie on the one image series of their shape"
            )
        grids = [(each, grid) for each in self._series if (grid := self._grid(each)) is not None]
        if self._assume_grid:
            fitting = [_Candidate(each, grid) for each, grid in grids if grid.shape == tuple(label.shape)]
        else:
            fitting = [_Candidate(each, grid) for each, grid in grids if _fits(label, grid)]
        if len(fitting) > 1:
            uids = ", ".join(each.series.series_instance_uid for each in fitting)
            raise BadDataset(f"{label.where} fits several image series, {uids}: give the folder or --query of one")
        if not fitting:
            raise GridMismatch(_no_grid(label, grids))
        return fitting[0]

    def _of_entry(self, label: LabelFile) -> Series | None:
        if self._manifest is None or label.entry is None:
            return None
        key, written_as = self._manifest.key, label.entry.written_as
        written = next((each for each in self._series if written_as and each.series_instance_uid == written_as), None)
        if written is not None:
            return written
        names = {pseudonym(key, each.series_instance_uid, each.sop_instance_uids): each for each in self._series}
        return names.get(label.entry.series)

    def _grid(self, series: Series) -> Grid | None:
        uid = series.series_instance_uid
        if uid not in self._grids:
            with self._source.files(series) as files:
                try:
                    self._grids[uid] = read_images(files).grid
                except NotAVolume:
                    self._grids[uid] = None
        return self._grids[uid]


def _fits(label: LabelFile, grid: Grid) -> bool:
    return label.affine is not None and fits(label.shape, label.affine, grid)


def _no_grid(label: LabelFile, grids: Sequence[tuple[Series, Grid]]) -> str:
    size = " x ".join(map(str, label.shape))
    told = f"{label.where}: its labels, {size} (slices, rows, columns)"
    told += f" at\n{affine_text(label.affine)}\n" if label.affine is not None else " "
    if not grids:
        return f"{told}lie on no images: there is no image series that is a volume"
    others = [
        f"{series.series_instance_uid}, {' x '.join(map(str, grid.shape))} at\n{affine_text(grid.affine)}"
        for series, grid in grids
    ]
    return f"{told}lie on the grid of none of the image series:\n" + "\n".join(others[:4])


def _write(
    label: LabelFile,
    candidate: _Candidate,
    source: Source,
    classes: Classes,
    manifest: Manifest | None,
    asked: Import,
    created: datetime,
    work: Path,
) -> list[Imported]:
    layers = _on_grid(label, candidate.grid, assume_grid=asked.assume_grid)
    described = _described(label, layers, classes, manifest)
    with source.files(candidate.series) as files:
        images = read_images(files)
    with about(label.where):
        objects = _segmentations(layers, described, images, asked.overlap, created)
    made = []
    stem = label.entry.id if label.entry else candidate.series.series_instance_uid
    for place, (part10, uid) in enumerate(objects, 1):
        file = work / (f"{stem}.dcm" if len(objects) == 1 else f"{stem}-{place}.dcm")
        file.write_bytes(part10)
        synchronise(file)
        made.append(Imported(label.where, candidate.series.series_instance_uid, uid, file, created))
    return made


def _on_grid(label: LabelFile, grid: Grid, *, assume_grid: bool) -> Layers:
    affine = label.affine
    if assume_grid or not grid.placed:
        require_shape(label.shape, grid, label.where)
        return label.load()
    if affine is None:
        affine = _affine_of_entry(label)
    fitting = fit(label.shape, affine, grid, label.where)
    loaded = label.load()
    return Layers(tuple(np.ascontiguousarray(fitting.place(each)) for each in loaded.maps), loaded.of)


def _affine_of_entry(label: LabelFile) -> Vector:
    """Where the manifest says that the labels lie. Raises GridMismatch."""
    if label.entry is None or len(label.entry.affine) != 4:
        raise GridMismatch(f"{label.where} does not say where its labels lie in the patient (--assume-grid)")
    return np.array(label.entry.affine, np.float64)


def _described(label: LabelFile, layers: Layers, classes: Classes, manifest: Manifest | None) -> list[Class]:
    """The classes that a segmentation tells apart: those with a voxel, and those that it told apart when it was exported."""
    values = set(layers.of)
    if manifest is not None and label.entry is not None:
        names = {each.name for each in manifest.classes if each.value in (label.entry.values or ())}
        values |= {each.value for each in classes.all if each.name in names}
    return [classes.of_value(value, label.where) for value in sorted(values)]


def _segmentations(
    layers: Layers, classes: Sequence[Class], images: Images, overlap: Overlap, created: datetime
) -> list[tuple[bytes, str]]:
    """The objects that labels become, each with its SOP instance UID: a LABELMAP, or what `overlap` says."""
    if not classes:
        raise BadDataset("it holds no labels, and the manifest does not say of what there might be some")
    maps = layers.maps
    if len(maps) > 1 and overlap == "error":
        raise OverlappingSegments("its labels overlap: --overlap binary or split keeps all of them")
    if len(maps) == 1 or overlap == "split":
        parts = [
            (labels, [each for each in classes if layers.of.get(each.value, 0) == place]) for place, labels in enumerate(maps)
        ]
        return [_labelmap(labels, of, images, place, created) for place, (labels, of) in enumerate(parts) if of]
    needed = maps[0].size * len(classes)
    if needed > _LARGEST_STACK:
        raise OverlappingSegments(f"its labels overlap, and as a BINARY they take {needed >> 30} GiB: --overlap split")
    stack = np.zeros((*maps[0].shape, len(classes)), np.uint8)
    for place, each in enumerate(classes):
        if each.value in layers.of:
            stack[..., place] = layers.mask(each.value)
    segments = [replace(each.segment, number=place) for place, each in enumerate(classes, 1)]
    return [_object(stack, segments, StoredAs("BINARY", omit_empty_frames=bool(stack.any())), images, 0, created)]


def _labelmap(labels: Labelmap, classes: Sequence[Class], images: Images, place: int, created: datetime) -> tuple[bytes, str]:
    number_of = {each.value: each.segment.number for each in classes}
    if any(value != number for value, number in number_of.items()):
        table = np.zeros(max(*number_of, int(labels.max())) + 1, label_type(max(number_of.values())))
        table[list(number_of)] = list(number_of.values())
        labels = table[labels]
    segments = sorted((each.segment for each in classes), key=lambda segment: segment.number)
    return _object(labels, segments, StoredAs("LABELMAP", "rle", omit_empty_frames=False), images, place, created)


def _object(
    pixels: Labelmap,
    segments: Sequence[DescribedSegment],
    stored_as: StoredAs,
    images: Images,
    place: int,
    created: datetime,
) -> tuple[bytes, str]:
    """A segmentation whose UIDs derive from what it says of which images, so that a repeat is the same object."""
    series = str(images.headers[0].SeriesInstanceUID)
    said = [repr(segment) for segment in segments]
    content = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
    parts = (series, [str(header.SOPInstanceUID) for header in images.headers], said, stored_as.type, content, str(place))
    identity = Identity(
        derived_uid("dataset segmentation", _REVISION, *parts),
        derived_uid("dataset segmentation series", _REVISION, *parts),
        "Imported labels",
        created,
        "dataset",
        version("segnode"),
    )
    return write_segmentation(pixels, on_slices(images.headers), segments, stored_as, identity), str(identity.sop_instance_uid)


def _into_place(made: Sequence[Imported], work: Path, out: Path) -> list[Imported]:
    """Give the folder its name, or leave what is there where that is the same. Raises CannotWrite."""
    if not out.exists():
        synchronise(work)
        work.rename(out)
        synchronise(out.parent)
        return [replace(each, file=out / each.file.name) for each in made]
    for each in made:
        if _uid_in(out / each.file.name) != each.sop_instance_uid:
            raise CannotWrite(f"{out} is there already, and does not hold the segmentation of {each.where}: take another name")
    return [replace(each, file=out / each.file.name, was_there=True) for each in made]


def _uid_in(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return read_header(opened).sop_instance_uid
    except (OSError, Refusal):
        return ""
