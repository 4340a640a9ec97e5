"""What a search asks for (PS3.4 C.2.2.2): the level, and of each key what its text means by the attribute's VR."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword

from segnode.dicom.uids import is_uid
from segnode.errors import BadRequest

Level = Literal["studies", "series", "instances"]
LEVELS: Final[Sequence[Level]] = ("studies", "series", "instances")
# Dates whose times a range goes on in (PS3.4 C.2.2.2.5).
TIME_OF: Final[Mapping[str, str]] = {
    date: date.removesuffix("Date") + "Time"
    for date in ("StudyDate", "SeriesDate", "PerformedProcedureStepStartDate", "ContentDate")
}
_DATE: Final = re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", re.ASCII)
_TIME: Final = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d|60)?)?|([01]\d|2[0-3])[0-5]\d([0-5]\d|60)\.\d{1,6}", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?\d{1,12}", re.ASCII)
_NUMBERS: Final = ("IS", "US", "SS", "UL", "SL")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_NO_VALUE: Final = '""'
_MULTIPLE: Final = ("AE", "AS", "AT", "CS", "LO", "PN", "SH", "UC")
_LISTS: Final = ("UI", "CS")  # whose values hold neither a comma nor a backslash
_BETWEEN_WORDS: Final = re.compile(r"[\s^=,.-]+")
_ACCENTS: Final = range(0x300, 0x370)
_LONGEST: Final = 1024  # characters of what is no list of UIDs


@dataclass(frozen=True)
class Exactly:
    """Single value matching, and a list of UIDs or codes: one of these."""

    values: Sequence[str]


@dataclass(frozen=True)
class Every:
    """Multiple value matching: each of these among its values (PS3.4 C.2.2.2.8)."""

    values: Sequence[str]


@dataclass(frozen=True)
class Empty:
    """Empty value matching: no value (PS3.4 C.2.2.2.7)."""


@dataclass(frozen=True)
class Wildcard:
    """`*` stands for any characters, `?` for one."""

    pattern: str


@dataclass(frozen=True)
class Between:
    """From a date or time to another, both included; an end that is empty is open.

    What a time leaves out may be anything: 10 begins at ten and ends just before eleven. Of the first time of a range
    the zeros at its end are left out, so that as text it is not after any writing of the same time.
    """

    first: str
    last: str

    @property
    def is_range(self) -> bool:
        """Whether it is more than one date or time."""
        return self.first != _beginning(self.last)


@dataclass(frozen=True)
class Number:
    """A number, however it is written."""

    value: int


@dataclass(frozen=True)
class Name:
    """A person's name: patterns of component groups as `folded` gives them. One alone is of any group, else each of its own."""

    groups: Sequence[str]


@dataclass(frozen=True)
class Words:
    """A person's name, fuzzily: with a word for each of these that begins so, in any order."""

    starts: Sequence[str]


Asked = Exactly | Every | Empty | Wildcard | Between | Number | Name | Words


@dataclass(frozen=True)
class Query:
    """A search of a level. `within` holds UIDs of the levels above; `keys` are by path: keywords joined by dots.

    With `combines_datetimes` a range of dates and one of times are one, from a moment to another (PS3.4 C.5.1.1). Raises
    BadRequest for another range that ends before it begins.
    """

    level: Level
    within: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, Asked] = field(default_factory=dict)
    combines_datetimes: bool = False

    def __post_init__(self) -> None:
        moments = self.moments().values()
        for path, what in self.keys.items():
            if isinstance(what, Between) and what.last and what.first > what.last + "~" and path not in moments:
                raise BadRequest(f"the range of {path} ends before it begins")

    def moments(self) -> Mapping[str, str]:
        """The dates, each with its time, of which both are ranges that are one."""
        if not self.combines_datetimes:
            return {}
        ranges = {path for path, what in self.keys.items() if isinstance(what, Between) and what.is_range}
        return {date: time for date, time in TIME_OF.items() if {date, time} <= ranges}


def asked(path: str, text: str, *, fuzzy: bool = False, empty: bool = False, multiple: bool = False) -> Asked | None:
    """What the text of a key asks of the attribute at the end of its path; None of any value. Raises BadRequest.

    With `empty`, two quotation marks ask for no value; with `multiple`, several values ask for an attribute that has all.
    """
    keyword, text = path.rpartition(".")[2], text.strip()
    tag = tag_for_keyword(keyword) or 0
    vr = dictionary_VR(tag)
    if empty and text == _NO_VALUE:
        return Empty()
    if not text.strip("*"):
        return None
    if _CONTROL.search(text):
        raise BadRequest(f"the value of {path} holds control characters")
    if multiple and vr in _MULTIPLE and dictionary_VM(tag) != "1" and len(several := _several(text)) > 1:
        return _all_of(path, several)
    if vr in _LISTS:
        return _any_of(path, vr, _several(text))
    if len(text) > _LONGEST:
        raise BadRequest(f"the value of {path} is longer than {_LONGEST} characters")
    return _single(path, vr, text, fuzzy=fuzzy)


def _single(path: str, vr: str, text: str, *, fuzzy: bool) -> Asked | None:
    if vr in ("DA", "TM"):
        return _between(path, vr, text)
    if vr in _NUMBERS:
        if _NUMBER.fullmatch(text) is None:
            raise BadRequest(f"{path} is a number: a key of it is one whole number")
        return Number(int(text))
    if vr == "PN":
        name = words(text) if fuzzy else name_groups(text)
        return (Words(name) if fuzzy else Name(name)) if any(name) else None
    return Wildcard(text) if is_pattern(text) else Exactly((text,))


def _several(text: str) -> list[str]:
    """The values of a list, between commas or backslashes."""
    return [value for part in text.split("\\") for value in part.split(",") if value]


def is_pattern(text: str) -> bool:
    """Whether there is a wildcard in it."""
    return "*" in text or "?" in text


def folded(text: str) -> str:
    """A person's name without regard to case, accents of letters, spaces around components and delimiters at its end."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", text) if ord(c) not in _ACCENTS)
    components = unicodedata.normalize("NFC", letters.casefold()).split("^")
    return "^".join(component.strip() for component in components).rstrip("^")


def name_groups(name: str) -> list[str]:
    """The component groups of a person's name (PS3.5 6.2.1.1), folded."""
    return [folded(group) for group in name.split("=")]


def words(name: str) -> list[str]:
    """The words of a person's name, folded, each once."""
    return list(dict.fromkeys(word for word in _BETWEEN_WORDS.split(folded(name)) if word))


def _any_of(path: str, vr: str, values: Sequence[str]) -> Asked | None:
    if vr == "UI" and not all(is_uid(value) for value in values):
        raise BadRequest(f"{path} is a UID: a key of it is one, or several with commas between them")
    patterns = [value for value in values if is_pattern(value)]
    if patterns and len(values) > 1:
        raise BadRequest(f"{path}: one value with wildcards, or several without")
    return Wildcard(patterns[0]) if patterns else Exactly(tuple(values))


def _all_of(path: str, values: Sequence[str]) -> Every:
    if any(is_pattern(value) for value in values):
        raise BadRequest(f"{path}: with multiplevaluematching several values have no wildcards (PS3.4 C.2.2.2.8)")
    return Every(tuple(values))


def _between(path: str, vr: str, text: str) -> Between:
    first, dash, last = (part.strip() for part in text.partition("-"))
    ends = [end for end in (first, last) if end]
    form = _DATE if vr == "DA" else _TIME
    if not ends or not all(form.fullmatch(end) for end in ends):
        like = "YYYYMMDD" if vr == "DA" else "HHMMSS"
        raise BadRequest(f"a key of {path} is {like}, or a range of these: {like}-{like}, {like}- or -{like}")
    last = last if dash else first
    return Between(_beginning(first), last)


def _beginning(end: str) -> str:
    """A time without the zeros at its end; a date as it is."""
    end = end.rstrip("0").rstrip(".") if "." in end else end
    while len(end) in (4, 6) and end.endswith("00"):
        end = end[:-2]
    return end
