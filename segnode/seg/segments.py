"""Segments as a label dictionary describes them: what each value of a model's labelmap means."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from segnode.config import readable_problem
from segnode.dicom.codes import Code
from segnode.errors import LabelError

_SHIPPED = Path(__file__).parent.parent / "models" / "labels"


_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One value of a model's labelmap: what it is, and under which segment number it is written."""

    value: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    label: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None
    colour: tuple[_Byte, _Byte, _Byte] | None = None
    number: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
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
    """The label dictionary of that shipped name, or in the file of that path (relative to `folder`). Raises LabelError."""
    path = _SHIPPED / f"{labels}.toml" if labels in shipped_label_dictionaries() else folder / labels
    try:
        with path.open("rb") as file:
            dictionary = msgspec.convert(tomllib.load(file), LabelDictionary)
    except OSError as error:
        known = ", ".join(shipped_label_dictionaries())
        raise LabelError(f"label dictionary {path} cannot be read ({error.strerror}); shipped ones: {known}") from error
    except tomllib.TOMLDecodeError as error:
        raise LabelError(f"label dictionary {path} is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise LabelError(f"label dictionary {path}: {readable_problem(error)}") from error
    _require_unique(path, "value", (segment.value for segment in dictionary.segment))
    _require_unique(path, "segment number", (segment.segment_number for segment in dictionary.segment))
    return dictionary


def _require_unique(path: Path, what: str, numbers: Iterable[int]) -> None:
    seen: set[int] = set()
    for number in numbers:
        if number in seen:
            raise LabelError(f"label dictionary {path}: {what} {number} is given twice")
        seen.add(number)


def segment_numbers(labelmap: npt.NDArray[np.integer], dictionary: LabelDictionary) -> npt.NDArray[np.unsignedinteger]:
    """A model's labelmap with segment numbers for values, as uint8, or uint16 where a number is above 255.

    Raises LabelError, naming the values that the dictionary does not have.
    """
    known = {segment.value: segment.segment_number for segment in dictionary.segment}
    unknown = [int(value) for value in np.unique(labelmap) if int(value) not in known and value != 0]
    if unknown:
        raise LabelError(f"the labelmap holds values without an entry in the label dictionary: {unknown[:10]}")
    dtype = np.uint8 if max(known.values(), default=0) < 256 else np.uint16
    if all(value == number for value, number in known.items()):
        return labelmap.astype(dtype, copy=False)
    table = np.zeros(max(known, default=0) + 1, dtype)
    table[list(known)] = list(known.values())
    numbers: npt.NDArray[np.unsignedinteger] = table[labelmap]
    return numbers
