"""Assembling: the images a job was decided on, read from the store and put in slice order."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from segnode.dicom.header import read_header
from segnode.dicom.native_pixels import native_values
from segnode.dicom.volume import Slices, Volume, as_text, order_slices, stored_values, volume_of
from segnode.errors import MixedPatients, NotAVolume, SegnodeError
from segnode.pipeline.rules import SeriesValues
from segnode.pipeline.sweep import ImageValues, content_digest
from segnode.store.index import Index, Instance
from segnode.store.jobs import Job
from segnode.store.objects import ObjectStore

# A series whose next rule waits for longer is swept again and again.
_REMEMBERED: Final = 64


class Superseded(SegnodeError):
    """The series has changed since the job was decided; another job follows when it is quiet again."""


@dataclass(frozen=True)
class Assembler:
    """Reads the images of jobs."""

    objects: ObjectStore
    index: Index
    # Of the last job: who encodes a result asks for what was read a moment ago for the model.
    _kept: dict[str, Slices] = field(default_factory=dict)

    def slices(self, job: Job, *, allow_tilt: bool = False) -> Slices:
        """The headers of the images that a job was decided on, in slice order.

        Raises Superseded when the series holds other images by now; MixedPatients; NotAVolume.
        """
        held = self._held(job)
        kept = self._kept.pop(job.id, None)
        if kept is not None:
            return kept
        images = [self._read(image, with_pixels=False) for image in held]
        self._require_one_patient(images)
        slices = order_slices(images, allow_tilt=allow_tilt)
        self._kept.clear()
        self._kept[job.id] = slices
        return slices

    def volume(self, slices: Slices) -> Volume:
        """The volume of ordered slices. Raises UnreadablePixels, NotAVolume."""
        held = {image.sop_instance_uid: image for image in self.index.images(str(slices.images[0].SeriesInstanceUID))}
        return volume_of(slices, (self._stored_values(image, held[str(image.SOPInstanceUID)]) for image in slices.images))

    def images(self, job: Job) -> Iterator[Dataset]:
        """The images that a job was decided on, with their pixels, one at a time. Raises Superseded, NotAVolume."""
        return (self._read(image, with_pixels=True) for image in self._held(job))

    def _stored_values(self, header: Dataset, instance: Instance) -> npt.NDArray[np.number]:
        native = native_values(self.objects.path(instance.object_key).read_bytes(), header)
        return native if native is not None else stored_values(self._read(instance, with_pixels=True))

    def _held(self, job: Job) -> list[Instance]:
        held = self.index.images(job.series_instance_uid)
        if content_digest(image.sop_instance_uid for image in held) != job.content_digest:
            raise Superseded("more images of the series came: another job is made of it when it is quiet again")
        return held

    def _require_one_patient(self, images: Sequence[Dataset]) -> None:
        """One PatientID in a series, and in its study: of each other series of that, one object is looked at."""
        named = {str(image.get("PatientID") or "").strip(): str(image.SOPInstanceUID) for image in images}
        study = self.index.instances(str(images[0].StudyInstanceUID))
        others = {other.series_instance_uid: other for other in study}
        others.pop(str(images[0].SeriesInstanceUID), None)
        for other in others.values():
            with self.objects.path(other.object_key).open("rb") as file:
                named[read_header(file).attributes.get("PatientID", "")] = other.sop_instance_uid
        named.pop("", None)
        if len(named) > 1:
            where = " and ".join([*named.values()][:2])
            raise MixedPatients(
                f"images of one study name different patients (PatientID of SOP instances {where}): correct them at their"
                " source and send them again"
            )

    def _read(self, instance: Instance, *, with_pixels: bool) -> Dataset:
        try:
            return dcmread(self.objects.path(instance.object_key), stop_before_pixels=not with_pixels)
        except (InvalidDicomError, EOFError, ValueError, RecursionError) as error:
            raise NotAVolume(f"SOP instance {instance.sop_instance_uid} cannot be read: {error}") from error


def image_values(index: Index, path_of: Callable[[str], Path]) -> ImageValues:
    """Reads attributes of the images of series for rules that ask for them; what was read last is remembered."""

    @lru_cache(maxsize=_REMEMBERED)
    def read(series: str, keywords: frozenset[str], _as_of: float) -> SeriesValues:
        return values_in_files((path_of(image.object_key) for image in index.images(series)), keywords)

    return read


def values_in_files(paths: Iterable[Path], keywords: Collection[str]) -> SeriesValues:
    """The values of attributes in Part 10 files; one that lacks an attribute, or cannot be read, has an empty value."""
    found: dict[str, set[str]] = {keyword: set() for keyword in keywords}
    for path in paths:
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=sorted(keywords))
            texts = {keyword: as_text(header.get(keyword)) for keyword in keywords}
        except (InvalidDicomError, EOFError, OSError, ValueError, RecursionError):
            texts = dict.fromkeys(keywords, "")
        for keyword, text in texts.items():
            found[keyword].add(text)
    return found
