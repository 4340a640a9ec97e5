"""Sending files by hand: many at once, as they are or SEGs in a form, to a destination; what came of each."""

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Final, Literal

from pydicom.uid import MediaStorageDirectoryStorage

from segnode.config import FormName
from segnode.dicom.elements import Buffer
from segnode.dicom.header import read_file_meta
from segnode.dicom.uids import SEGMENTATION_CLASSES, uid_name
from segnode.errors import (
    AlreadyThere,
    BrokeOff,
    DeliveryDeferred,
    DeliveryRefused,
    FormRefused,
    Misplaced,
    NotLetIn,
    Refusal,
    SegnodeError,
)
from segnode.pipeline.ports import Destination, Passage
from segnode.pipeline.step_down import MOST_KINDS, offered, store_stepping_down
from segnode.seg.convert import Target, convert
from segnode.seg.diff import diff
from segnode.seg.forms import FORMS, Form
from segnode.seg.read import map_file, read_segmentation

# There already, as the destination says; no DICOM, among files that are; not tried, as nothing more was of use.
Outcome = Literal["sent", "there", "skipped", "failed", "not sent"]

_MOST_AT_ONCE: Final = 1000
_MOST_IN_A_ROW: Final = 3


@dataclass(frozen=True)
class FileSent:
    """What came of a file: `form` is how it was sent, empty as it is; `detail` is what was answered, or why it was not sent."""

    file: str
    outcome: Outcome
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    transfer_syntax_uid: str = ""
    form: str = ""
    bytes: int = 0
    detail: str = ""


@dataclass(frozen=True)
class _Planned:
    """A file that is to be sent: how it may be, best first, by SOP class and transfer syntax, and in which form if in one."""

    path: Path
    row: FileSent
    kinds: tuple[tuple[str, str], ...]
    form: Form | None = None

    @property
    def kind(self) -> tuple[str, str]:
        """What it is."""
        return self.row.sop_class_uid, self.row.transfer_syntax_uid


@dataclass
class FileSender:
    """Sends files to a destination: SEGs in `form` where there is one, everything else as it is, or natively.

    What breaks off is sent once more, in a new association; after three files in a row that it did not help, nothing is.
    """

    destination: Destination
    form: FormName | None
    clock: Callable[[], float]
    _broke_at: Path | None = None
    _in_a_row: int = 0
    _given_up: str = ""

    def send(self, files: Mapping[Path, bool]) -> Iterator[FileSent]:
        """Send files in turn; one that is no DICOM is a failure where it was given by name (True), else it is skipped."""
        planned: list[_Planned] = []
        kinds: set[tuple[str, str]] = set()
        for path, is_named in files.items():
            try:
                each = self._plan(path)
            except _NotToBeSent as reason:
                yield FileSent(str(path), "failed" if is_named or reason.is_failure else "skipped", detail=str(reason))
                continue
            if len(planned) == _MOST_AT_ONCE or len(kinds | {each.kind}) > MOST_KINDS:
                yield from self._send_all(deque(planned))
                planned, kinds = [], set()
            planned.append(each)
            kinds.add(each.kind)
        yield from self._send_all(deque(planned))

    def _plan(self, path: Path) -> _Planned:
        try:
            with path.open("rb") as file:
                meta = read_file_meta(file)
            size = path.stat().st_size
        except OSError as error:
            raise _NotToBeSent(f"cannot be read: {error.strerror}", is_failure=True) from error
        except Refusal as refusal:
            raise _NotToBeSent(f"cannot be sent: {refusal}") from refusal
        kind = meta.sop_class_uid, meta.transfer_syntax_uid
        if meta.sop_class_uid == MediaStorageDirectoryStorage:
            raise _NotToBeSent("is a DICOMDIR: it lists files, and is not sent with them")
        row = FileSent(str(path), "failed", kind[0], meta.sop_instance_uid, kind[1], bytes=size)
        if self.form is not None and meta.sop_class_uid in SEGMENTATION_CLASSES:
            form = FORMS[self.form]
            return _Planned(path, row, ((str(form.sop_class_uid), str(form.transfer_syntax_uid)),), form)
        return _Planned(path, row, tuple(offered(*kind)))

    def _send_all(self, left: deque[_Planned]) -> Iterator[FileSent]:
        """Send what is left, in one association unless that breaks off."""
        while left and not self._given_up:
            try:
                with self.destination.passage({kind for planned in left for kind in planned.kinds}) as passage:
                    yield from self._pass(left, passage)
            except BrokeOff as failure:
                if self._broke_at != left[0].path:
                    self._broke_at = left[0].path
                    continue
                yield replace(left.popleft().row, detail=f"{failure}; also when it was sent once more")
                self._in_a_row += 1
                if self._in_a_row == _MOST_IN_A_ROW:
                    self._given_up = f"{_MOST_IN_A_ROW} files in a row were not taken: {failure}"
            except (DeliveryDeferred, DeliveryRefused) as failure:  # it cannot be reached, or lets nobody in
                self._given_up = str(failure)
        while left:
            yield replace(left.popleft().row, outcome="not sent", detail=self._given_up)

    def _pass(self, left: deque[_Planned], passage: Passage) -> Iterator[FileSent]:
        """Send what is left, and take each off when it is known what came of it. Raises BrokeOff, NotLetIn."""
        while left:
            as_they_are = [*takewhile(lambda planned: planned.form is None and passage.accepts(*planned.kind), left)]
            for answer in passage.store_each([planned.path for planned in as_they_are]):
                yield self._row(left[0], "", answer) if not isinstance(answer, FormRefused) else self._store(left[0], passage)
                left.popleft()
            if not as_they_are:
                yield self._store(left[0], passage)
                left.popleft()

    def _store(self, planned: _Planned, passage: Passage) -> FileSent:
        """Send a file in its form, or in the first of its kinds that is taken."""
        try:
            if planned.form is not None:
                return self._row(planned, planned.form.name, self._store_in_form(planned, planned.form, passage))
            how, answer = store_stepping_down(planned.path, *planned.kind, passage, self.destination.where)
        except SegnodeError as failure:
            return self._row(planned, planned.form.name if planned.form else "", failure)
        return self._row(planned, how, answer)

    def _store_in_form(self, planned: _Planned, form: Form, passage: Passage) -> str:
        """Send a SEG in a form. Raises what keeps it from being made, proved or sent."""
        if not passage.accepts(*planned.kinds[0]):
            what = f"{uid_name(planned.kinds[0][0])} in {uid_name(planned.kinds[0][1])}"
            raise DeliveryRefused(f"{self.destination.where} does not accept {what}")
        if planned.kind == planned.kinds[0]:
            return passage.store(planned.path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what pydicom warns of, `seg check` tells
            return passage.store(_in_form(map_file(planned.path), form, self.clock()))

    def _row(self, planned: _Planned, form: str, answer: str | SegnodeError) -> FileSent:
        """Raises BrokeOff and NotLetIn, after which the association is no more, or of no use."""
        if isinstance(answer, BrokeOff | NotLetIn):
            raise answer
        self._in_a_row = 0
        outcome: Outcome = (
            "there" if isinstance(answer, AlreadyThere) else "failed" if isinstance(answer, SegnodeError) else "sent"
        )
        return replace(planned.row, outcome=outcome, form=form, detail=str(answer))


class _NotToBeSent(Exception):
    """A file that is not sent, and why."""

    def __init__(self, reason: str, *, is_failure: bool = False) -> None:
        super().__init__(reason)
        self.is_failure = is_failure


def _in_form(data: Buffer, form: Form, now: float) -> bytes:
    """A SEG in a form, proved to have the same labels. Raises what reading and converting raise, and Misplaced."""
    (made,) = convert(data, Target(form.type, form.codec), datetime.fromtimestamp(now, UTC))
    if not diff(read_segmentation(data), read_segmentation(made.part10)).is_equal:
        raise Misplaced(f"as {form.name} it would have other labels, and is not sent")
    return made.part10
