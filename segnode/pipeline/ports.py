"""What the pipeline asks of the outside: models, destinations, and what peers have of a series."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from segnode.config import FormName
from segnode.dicom.volume import Volume


@dataclass(frozen=True, eq=False)
class Result:
    """What a model gives back: `labelmap`, integers of the shape of the volume's array (slices, rows, columns); 0 is none."""

    labelmap: npt.NDArray[np.integer]


class Model(Protocol):
    """Something that turns a volume into a labelmap."""

    def __call__(self, volume: Volume) -> Result:
        """Segment a volume. Whatever it raises is the job's failure; the same volume may be given again after a crash."""
        ...


class Segmentation(Protocol):
    """A SEG that is on its way, in whatever form a destination takes."""

    @property
    def sop_class_uid(self) -> str:
        """Its SOP class."""
        ...

    @property
    def sop_instance_uid(self) -> str:
        """Its identity; the same in every form."""
        ...

    def part10(self, form: FormName) -> bytes:
        """The object as a Part 10 file in that form."""
        ...


@dataclass(frozen=True)
class Sent:
    """A destination has taken an object: in which form, where it is a SEG, and what it answered."""

    form: FormName | Literal[""]
    answer: str


class Destination(Protocol):
    """An archive that segmentations are sent to."""

    def send(self, segmentation: Segmentation, forms: Sequence[FormName]) -> Sent:
        """Send the object in the best of the forms (best first) that the archive takes.

        Returns only when the archive has said that it stored the object. To send what the archive holds already is
        success. Raises DeliveryRefused when it takes none of the forms, naming each refusal; DeliveryDeferred when it
        could not be asked, broke off, or has no room now. May be interrupted at any point and called again.
        """
        ...

    def send_as_is(self, part10: bytes) -> str:
        """Send an object that is no SEG, uncompressed; what was answered. Raises as `send` does."""
        ...


class Catalogue(Protocol):
    """A peer that can be asked what it has."""

    def count_instances(self, study_instance_uid: str, series_instance_uid: str) -> int:
        """How many instances of a series it has; 0 when it does not know the series. Raises FindFailed."""
        ...
