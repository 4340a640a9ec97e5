"""The classes of a training set: what each value of its labels means, and what it is called."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

from segnode.dicom.codes import Code
from segnode.errors import LabelError
from segnode.seg.colour import recommended_cielab, srgb
from segnode.seg.segmentation import DescribedSegment, Segmentation
from segnode.seg.segments import LabelDictionary


@dataclass(frozen=True)
class Class:
    """A value of the labels, its name, which no other class of the set has, and the segment that it becomes."""

    value: int
    name: str
    segment: DescribedSegment

    @property
    def colour(self) -> tuple[int, int, int]:
        """Its recommended colour (sRGB), or one of its own."""
        if self.segment.cielab is not None:
            return srgb(self.segment.cielab)
        red, green, blue = colorsys.hsv_to_rgb(self.value * 0.618034 % 1, 0.75, 0.95)
        return round(red * 255), round(green * 255), round(blue * 255)


@dataclass(frozen=True)
class Classes:
    """The classes of a set by value."""

    all: tuple[Class, ...]

    def __len__(self) -> int:
        return len(self.all)

    def of_value(self, value: int, where: str) -> Class:
        """The class of a value. Raises LabelError, naming where it was found."""
        found = next((each for each in self.all if each.value == value), None)
        if found is None:
            raise LabelError(f"{where}: the value {value} has no name: the label dictionary has {_told(self.all)}")
        return found

    def of_name(self, name: str, where: str) -> Class:
        """The class of a name. Raises LabelError, naming where it was found."""
        found = next((each for each in self.all if each.name == name), None)
        if found is None:
            raise LabelError(f"{where}: the label {name!r} is not in the label dictionary, which has {_told(self.all)}")
        return found


def _told(classes: Sequence[Class]) -> str:
    names = ", ".join(f"{each.value} {each.name}" for each in classes[:8])
    return names + (f" and {len(classes) - 8} others" if len(classes) > 8 else "")


_Meaning = tuple[Any, ...]


class ClassesFound:
    """Gathers the classes of a set: segments that mean the same are one, which keeps its number unless that is taken."""

    def __init__(self, *, keep_identity: bool) -> None:
        self._keep_identity = keep_identity
        self._values: dict[_Meaning, int] = {}
        self._classes: dict[int, Class] = {}

    def add(self, segmentation: Segmentation) -> Mapping[int, int]:
        """Take in the segments of a Segmentation; the value of each number. Raises LabelError for one without a label."""
        values: dict[int, int] = {}
        for number in segmentation.numbers:
            segment = segmentation.segment[number]
            if not segment.label.strip():
                raise LabelError(
                    f"segment {number} of segmentation {segmentation.sop_instance_uid} has no label (SegmentLabel)"
                )
            values[number] = self._value_of(segment)
        if len(set(values.values())) < len(values):
            raise LabelError(
                f"{segmentation.sop_instance_uid} has two segments of one label and meaning: a class is one segment"
            )
        return values

    @property
    def classes(self) -> Classes:
        """What was found so far."""
        return Classes(tuple(self._classes[value] for value in sorted(self._classes)))

    def _value_of(self, segment: DescribedSegment) -> int:
        meaning = meaning_of(segment)
        if meaning in self._values:
            return self._values[meaning]
        value = segment.number
        if value in self._classes or value == 0:
            value = max(self._classes, default=0) + 1
        names = {each.name for each in self._classes.values()}
        numbered = (f"{segment.label} {number}" for number in count(2))
        name = next(each for each in chain((segment.label,), numbered) if each not in names)
        self._values[meaning] = value
        # What tells of one patient's lesion, or is free text, is in the set only where identities are kept.
        kept = segment if self._keep_identity else replace(segment, tracking_id="", tracking_uid="", description="")
        self._classes[value] = Class(value, name, replace(kept, number=value))
        return value


def meaning_of(segment: DescribedSegment) -> _Meaning:
    """What a segment means: its label and codes, whatever these are called."""
    return (
        segment.label,
        *map(_key, (segment.category, segment.type)),
        *(tuple(map(_key, codes)) for codes in (segment.modifiers, segment.regions, *segment.region_modifiers)),
    )


def _key(code: Code | None) -> tuple[str, str]:
    return (code.scheme, code.value) if code else ("", "")


def classes_of_dictionary(dictionary: LabelDictionary) -> Classes:
    """The classes that a label dictionary describes. Raises LabelError for a label that two values have."""
    names = [segment.label for segment in dictionary.segment]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LabelError(f"the label dictionary has two values of the label {twice!r}: which one is meant is not said")
    return Classes(
        tuple(
            Class(
                segment.value,
                segment.label,
                DescribedSegment(
                    number=segment.segment_number,
                    label=segment.label,
                    category=segment.category,
                    type=segment.type,
                    modifiers=(segment.modifier,) if segment.modifier else (),
                    regions=(segment.region,) if segment.region else (),
                    algorithm_type="MANUAL",
                    cielab=recommended_cielab(segment.colour) if segment.colour else None,
                ),
            )
            for segment in sorted(dictionary.segment, key=lambda segment: segment.value)
        )
    )
