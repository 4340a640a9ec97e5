"""Slimming: the BINARY segmentations that an archive holds get LABELMAPs beside them, which say the same in fewer bytes.

Nothing is deleted, and nothing is remembered here: the UIDs of a LABELMAP derive from its source, so the archive itself knows
what is done. A repeat goes on where the last run was, and two at once do no harm.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Literal

from pydicom.uid import SegmentationStorage

from segnode.config import FormName
from segnode.dicom.attributes import INSTANCE_ATTRIBUTES, SERIES_ATTRIBUTES, STUDY_ATTRIBUTES
from segnode.dicom.elements import Buffer
from segnode.dicom.uids import is_uid
from segnode.errors import (
    CannotConvert,
    CannotReadBack,
    ConfigError,
    FindFailed,
    FormRefused,
    Misplaced,
    NotAVolume,
    OverlappingSegments,
    SegnodeError,
)
from segnode.pipeline.deliver import order
from segnode.pipeline.ladder import Ladder, Tried
from segnode.pipeline.ports import Archive, Destination, Encoded, Level, Listed
from segnode.seg.convert import Converted, Target, convert, labelmap_uids
from segnode.seg.diff import diff
from segnode.seg.forms import FORMS
from segnode.seg.read import read_segmentation
from segnode.seg.recode import recode
from segnode.seg.segmentation import Segmentation

# Slim: the LABELMAP was there before. Left: as it is, it cannot be, or need not be, a LABELMAP.
Outcome = Literal["slimmed", "would be slimmed", "slim", "left", "failed"]
Keys = Mapping[Level, Mapping[str, str]]

_KEYS: Final[Mapping[Level, Sequence[str]]] = {
    "STUDY": ("StudyInstanceUID", *STUDY_ATTRIBUTES),
    "SERIES": ("SeriesInstanceUID", *(keyword for keyword in SERIES_ATTRIBUTES if keyword != "Modality")),
    "IMAGE": ("SOPInstanceUID", *INSTANCE_ATTRIBUTES),
}


@dataclass(frozen=True)
class Slimmed:
    """What became of an object, or why nothing did; without UIDs below the study's where that could not be searched.

    `sent` are the SOP instance UIDs of the LABELMAPs, `bytes_after` their size in the form that was taken.
    """

    study: str
    series: str
    object: str
    outcome: Outcome
    bytes_before: int = 0
    bytes_after: int = 0
    form: str = ""
    sent: tuple[str, ...] = ()
    detail: str = ""


@dataclass
class Slimmer:
    """Slims what one archive holds: it is searched as `archive`, and sent to as `destination`, in one of `forms`.

    `overlap` is what happens to a BINARY whose segments overlap; a dry run fetches and converts, and sends nothing.
    """

    archive: Archive
    destination: Destination
    forms: tuple[FormName, ...]
    overlap: Literal["error", "split"]
    dry_run: bool
    clock: Callable[[], float]
    _taken: FormName | None = field(default=None, init=False)

    def studies(self, keys: Keys) -> list[str]:
        """The studies that have segmentations and match. Raises FindFailed."""
        found = self._find("STUDY", {"ModalitiesInStudy": "SEG"}, keys, "StudyInstanceUID")
        return [item["StudyInstanceUID"] for item in found]

    def slim_study(self, study: str, keys: Keys) -> Iterator[Slimmed]:
        """Slim one BINARY of a study after the other; nothing that fails keeps the others from it."""
        try:
            found = self._segmentations(study, keys)
        except Exception as error:  # noqa: BLE001  the border of a study: the others are slimmed all the same
            yield Slimmed(study, "", "", "failed", detail=_told(error))
            return
        for listed in found:
            yield self._slim(listed)

    def _segmentations(self, study: str, keys: Keys) -> list[Listed]:
        """What the archive lists of a study that is a Segmentation, and no LABELMAP as far as it says."""
        found = []
        for item in self._find("SERIES", {"StudyInstanceUID": study, "Modality": "SEG"}, keys, "SeriesInstanceUID"):
            series = item["SeriesInstanceUID"]
            found += [each for each in self._instances(study, series, keys) if each.sop_class_uid in ("", SegmentationStorage)]
        return found

    def _instances(self, study: str, series: str, keys: Keys) -> list[Listed]:
        within = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPClassUID": ""}
        found = self._find("IMAGE", within, keys, "SOPInstanceUID")
        return [Listed(study, series, item["SOPInstanceUID"], item["SOPClassUID"]) for item in found]

    def _find(self, level: Level, own: Mapping[str, str], keys: Keys, unique: str) -> list[Mapping[str, str]]:
        """What matches, each with the UID of its level. Raises FindFailed, also where a key cannot have been matched."""
        asked = keys.get(level, {})
        found = self.archive.find(level, {unique: "", **own, **asked})
        where = self.destination.where
        for item in found:
            if not is_uid(item[unique]):
                raise FindFailed(f"{where} lists something whose {unique} is missing, or is no UID")
            unknown = [keyword for keyword, value in asked.items() if value.strip("*") and not item[keyword]]
            if unknown:  # what matches says its value (PS3.4 C.2.2.1, PS3.18 10.6.3)
                raise FindFailed(f"{where} does not match {', '.join(unknown)}: leave it out, or ask for something else")
        return [item for item in found if asked.get(unique) in (None, item[unique])]

    def _slim(self, listed: Listed) -> Slimmed:
        row = Slimmed(listed.study_instance_uid, listed.series_instance_uid, listed.sop_instance_uid, "failed")
        try:
            if there := self._labelmaps_of(listed):
                return replace(row, outcome="slim", sent=there, detail="its LABELMAP is there")
            data = self.archive.fetch(listed)
            row = replace(row, bytes_before=len(data))
            return self._made_slim(data, row)
        except Exception as error:  # noqa: BLE001  the border of an object: the others are slimmed all the same
            return replace(row, detail=_told(error))

    def _labelmaps_of(self, listed: Listed) -> tuple[str, ...]:
        """The LABELMAPs that an earlier run made of an object, where the archive holds all of them."""
        _, series = labelmap_uids(listed.sop_instance_uid)
        held = {found.sop_instance_uid for found in self._instances(listed.study_instance_uid, series, {})}
        for parts in range(1, len(held) + 1):
            wanted = tuple(labelmap_uids(listed.sop_instance_uid, place, parts)[0] for place in range(1, parts + 1))
            if held.issuperset(wanted):
                return wanted
        return ()

    def _made_slim(self, data: Buffer, row: Slimmed) -> Slimmed:
        """What becomes of an object that was fetched. Raises what keeps it from being read, proven or sent."""
        source = read_segmentation(data)
        study = str(source.header.get("StudyInstanceUID") or "")
        if (source.sop_instance_uid, study) != (row.object, row.study):
            given = f"{source.sop_instance_uid} of study {study}"
            raise CannotReadBack(f"{self.destination.where} gives out another object in its place: {given}")
        if source.type != "BINARY":
            return replace(row, outcome="left", detail=f"it is a {source.type}")
        forms = order(self.forms, None, self._taken)
        target = Target("LABELMAP", FORMS[forms[0]].codec, self.overlap)
        try:
            made = _Labelmaps(data, source, convert(data, target, datetime.fromtimestamp(self.clock(), UTC)))
        except OverlappingSegments as reason:
            overlaps = str(reason).partition(";")[0]  # what could be done is said for one file
            return replace(row, outcome="left", detail=f"{overlaps}: split makes several LABELMAPs of it")
        except (CannotConvert, NotAVolume) as reason:
            return replace(row, outcome="left", detail=str(reason))
        smaller = made.smaller(forms)
        if not smaller:
            return replace(row, outcome="left", detail="as a LABELMAP it would not be smaller")
        if self.dry_run:
            size = sum(len(encoded.part10) for encoded in made.in_form(smaller[0]))
            return replace(row, outcome="would be slimmed", bytes_after=size, form=smaller[0])
        return self._send(row, made, smaller)

    def _send(self, row: Slimmed, made: "_Labelmaps", forms: Sequence[FormName]) -> Slimmed:
        """Send every part by the ladder. Raises DeliveryRefused, DeliveryDeferred, Misplaced."""
        sent = [
            Ladder(self.destination, _Part(made, place), Tried(), lambda _: None).descend(forms) for place in range(made.parts)
        ]
        form = sent[-1].encoded.form
        if form != forms[0]:  # those before it were refused
            self._taken = form
        return replace(
            row,
            outcome="slim" if all(each.was_there for each in sent) else "slimmed",
            bytes_after=sum(len(each.encoded.part10) for each in sent),
            form=form,
            sent=tuple(each.encoded.sop_instance_uid for each in sent),
            detail=sent[-1].answer,
        )


class _Labelmaps:
    """The LABELMAPs that a BINARY becomes, in whatever form; what is given out is proven to have its labels."""

    def __init__(self, data: Buffer, source: Segmentation, made: Sequence[Converted]) -> None:
        self._size = len(data)
        self._source = source
        self._made = made
        self._encoded: tuple[Encoded, ...] = ()

    @property
    def parts(self) -> int:
        """How many there are."""
        return len(self._made)

    def smaller(self, forms: Sequence[FormName]) -> Sequence[FormName]:
        """The forms from the first on that is smaller than the source. Raises Misplaced."""
        for place, form in enumerate(forms):
            try:
                self.in_form(form)
            except FormRefused:
                continue
            return forms[place:]
        return ()

    def in_form(self, form: FormName) -> Sequence[Encoded]:
        """All parts in a form. Raises FormRefused where they are not smaller than the source; Misplaced."""
        if not self._encoded or self._encoded[0].form != form:
            self._encoded = ()
            encoded = tuple(self._in_form(made, form) for made in self._made)
            size = sum(len(each.part10) for each in encoded)
            if size >= self._size:
                raise FormRefused(f"would be {size:,} bytes, and the BINARY has {self._size:,}")
            require_same_labels(self._source, encoded)
            self._encoded = encoded
        return self._encoded

    def _in_form(self, made: Converted, form: FormName) -> Encoded:
        try:
            part10 = recode(made.part10, FORMS[form].codec)
        except CannotConvert as error:
            raise FormRefused(f"cannot be made: {error}") from error
        uids = made.sop_instance_uid, made.series_instance_uid, str(self._source.header.StudyInstanceUID)
        return Encoded(form, str(FORMS[form].sop_class_uid), *uids, part10, made.numbers)


@dataclass(frozen=True)
class _Part:
    """One of the LABELMAPs, as the ladder sends it."""

    made: _Labelmaps
    place: int

    def in_form(self, form: FormName) -> Encoded:
        """The object of that form; see the port Segmentation."""
        return self.made.in_form(form)[self.place]


def _told(error: Exception) -> str:
    """What a row says of an error; those of libraries may quote what is about a patient."""
    return str(error) if isinstance(error, SegnodeError) else f"unforeseen: {type(error).__name__}"


def require_same_labels(source: Segmentation, parts: Sequence[Encoded]) -> None:
    """Raise Misplaced unless each segment of the source is in one of the parts, voxel by voxel, and nothing else is."""
    missing = set(source.numbers)
    wrong: set[str] = set()
    for part in parts:
        found = diff(source, read_segmentation(part.part10))
        wrong |= set(found.geometry)
        for segment in found.segments:
            if segment.number is None or segment.number in part.numbers:
                missing.discard(segment.number or 0)
                wrong |= set() if segment.is_equal else {f"segment {segment.number or segment.other_number}"}
    if missing or wrong:
        differing = sorted(wrong | {f"segment {number}" for number in missing})
        raise Misplaced(f"the LABELMAP has other labels than the BINARY, and is not sent: {'; '.join(differing)}")


def slim_keys(pairs: Iterable[str]) -> Keys:
    """What KEYWORD=VALUE pairs ask for, at the level of each attribute. Raises ConfigError."""
    keys: dict[Level, dict[str, str]] = {level: {} for level in _KEYS}
    for pair in pairs:
        keyword, _, value = pair.partition("=")
        level = next((level for level, known in _KEYS.items() if keyword in known), None)
        if level is None:
            raise ConfigError(f"{keyword!r} cannot be asked for; allowed: {', '.join(_meant(keyword))}")
        if not value or keyword in keys[level]:
            raise ConfigError(f"{keyword}: {'is given twice' if value else 'a value is missing: KEYWORD=VALUE'}")
        if keyword.endswith("UID") and not is_uid(value):
            raise ConfigError(f"{keyword}: {value!r} is no UID")
        keys[level][keyword] = value
    return keys


def _meant(keyword: str) -> Sequence[str]:
    known = [known for keywords in _KEYS.values() for known in keywords]
    return difflib.get_close_matches(keyword, known, 3) or known
