"""What the pipeline asks of the outside: models, destinations, archives, and what peers have of a series."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from segnode.config import FormName
from segnode.dicom.volume import Volume
from segnode.errors import DeliveryFailed

if TYPE_CHECKING:
    from segnode.dicom.elements import Buffer
    from segnode.store.commitments import Reference, Report


@dataclass(frozen=True, eq=False)
class Result:
    """What a model gives back: one of three arrays, on the grid of the volume's array unless `affine` says another.

    `labelmap`: integers (slices, rows, columns), 0 is none; or several of them (layers, slices, rows, columns), so that
    values of different layers may overlap. `masks`: bool (values, slices, rows, columns), the first is of value 1; they may
    overlap. `probabilities`: floats from 0 to 1 (values + 1, slices, rows, columns), the first is of none. `affine`: 4x4,
    (slice, row, column) of the array to LPS mm. `scores`: by value, a number that the model gives to its segments.
    """

    labelmap: npt.NDArray[np.integer] | None = None
    masks: npt.NDArray[np.bool_] | None = None
    probabilities: npt.NDArray[np.floating] | None = None
    affine: npt.NDArray[np.float64] | None = None
    scores: Mapping[int, float] = field(default_factory=dict)

    @property
    def layers(self) -> npt.NDArray[np.integer]:
        """The labelmap as (layers, slices, rows, columns); there must be one."""
        labelmap = np.asarray(self.labelmap)
        return labelmap.reshape(-1, *labelmap.shape[-3:])


class Model(Protocol):
    """Something that turns a volume into a result."""

    def __call__(self, volume: Volume) -> Result:
        """Segment a volume. Whatever it raises is the job's failure; the same volume may be given again after a crash.

        What a ModelFailed says becomes the job's reason as it is; of other errors, only their type.
        """
        ...


# Told how far a model is, from 0 to 1, and in its own words what it is at.
Heard = Callable[[float, str], None]


@dataclass(frozen=True)
class Run:
    """How a model works on the volume of a job: in which of its processes, who hears how far it is, where its prints go.

    `heard` is told at most once a second; of what is printed the end is in the file `prints`.
    """

    number: int
    heard: Heard
    prints: Path


class RunningModel(Protocol):
    """A model that runs for a job."""

    def __call__(self, volume: Volume, run: Run) -> Result:
        """Segment a volume as Model does. Raises ModelFailed; ModelCrashed when it may be tried again."""
        ...


class Identified(Protocol):
    """An object that an archive may hold, by its identity."""

    @property
    def sop_class_uid(self) -> str:
        """SOPClassUID."""
        ...

    @property
    def sop_instance_uid(self) -> str:
        """SOPInstanceUID."""
        ...

    @property
    def series_instance_uid(self) -> str:
        """SeriesInstanceUID."""
        ...

    @property
    def study_instance_uid(self) -> str:
        """StudyInstanceUID."""
        ...


@dataclass(frozen=True, eq=False)
class Encoded:
    """A SEG in one form, as a Part 10 file.

    `numbers` maps the segment numbers of the result to its own where it is another object, converted; else it is empty.
    """

    form: FormName
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    part10: bytes
    numbers: Mapping[int, int] = field(default_factory=dict)


class Segmentation(Protocol):
    """A result that is on its way, in whatever form a destination takes."""

    def in_form(self, form: FormName) -> Encoded:
        """The object of that form; always the same one. Raises FormRefused when it cannot be had in that form."""
        ...


class Door(Protocol):
    """The way into an archive, while it is open."""

    def accepts(self, form: FormName) -> bool:
        """Whether the archive lets objects of that form be sent."""
        ...

    def store(self, encoded: Encoded) -> str:
        """Send an object; what the archive answered when it has said that it stored it.

        Raises FormRefused for this form only, AlreadyThere; DeliveryRefused when no form will do; DeliveryDeferred when it
        broke off, or has no room now.
        """
        ...


class Passage(Protocol):
    """The way into an archive for objects that are forwarded, while it is open."""

    def accepts(self, sop_class_uid: str, transfer_syntax_uid: str) -> bool:
        """Whether the archive lets objects of that class be sent in that transfer syntax."""
        ...

    def store(self, part10: Path | bytes) -> str:
        """Send an object as it is in a file; returns and raises what Door does, FormRefused for this transfer syntax only."""
        ...

    def store_each(self, files: Sequence[Path]) -> Iterator[str | DeliveryFailed]:
        """Send files as they are, several at once where that can be: in turn what `store` would return or raise for each.

        Nothing more is sent after BrokeOff.
        """
        ...


class Destination(Protocol):
    """An archive that objects are sent to."""

    @property
    def where(self) -> str:
        """How answers name it."""
        ...

    def reach(self, forms: Sequence[FormName]) -> AbstractContextManager[Door]:
        """Open the way for objects of these forms. Raises DeliveryDeferred when the archive cannot be reached."""
        ...

    def passage(self, kinds: Collection[tuple[str, str]]) -> AbstractContextManager[Passage]:
        """Open the way for objects of these SOP classes in these transfer syntaxes, at most 128 pairs.

        Raises DeliveryDeferred when the archive cannot be reached.
        """
        ...

    def held(self, wanted: Identified) -> bytes | None:
        """The object of that UID as the archive holds it, a Part 10 file; None when it says that it holds none.

        Raises CannotAsk when it does not say, CannotReadBack when it holds it and does not give it out; DeliveryDeferred
        when it cannot do either now.
        """
        ...

    def send_as_is(self, part10: bytes) -> str:
        """Send an object that is no SEG, uncompressed; what was answered. Raises DeliveryRefused, DeliveryDeferred."""
        ...


class Committer(Protocol):
    """A peer that does storage commitment (PS3.4 J): it can be asked to stand by an object, and be told what we stand by."""

    @property
    def where(self) -> str:
        """How answers name it."""
        ...

    def ask(
        self,
        transaction_uid: str,
        wanted: "Sequence[Reference]",
        before_asking: Callable[[], None],
        hear: "Callable[[Report], bool]",
    ) -> None:
        """Ask it to stand by objects; it has said then that it will report.

        `before_asking` is called before it may have heard of the transaction, `hear` with what it reports at once: it says
        whether that is of something that was asked. Raises CannotAsk when it does not do this at all, NotLetIn when it
        breaks off then, DeliveryDeferred.
        """
        ...

    def report(self, report: "Report") -> None:
        """Tell it what we stand by. Raises DeliveryRefused, DeliveryDeferred."""
        ...


class Catalogue(Protocol):
    """A peer that can be asked what it has."""

    def count_instances(self, study_instance_uid: str, series_instance_uid: str) -> int:
        """How many instances of a series it has; 0 when it does not know the series. Raises FindFailed."""
        ...


Level = Literal["STUDY", "SERIES", "IMAGE"]


@dataclass(frozen=True)
class Listed:
    """An instance that an archive says it holds; `sop_class_uid` is empty where it does not say that."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str


class Archive(Protocol):
    """A peer that is searched, and gives out what it holds."""

    def find(self, level: Level, keys: Mapping[str, str]) -> Sequence[Mapping[str, str]]:
        """All that matches, each with what the peer says of the keys; an empty key matches everything, and is asked for.

        `keys` are by keyword; below STUDY the UIDs of what is above are among them. Raises FindFailed.
        """
        ...

    def fetch(self, listed: Listed) -> "Buffer":
        """An object as a Part 10 file. Raises CannotReadBack, DeliveryDeferred when not now, OutOfResources."""
        ...
