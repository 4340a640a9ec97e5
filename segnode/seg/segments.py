"""Segments as a label dictionary describes them: what each value of a model's labelmap means."""

import re
import tomllib
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from segnode.config import readable_problem
from segnode.dicom.codes import Code
from segnode.errors import LabelError

_SHIPPED = Path(__file__).parent.parent / "models" / "labels"

_LARGEST: Final = 65535
_CODES: Final = ("category", "type", "modifier", "region")
# Of codes as they are written in a SEG (SH and LO, PS3.5 6.2): no backslash, no control characters, no spaces around.
_DESIGNATOR = re.compile(r"[!-\[\]-~]{1,16}")
_VALUE = re.compile(r"(?! )[ -\[\]-~]{1,16}(?<! )")
_MEANING = re.compile(r"(?!\s)[^\\\x00-\x1f\x7f]{1,64}(?<!\s)")
_PLACE = re.compile(r"segment\[(\d+)\](?:\.(\w+))?")
_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One value of a model's labelmap: what it is, and under which segment number it is written."""

    value: Annotated[int, msgspec.Meta(ge=1, le=_LARGEST)]
    label: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None
    colour: tuple[_Byte, _Byte, _Byte] | None = None
    number: Annotated[int, msgspec.Meta(ge=1, le=_LARGEST)] | None = None
    track: bool = False

    @property
    def segment_number(self) -> int:
        """The number this segment has in the SEG."""
        return self.number or self.value


class LabelDictionary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All values of a model's labelmap; 0 is the background and is not listed."""

    segment: tuple[Segment, ...]


def shipped_label_dictionaries() -> list[str]:
    """The names of the label dictionaries that come with segnode."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def read_label_dictionary(labels: str, folder: Path) -> LabelDictionary:
    """The label dictionary of that shipped name, or in the file of that path (relative to `folder`).

    A code that PS3.16 knows may be without its meaning, which is then the one that it has there. Raises LabelError, with the
    file and the line.
    """
    is_shipped = labels in shipped_label_dictionaries()
    path = _SHIPPED / f"{labels}.toml" if is_shipped else folder / labels
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except OSError as error:
        known = ", ".join(shipped_label_dictionaries())
        raise LabelError(f"label dictionary {path} cannot be read ({error.strerror}); shipped ones: {known}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LabelError(f"label dictionary {path} is not TOML: {error}") from error
    source = _Source(path, text)
    if not is_shipped:  # tests have seen to the codes of these: to load what is known takes a tenth of a second
        _require_codes(raw, source)
    try:
        dictionary = msgspec.convert(raw, LabelDictionary)
    except msgspec.ValidationError as error:
        raise source.fault(readable_problem(error)) from error
    _require_unique(source, "value", [segment.value for segment in dictionary.segment])
    _require_unique(source, "segment number", [segment.segment_number for segment in dictionary.segment])
    return dictionary


@dataclass(frozen=True)
class _Source:
    """The file of a label dictionary, which is TOML."""

    path: Path
    text: str

    def fault(self, problem: str) -> LabelError:
        """The error for a problem, which begins with the path of its key where there is one."""
        place = _PLACE.match(problem)
        line = self._line(int(place[1]), place[2]) if place else None
        where = f"{self.path}, line {line}" if line else f"{self.path}"
        return LabelError(f"label dictionary {where}: {problem}")

    def _line(self, number: int, key: str | None) -> int | None:
        """Where the statement begins that gives a segment's key; where the segment does when it gives none."""
        begins, last = None, -1
        for line, said in self._statements():
            tables = said.get("segment", ())
            last += len(tables)
            if tables and last >= number and begins is None:
                begins = line
            if last == number and key in said:
                return line
        return begins

    def _statements(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """What each statement of the file says by itself, with its first line: the fewest lines that are TOML are one."""
        first, statement = 1, ""
        for number, line in enumerate(self.text.split("\n"), start=1):
            statement += f"{line}\n"
            try:
                said = tomllib.loads(statement)
            except tomllib.TOMLDecodeError:
                continue
            yield first, said
            first, statement = number + 1, ""


def _require_codes(raw: dict[str, Any], source: _Source) -> None:
    """Look at every code, and write the meaning where that is left out. What is no code at all is not looked at."""
    tables = raw.get("segment")
    for number, table in enumerate(tables if isinstance(tables, list) else ()):
        for key in _CODES if isinstance(table, dict) else ():
            code = table.get(key)
            if not isinstance(code, list) or len(code) not in (2, 3) or not all(isinstance(part, str) for part in code):
                continue
            try:
                table[key] = _complete(*code)
            except LabelError as error:
                raise source.fault(f"segment[{number}].{key}: {error}") from error


def _complete(scheme: str, value: str, meaning: str | None = None) -> list[str]:
    """A code with its meaning. Raises LabelError for one of a wrong form, or that means something else."""
    from segnode.dicom.coded_meanings import is_known_meaning, known_meanings  # noqa: PLC0415  shipped ones do without

    if not _DESIGNATOR.fullmatch(scheme):
        raise LabelError(f"{scheme!r} is no coding scheme designator: 1 to 16 characters of ASCII, without space and backslash")
    if not _VALUE.fullmatch(value):
        raise LabelError(f"{value!r} is no code value: 1 to 16 characters of ASCII, without backslash and spaces around it")
    if scheme == "SCT" and not value.isdecimal():
        raise LabelError(f"{value!r} is no code of SNOMED CT (SCT), which is a number: those with letters were of SRT")
    known = known_meanings(scheme, value)
    if meaning is None and not known:
        raise LabelError(f"{scheme} {value} is not known here: write its meaning as the third, of 64 characters at most")
    written = known[0] if meaning is None else meaning
    if not _MEANING.fullmatch(written):
        raise LabelError(f"{written!r} is no code meaning: 1 to 64 characters, without backslash and spaces around it")
    if known and not is_known_meaning(written, known):
        means = " or ".join(map(repr, known))
        raise LabelError(f"{scheme} {value} means {means}, not {written!r}: correct one of them, or leave out the meaning")
    return [scheme, value, written]


def _require_unique(source: _Source, what: str, numbers: Iterable[int]) -> None:
    seen: set[int] = set()
    for place, number in enumerate(numbers):
        if number in seen:
            raise source.fault(f"segment[{place}]: {what} {number} is given twice")
        seen.add(number)


def segment_numbers(labelmap: npt.NDArray[np.integer], dictionary: LabelDictionary) -> npt.NDArray[np.unsignedinteger]:
    """A model's labelmap with segment numbers for values, as uint8, or uint16 where a number is above 255.

    Raises LabelError, naming the values that the dictionary does not have.
    """
    known = {segment.value: segment.segment_number for segment in dictionary.segment}
    unknown = [value for value in _values(labelmap, known) if value not in known and value != 0]
    if unknown:
        raise LabelError(f"the labelmap holds values without an entry in the label dictionary: {unknown[:10]}")
    dtype = np.uint8 if max(known.values(), default=0) < 256 else np.uint16
    if all(value == number for value, number in known.items()):
        return labelmap.astype(dtype, copy=False)
    table = np.zeros(max(known, default=0) + 1, dtype)
    table[list(known)] = list(known.values())
    numbers: npt.NDArray[np.unsignedinteger] = table[labelmap]
    return numbers


def found_in(labels: npt.NDArray[np.unsignedinteger], dictionary: LabelDictionary) -> LabelDictionary:
    """The entries of the segments that segment numbers (..., rows, columns) have; all where they have none."""
    seen, all_numbers = np.zeros(_LARGEST + 1, np.bool_), [segment.segment_number for segment in dictionary.segment]
    for plane in labels.reshape(-1, *labels.shape[-2:]):
        seen[plane] = True
        if seen[all_numbers].all():
            return dictionary
    found = tuple(segment for segment in dictionary.segment if seen[segment.segment_number])
    return LabelDictionary(found) if found else dictionary


def _values(labelmap: npt.NDArray[np.integer], known: Container[int]) -> list[int]:
    """The values of a labelmap, in their order; or all from its smallest to its largest, where these are known."""
    least, most = int(labelmap.min(initial=0)), int(labelmap.max(initial=0))
    if least < 0 or most > _LARGEST:
        return [int(value) for value in np.unique(labelmap)]
    if all(value in known for value in range(1, most + 1)):
        return [*range(1, most + 1)]
    # Slice by slice: bincount makes 8 bytes of each voxel.
    counts = sum(np.bincount(plane.ravel(), minlength=most + 1) for plane in np.atleast_2d(labelmap))
    return [int(value) for value in np.flatnonzero(counts)]
