"""Assembling: the images a job was decided on, read from the store and put in slice order."""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from segnode.dicom.header import read_header
from segnode.dicom.multi_frame import FrameHeader, with_pixels
from segnode.dicom.native_pixels import native_values
from segnode.dicom.planar import planar_slices
from segnode.dicom.slices import (
    GEOMETRY_ATTRIBUTES,
    MappedArray,
    Slices,
    as_text,
    map_array,
    mapped_volume,
    order_slices,
    stored_values,
)
from segnode.dicom.volume import Volume
from segnode.errors import MixedPatients, NotAVolume, SegnodeError
from segnode.pipeline.compressed_pixels import compressed_values
from segnode.pipeline.rules import Rule, SeriesValues
from segnode.pipeline.sweep import ImageValues, content_digest
from segnode.store.index import Index, Instance, QuietSeries
from segnode.store.jobs import Job
from segnode.store.objects import ObjectStore

# A series whose next rule waits for longer is swept again and again.
_REMEMBERED: Final = 64
# Headers that are read before a job asks for them: some 30 MB.
_READ_AHEAD: Final = 1000
# How long an array is kept of a series that is complete, or that no rule waits for any more.
_AHEAD_S: Final = 60.0


class Superseded(SegnodeError):
    """The series has changed since the job was decided; another job follows when it is quiet again."""


@dataclass(frozen=True)
class Assembler:
    """Reads the images of jobs."""

    objects: ObjectStore
    index: Index
    # Of the last job: who encodes a result asks for what was read a moment ago for the model.
    _kept: dict[str, Slices] = field(default_factory=dict)
    # By object key, whose bytes never change.
    _headers: dict[str, Dataset] = field(default_factory=dict)
    # Of one series, by its UID: the object keys of slices, and the array that these make, or will.
    _ahead: dict[str, tuple[list[str], Future[MappedArray]]] = field(default_factory=dict)

    def read_ahead(self, series_instance_uid: str, *, with_pixels: bool) -> None:
        """Read the headers of a series that a job may soon be made of, those of some series being kept; or its array too."""
        images = self.index.images(series_instance_uid)
        for image in images[-_READ_AHEAD:]:
            if image.object_key in self._headers:
                continue
            try:
                header = self._read(image, with_pixels=False)
            except (NotAVolume, OSError):
                continue  # the job says so
            for keyword in GEOMETRY_ATTRIBUTES:
                header.get(keyword)  # is decoded when it is asked for the first time
            for oldest in [*self._headers][: len(self._headers) - _READ_AHEAD + 1]:
                self._headers.pop(oldest, header)
            self._headers[image.object_key] = header
        if with_pixels:
            self._map_ahead(series_instance_uid, images)

    @property
    def ahead(self) -> AbstractSet[str]:
        """The UID of the series whose array has been read ahead, if there is one."""
        return self._ahead.keys()

    def forget_ahead(self) -> None:
        """Let go of the array that was read ahead."""
        self._ahead.clear()

    def _map_ahead(self, series_instance_uid: str, images: Sequence[Instance]) -> None:
        headers = [header for image in images if (header := self._headers.get(image.object_key))]
        if len(headers) < len(images):
            return  # they are too many, or cannot be read, or a job has them already
        try:
            slices = order_slices(headers, allow_tilt=True)
        except Exception:  # noqa: BLE001  the job meets it again, and says so
            return
        held = {image.sop_instance_uid: image for image in images}
        array = Future[MappedArray]()
        self._ahead.clear()
        self._ahead[series_instance_uid] = _keys(slices, held), array
        try:
            array.set_result(self._mapped(slices, held))
        except Exception as error:  # noqa: BLE001  the job meets it again, and says so
            array.set_exception(error)

    def slices(self, job: Job, rule: Rule) -> Slices:
        """The headers of the images that a job was decided on, in slice order.

        Raises Superseded when the series holds other images by now; MixedPatients; NotAVolume.
        """
        held = self._held(job)
        kept = self._kept.pop(job.id, None)
        if kept is not None:
            return kept
        images = [self._header(image) for image in held]
        self._require_one_patient(images)
        slices = slices_for(rule, images)
        self._kept.clear()
        self._kept[job.id] = slices
        return slices

    def contents(self, job: Job) -> Mapping[str, str]:
        """By SOP instance UID, what each image that a job was decided on is called in its content. Raises Superseded."""
        return {image.sop_instance_uid: image.content for image in self._held(job)}

    def volume(self, slices: Slices) -> Volume:
        """The volume of ordered slices. Raises UnreadablePixels, NotAVolume, OutOfResources."""
        held = {image.sop_instance_uid: image for image in self.index.images(str(slices.images[0].SeriesInstanceUID))}
        keys, ahead = self._ahead.pop(str(slices.images[0].SeriesInstanceUID), ([], None))
        if ahead is not None and keys == _keys(slices, held) and ahead.exception() is None:
            return mapped_volume(slices, ahead.result())
        return mapped_volume(slices, self._mapped(slices, held))

    def images(self, job: Job) -> Iterator[Dataset]:
        """The images that a job was decided on, with their pixels, one at a time. Raises Superseded, NotAVolume."""
        return (self._read(image, with_pixels=True) for image in self._held(job))

    def _header(self, instance: Instance) -> Dataset:
        read_ahead = self._headers.pop(instance.object_key, None)
        return self._read(instance, with_pixels=False) if read_ahead is None else read_ahead

    def _mapped(self, slices: Slices, held: Mapping[str, Instance]) -> MappedArray:
        return map_slices(slices, lambda uid: self.objects.path(held[uid].object_key), self.objects.incoming)

    def _held(self, job: Job) -> list[Instance]:
        held = self.index.images(job.series_instance_uid)
        if content_digest(image.content for image in held) != job.content_digest:
            raise Superseded(
                "the series holds other images than the job was decided on: where more came, another is made when it is quiet"
            )
        return held

    def _require_one_patient(self, images: Sequence[Dataset]) -> None:
        """One PatientID in a series, and in its study: of each other series of that, one object is looked at."""
        named = patients(images)
        study = self.index.instances(str(images[0].StudyInstanceUID))
        others = {other.series_instance_uid: other for other in study}
        others.pop(str(images[0].SeriesInstanceUID), None)
        for other in others.values():
            # One that has been deleted meanwhile is of no study any more.
            with suppress(FileNotFoundError), self.objects.path(other.object_key).open("rb") as file:
                named[read_header(file).attributes.get("PatientID", "")] = other.sop_instance_uid
        require_one_patient(named)

    def _read(self, instance: Instance, *, with_pixels: bool) -> Dataset:
        return read_image(self.objects.path(instance.object_key), instance.sop_instance_uid, with_pixels=with_pixels)


def read_image(path: Path, sop_instance_uid: str, *, with_pixels: bool) -> Dataset:
    """An image from its file. Raises NotAVolume, naming it."""
    try:
        return dcmread(path, stop_before_pixels=not with_pixels)
    except (InvalidDicomError, EOFError, ValueError, RecursionError) as error:
        raise NotAVolume(f"SOP instance {sop_instance_uid} cannot be read: {error}") from error


def slices_for(rule: Rule, images: Sequence[Dataset]) -> Slices:
    """The images of a series (headers suffice, any order) as the model of a rule is given them. Raises NotAVolume."""
    if rule.model.input == "planar":
        return planar_slices(images)
    return order_slices(images, allow_tilt=rule.config.allow_tilt)


def map_slices(slices: Slices, path_of: Callable[[str], Path], folder: Path) -> MappedArray:
    """The array of slices, whose files are found by SOP instance UID. Raises UnreadablePixels, NotAVolume, OutOfResources."""
    stored = lambda header: _values_in_file(path_of(str(header.SOPInstanceUID)), header)  # noqa: E731
    if isinstance(slices.images[0], FrameHeader):
        uid = str(slices.images[0].SOPInstanceUID)
        image = read_image(path_of(uid), uid, with_pixels=True)
        image.get("PixelData")  # is made of the file's bytes here, and not in several threads
        stored = lambda header: stored_values(with_pixels(header, image))  # noqa: E731
    return map_array(slices, stored, folder)


def _values_in_file(path: Path, header: Dataset) -> npt.NDArray[np.number]:
    """The stored values (rows, columns) of an image in a file. Raises UnreadablePixels, NotAVolume."""
    part10 = path.read_bytes()
    for values_in in (native_values, compressed_values):
        if (values := values_in(part10, header)) is not None:
            return values
    return stored_values(read_image(path, str(header.SOPInstanceUID), with_pixels=True))


def patients(images: Iterable[Dataset]) -> dict[str, str]:
    """Who images are of, by PatientID, each with the SOP instance UID of one of them."""
    return {str(image.get("PatientID") or "").strip(): str(image.SOPInstanceUID) for image in images}


def require_one_patient(named: Mapping[str, str]) -> None:
    """Raise MixedPatients where objects of one study name several patients."""
    known = [sop_instance_uid for patient, sop_instance_uid in named.items() if patient]
    if len(known) > 1:
        where = " and ".join(known[:2])
        raise MixedPatients(
            f"images of one study name different patients (PatientID of SOP instances {where}): correct them at their"
            " source and send them again"
        )


def _keys(slices: Slices, held: Mapping[str, Instance]) -> list[str]:
    return [held[str(image.SOPInstanceUID)].object_key for image in slices.images]


class ReadAhead:
    """Has series read that are complete soon, as it seems, in a thread, one after the other: headers while images come.

    Then also the array, of one series, unless `is_busy`: a job that is there already has no use for it.
    """

    def __init__(self, assembler: Assembler, is_busy: Callable[[], bool], clock: Callable[[], float]) -> None:
        self._assembler = assembler
        self._is_busy = is_busy
        self._clock = clock
        self._thread: threading.Thread | None = None
        # By series, as of when it was read, and whether with its pixels.
        self._read: dict[str, tuple[float, bool]] = {}
        self._expected_at = 0.0

    def expect(self, series: QuietSeries) -> None:
        """Have a series read, unless it is, or another is being read; returns at once."""
        uid, as_of = series.series_instance_uid, series.last_received_at
        if uid in self._assembler.ahead:
            self._expected_at = self._clock()
        if self._read.get(uid) == (as_of, True) or (self._thread is not None and self._thread.is_alive()):
            return
        with_pixels = not series.is_being_sent and self._assembler.ahead <= {uid} and not self._is_busy()
        if self._read.get(uid) == (as_of, with_pixels):
            return
        if len(self._read) >= _REMEMBERED:
            self._read.clear()
        self._read[uid] = as_of, with_pixels
        self._expected_at = self._clock()
        read = partial(self._assembler.read_ahead, uid, with_pixels=with_pixels)
        self._thread = threading.Thread(target=read, name="reading ahead", daemon=True)
        self._thread.start()

    def tire(self) -> None:
        """Let go of an array that no job has asked for a minute after its series was expected last; to be called often."""
        if self._clock() - self._expected_at > _AHEAD_S:
            self._assembler.forget_ahead()


def image_values(index: Index, path_of: Callable[[str], Path]) -> ImageValues:
    """Reads attributes of the images of series for rules that ask for them; what was read last is remembered."""

    @lru_cache(maxsize=_REMEMBERED)
    def read(series: str, keywords: frozenset[str], _as_of: float) -> SeriesValues:
        return values_in_files((path_of(image.object_key) for image in index.images(series)), keywords)

    return read


def is_stat(path: Path) -> bool:
    """Whether the procedure of an image in a file is asked for as STAT (RequestedProcedurePriority, PS3.3 C.4.11)."""
    return values_in_files([path], ["RequestedProcedurePriority"])["RequestedProcedurePriority"] == {"STAT"}


def values_in_files(paths: Iterable[Path], keywords: Collection[str]) -> SeriesValues:
    """The values of attributes in Part 10 files; one that lacks an attribute, or cannot be read, has an empty value."""
    found: dict[str, set[str]] = {keyword: set() for keyword in keywords}
    for path in paths:
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=sorted(keywords))
            texts = {keyword: as_text(header.get(keyword)) for keyword in keywords}
        except Exception:  # noqa: BLE001  pydicom raises anything on what is no DICOM
            texts = dict.fromkeys(keywords, "")
        for keyword, text in texts.items():
            found[keyword].add(text)
    return found
