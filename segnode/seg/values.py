"""Values of attributes that a file holds, or does not hold: what is not of its VR is refused by name, without what it says."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from pydicom import Dataset
from pydicom.tag import BaseTag, Tag

from segnode.errors import NotASegmentation

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
