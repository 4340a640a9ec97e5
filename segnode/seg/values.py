"""Values of attributes that a file holds, or does not hold: what is not of its VR is refused by name, without what it says."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeAlias

from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import BaseTag, Tag

from segnode.errors import CannotConvert, NotASegmentation, SegnodeError

# An item whose values were decoded when it was read, by their tags: text, a number, a tuple of numbers, a list of items.
PlainItem: TypeAlias = dict[int, Any]
Item: TypeAlias = Dataset | PlainItem


@lru_cache
def _tag(keyword: str) -> BaseTag:
    """As pydicom finds it, which takes longer than most of what is looked for."""
    return Tag(keyword)


def value_of(item: Item, keyword: str) -> Any:
    """The value of an attribute, None when absent. Raises NotASegmentation when it cannot be decoded."""
    tag = _tag(keyword)
    if tag not in item:
        return None
    if isinstance(item, dict):
        return item[tag]
    try:
        return item[tag].value
    except Exception as error:
        raise NotASegmentation(f"{keyword} cannot be read: its value is not of its VR ({type(error).__name__})") from error


def items_of(item: Item, keyword: str) -> Sequence[Any]:
    """The items of a sequence, none when absent. Raises NotASegmentation."""
    value = value_of(item, keyword) or ()
    if not isinstance(value, Sequence) or not all(isinstance(inner, Dataset | dict) for inner in value):
        raise NotASegmentation(f"{keyword} is no sequence of items")
    return value


def text_of(item: Item, keyword: str) -> str:
    """The value as text, empty when absent. Raises NotASegmentation."""
    value = value_of(item, keyword)
    return "" if value is None else str(value)


def whole_number(item: Item, keyword: str, absent: int) -> int:
    """A number from 0; `absent` where there is none or an empty one. Raises NotASegmentation."""
    value = value_of(item, keyword)
    if value is None or value == "":
        return absent
    if not isinstance(value, int) or value < 0:
        raise NotASegmentation(f"{keyword} does not hold one number of 0 or more")
    return int(value)


def decimals_of(item: Item, keyword: str) -> tuple[float, ...]:
    """Numbers, none when absent. Raises NotASegmentation."""
    value = value_of(item, keyword)
    if value is None or value == "":
        return ()
    numbers = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    try:
        return tuple(float(number) for number in numbers)
    except (TypeError, ValueError) as error:
        raise NotASegmentation(f"{keyword} does not hold numbers") from error


@contextmanager
def naming_what_is_wrong(header: Dataset) -> Iterator[None]:
    """Whatever is raised because a header holds a value that is not of its VR is CannotConvert, which names the attribute.

    Of the hundreds of attributes of an object that somebody else made each may; where none does the error is another one's.
    """
    try:
        yield
    except (SegnodeError, MemoryError):
        raise
    except Exception as error:
        wrong = next((tag for tag in header.keys() if not _is_of_its_vr(header, tag)), None)  # noqa: SIM118  no decoding
        if wrong is None:
            raise
        name = keyword_for_tag(wrong) or f"({wrong >> 16:04X},{wrong & 0xFFFF:04X})"
        raise CannotConvert(f"{name} holds a value that is not of its VR: it cannot be written anew") from error


def _is_of_its_vr(header: Dataset, tag: BaseTag) -> bool:
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    alone = Dataset()
    try:
        alone.add(header[tag])
        write_dataset(file, alone)
    except Exception:  # noqa: BLE001  what pydicom raises depends on the VR and on the value
        return False
    return _has_its_vr(alone)


def _has_its_vr(dataset: Dataset) -> bool:
    """Whether all elements, however deep, have the VR that PS3.6 gives them."""
    return all(
        (not dictionary_has_tag(element.tag) or element.VR in ("UN", *dictionary_VR(element.tag).split(" or ")))
        and (element.VR != "SQ" or all(map(_has_its_vr, element.value)))
        for element in dataset
    )
