"""Assembling: the images a job was decided on, read from the store and put in slice order."""

from dataclasses import dataclass

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from segnode.dicom.volume import Slices, order_slices
from segnode.errors import NotAVolume, SegnodeError
from segnode.pipeline.sweep import content_digest
from segnode.store.index import Index
from segnode.store.jobs import Job
from segnode.store.objects import ObjectStore


class Superseded(SegnodeError):
    """The series has changed since the job was decided; another job follows when it is quiet again."""


@dataclass(frozen=True)
class Assembler:
    """Reads the images of jobs."""

    objects: ObjectStore
    index: Index

    def slices(self, job: Job, *, with_pixels: bool) -> Slices:
        """The images that a job was decided on, in slice order.

        Raises Superseded when the series holds other images by now; NotAVolume.
        """
        held = self.index.images(job.series_instance_uid)
        if content_digest(image.sop_instance_uid for image in held) != job.content_digest:
            raise Superseded("more images of the series came: another job is made of it when it is quiet again")
        return order_slices([self._read(i.object_key, i.sop_instance_uid, with_pixels=with_pixels) for i in held])

    def _read(self, object_key: str, sop_instance_uid: str, *, with_pixels: bool) -> Dataset:
        try:
            return dcmread(self.objects.path(object_key), stop_before_pixels=not with_pixels)
        except (InvalidDicomError, EOFError, ValueError, RecursionError) as error:
            raise NotAVolume(f"SOP instance {sop_instance_uid} cannot be read: {error}") from error
