"""Keys as SQL, held against the same matching in Python: whatever is stored, and whatever is asked."""

import fnmatch
import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from segnode.dicom.query import Query, asked
from segnode.store.database import open_database
from segnode.store.index import Index
from tests.unit.test_store import HEADER

# Few characters, so that patterns match now and then; some mean something to SQL, to GLOB or to JSON.
TEXTS = st.text("aAbB[]^'\"%_-?*ü太 .", max_size=5).map(str.strip)
CODES = st.sampled_from(["CT", "MR", "SEG", "C", "", "CTA", 'S"G'])
NAMES = st.lists(st.text("aAüÜéß'- ", max_size=4), max_size=3).map("^".join)
DATES = st.sampled_from(["", "20251231", "20260101", "20260102", "20260115", "20260201"])
TIMES = st.sampled_from(
    ["", "00", "0000", "09", "0959", "095959.9", "10", "1000", "100000", "100000.0", "100000.5", "100000.50", "1030", "235959"]
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An empty index."""
    return Index(open_database(tmp_path_factory.mktemp("index") / "index.sqlite"))


def found(index: Index, attributes: dict[str, str], keys: dict[str, str], *, fuzzy: bool = False, items=()) -> bool:
    """Whether an instance with these attributes and segments, held alone, is found by these keys."""
    header = replace(HEADER, attributes=attributes, items={"SegmentSequence": items})
    index.add(header, "key", 1, "digest", "made", 1.0)
    try:
        what = {path: what for path, text in keys.items() if (what := asked(path, text, fuzzy=fuzzy)) is not None}
        return bool(index.search(Query("instances", keys=what, combines_datetimes=True), ["SOPInstanceUID"], 1).object_keys)
    finally:
        index.doom_made(HEADER.sop_instance_uid)
        index.forget_doomed(["key"])


def glob(pattern: str, text: str) -> bool:
    """Wildcard matching in Python."""
    return re.fullmatch(fnmatch.translate(pattern.replace("[", "[[]")), text) is not None


def plain(text: str) -> str:
    """A text without case and accents."""
    letters = unicodedata.normalize("NFD", text)
    return "".join(c for c in letters if not unicodedata.combining(c)).casefold()


@given(TEXTS, TEXTS)
def test_text(index: Index, stored: str, key: str) -> None:
    """Single value and wildcard matching, with case, of any characters."""
    assert found(index, {"StudyDescription": stored}, {"StudyDescription": key}) == (not key or glob(key, stored))


@given(st.lists(CODES, max_size=3), st.lists(CODES.filter(bool), max_size=3))
def test_any_value_of_several_is_enough(index: Index, stored: list[str], key: list[str]) -> None:
    """Of an attribute of several values one has to be one of those of the key."""
    expected = not key or not set(key).isdisjoint(stored)
    assert found(index, {"ImageType": "\\".join(stored)}, {"ImageType": ",".join(key)}) == expected


@given(st.lists(CODES, max_size=3), st.sampled_from(["C*", "*T", "??", "S?G", "C*T", "*R*"]))
def test_wildcards_do_not_reach_over_values(index: Index, stored: list[str], key: str) -> None:
    """A pattern matches one value of several, not what lies between two."""
    expected = any(glob(key, value) for value in stored or [""])
    assert found(index, {"ImageType": "\\".join(stored)}, {"ImageType": key}) == expected


def components(name: str) -> str:
    """The components of a name that say something."""
    return "^".join(part.strip() for part in plain(name).split("^")).rstrip("^")


@given(NAMES, NAMES)
def test_names(index: Index, stored: str, key: str) -> None:
    """A person's name is matched without regard to case, accents and delimiters at its end."""
    expected = components(key) == components(stored)
    assert found(index, {"PatientName": stored}, {"PatientName": key}) == (not key.strip(" ^") or expected)


@given(NAMES, NAMES)
def test_fuzzy_names(index: Index, stored: str, key: str) -> None:
    """With fuzzymatching each word of the key begins some word of the name."""
    words, starts = (re.findall(r"[^\s^-]+", plain(name)) for name in (stored, key))
    expected = all(any(word.startswith(start) for word in words) for start in starts)
    assert found(index, {"PatientName": stored}, {"PatientName": key}, fuzzy=True) == expected


def moments(time: str) -> tuple[float, float]:
    """The first and the last second of the day that a time, with whatever it leaves out, may be."""
    first, last = f"{time:0<6}"[:6], time[:6] + "235959"[len(time[:6]) :]
    seconds = [int(t[:2]) * 3600 + int(t[2:4]) * 60 + int(t[4:6]) for t in (first, last)]
    fraction = float(time[6:] or 0)
    return seconds[0] + fraction, seconds[1] + (fraction if "." in time else 0.999999)


@given(DATES, DATES.filter(bool), DATES.filter(bool), st.booleans(), st.booleans())
def test_dates(index: Index, stored: str, first: str, last: str, opened: bool, closed: bool) -> None:
    """A date is found by ranges that it lies in, whose ends may be open."""
    first, last = sorted((first, last))
    key = f"{first if opened else ''}-{last}" if closed else f"{first}-"
    expected = bool(stored) and (stored >= first or (closed and not opened)) and (stored <= last or not closed)
    assert found(index, {"StudyDate": stored}, {"StudyDate": key}) == expected


@given(TIMES, TIMES.filter(bool), TIMES.filter(bool))
def test_times(index: Index, stored: str, first: str, last: str) -> None:
    """A time is found by a range that its beginning lies in, up to the end of the last one."""
    first, last = sorted((first, last), key=moments)
    expected = bool(stored) and moments(first)[0] <= moments(stored)[0] <= moments(last)[1]
    assert found(index, {"StudyTime": stored}, {"StudyTime": f"{first}-{last}"}) == expected


HOURS = st.sampled_from(["080000", "120000", "200000"])


@given(DATES, HOURS, HOURS, HOURS)
def test_dates_and_times_together(index: Index, date: str, time: str, first: str, last: str) -> None:
    """Ranges of dates and times are one, from a moment to another, whose times are in any order."""
    assume(first != last)
    keys = {"StudyDate": "20260101-20260115", "StudyTime": f"{first}-{last}"}
    expected = f"20260101{first}" <= date + time <= f"20260115{last}"
    assert found(index, {"StudyDate": date, "StudyTime": time}, keys) == expected


@given(DATES, HOURS, HOURS)
def test_a_time_on_any_of_some_dates(index: Index, date: str, time: str, asked: str) -> None:
    """One time is no range, and so not the end of one that begins at a date."""
    expected = "20260101" <= date <= "20260115" and time == asked
    keys = {"StudyDate": "20260101-20260115", "StudyTime": asked}
    assert found(index, {"StudyDate": date, "StudyTime": time}, keys) == expected


@given(st.sampled_from(["", "7", "07", "+7", "-7", "70", "7a", "0"]), st.sampled_from(["7", "007", "+7", "-7", "0"]))
def test_numbers(index: Index, stored: str, key: str) -> None:
    """Numbers are equal however they are written; what is none is found by no number."""
    expected = re.fullmatch(r"[+-]?\d+", stored) is not None and int(stored) == int(key)
    assert found(index, {"InstanceNumber": stored}, {"InstanceNumber": key}) == expected


@given(st.lists(st.tuples(CODES, CODES), max_size=3), CODES, CODES)
def test_keys_of_a_sequence_are_met_by_one_item(index: Index, stored: list[tuple[str, str]], label: str, name: str) -> None:
    """Of the items of a sequence one has to match every key (PS3.4 C.2.2.2.6)."""
    items = [{"SegmentLabel": one, "SegmentAlgorithmName": other} for one, other in stored]
    keys = {"SegmentSequence.SegmentLabel": label, "SegmentSequence.SegmentAlgorithmName": name}
    asked_nothing = not label and not name
    expected = asked_nothing or any(label in ("", one) and name in ("", other) for one, other in stored)
    assert found(index, {}, keys, items=items) == expected
