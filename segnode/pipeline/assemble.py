"""Assembling: the images a job was decided on, read from the store and put in slice order."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from segnode.dicom.volume import Slices, Volume, as_text, order_slices, read_volume
from segnode.errors import NotAVolume, SegnodeError
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

    def slices(self, job: Job) -> Slices:
        """The headers of the images that a job was decided on, in slice order.

        Raises Superseded when the series holds other images by now; NotAVolume.
        """
        held = self.index.images(job.series_instance_uid)
        if content_digest(image.sop_instance_uid for image in held) != job.content_digest:
            raise Superseded("more images of the series came: another job is made of it when it is quiet again")
        return order_slices([self._read(image, with_pixels=False) for image in held])

    def volume(self, slices: Slices) -> Volume:
        """The volume of ordered slices. Raises UnreadablePixels."""
        held = (self.index.find(str(image.SOPInstanceUID)) for image in slices.images)
        return read_volume(slices, (self._read(image, with_pixels=True) for image in held if image is not None))

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
