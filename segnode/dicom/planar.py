"""Planar images (CR, DX, MG): pixels that have a size, and no place in the patient."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydicom import Dataset

from segnode.dicom.geometry import Vector
from segnode.dicom.multi_frame import is_multi_frame
from segnode.dicom.slices import Slices, as_text
from segnode.dicom.volume import Volume
from segnode.errors import NotAVolume

# What a model may want to know of each, beside what is said of the series.
_OF_AN_IMAGE: Final = ("PhotometricInterpretation", "ViewPosition", "ImageLaterality", "PatientOrientation")


def planar_slices(images: Sequence[Dataset]) -> Slices:
    """The planar images of a series (headers suffice, any order), by instance number. Raises NotAVolume, naming an image."""
    first = images[0]
    for image in images:
        what = f"SOP instance {image.SOPInstanceUID}"
        if is_multi_frame(image):
            raise NotAVolume(f"{what} is multi-frame: planar images have one frame")
        if image.get("ImagePositionPatient"):
            raise NotAVolume(f"{what} has an ImagePositionPatient: it is a slice, and no planar image")
        if (image.get("Rows"), image.get("Columns")) != (first.get("Rows"), first.get("Columns")):
            raise NotAVolume(f"{what} has other Rows or Columns than {first.SOPInstanceUID}: one SEG cannot be of both")
    in_order = sorted(images, key=lambda image: (int(image.get("InstanceNumber") or 0), str(image.SOPInstanceUID)))
    return Slices(tuple(in_order), _affine(in_order[0]), ())


def one_by_one(slices: Slices, volume: Volume) -> list[Volume]:
    """Of the volume of planar images a volume of one slice for each.

    Its affine maps (slice, row, column) to millimetres on the detector, from the first pixel on: it is no place in a patient.
    """
    return [
        Volume(
            volume.array[number : number + 1],
            _affine(image),
            {**volume.series, **{keyword: as_text(image[keyword].value) for keyword in _OF_AN_IMAGE if image.get(keyword)}},
            volume.sop_instance_uids[number : number + 1],
            volume.files[number : number + 1],
        )
        for number, image in enumerate(slices.images)
    ]


def _affine(image: Dataset) -> Vector:
    spacing = image.get("PixelSpacing") or image.get("ImagerPixelSpacing") or (1, 1)
    affine = np.eye(4)
    affine[:3, :3] = np.fliplr(np.diag([float(spacing[1]), float(spacing[0]), 1.0]))
    return affine
