"""SegmentSequence (PS3.3 C.8.20.4) as described segments.

A hundred segments are thousands of elements: where they are written plainly they are not read by pydicom.
"""

from collections import Counter
from typing import Final

from pydicom import Dataset
from pydicom.multival import MultiValue

from segnode.dicom.codes import Code
from segnode.errors import NotASegmentation
from segnode.seg.plain_sequences import plain_items, plain_value
from segnode.seg.segmentation import DescribedSegment, SegmentationType
from segnode.seg.values import Item, items_of, text_of, value_of

_LARGEST_NUMBER: Final = 65535


def read_segments(header: Dataset, kind: SegmentationType) -> tuple[DescribedSegment, ...]:
    """The segments in the order of their items. Raises NotASegmentation."""
    items = plain_items(plain_value(header, "SegmentSequence")) or items_of(header, "SegmentSequence")
    if not items:
        raise NotASegmentation("SegmentSequence is missing or empty: nothing says what the values mean")
    segments = tuple(_read_segment(item, kind) for item in items)
    number, times = Counter(segment.number for segment in segments).most_common(1)[0]
    if times > 1:
        raise NotASegmentation(f"SegmentSequence describes SegmentNumber {number} twice")
    return segments


def _read_segment(item: Item, kind: SegmentationType) -> DescribedSegment:
    number = value_of(item, "SegmentNumber")
    if not isinstance(number, int):
        raise NotASegmentation("SegmentNumber is missing in an item of SegmentSequence, or is no number")
    if not (kind != "LABELMAP") <= number <= _LARGEST_NUMBER:
        raise NotASegmentation(f"SegmentNumber is {number}, which a {kind} segmentation cannot have (PS3.3 C.8.20.2.4)")
    types = items_of(item, "SegmentedPropertyTypeCodeSequence")
    regions = items_of(item, "AnatomicRegionSequence")
    region_modifiers = tuple(_codes(region, "AnatomicRegionModifierSequence") for region in regions)
    identified = items_of(item, "SegmentationAlgorithmIdentificationSequence")
    cielab = value_of(item, "RecommendedDisplayCIELabValue")
    is_colour = (
        isinstance(cielab, MultiValue | list | tuple) and len(cielab) == 3 and all(isinstance(part, int) for part in cielab)
    )
    return DescribedSegment(
        number=int(number),
        label=text_of(item, "SegmentLabel"),
        category=_first(_codes(item, "SegmentedPropertyCategoryCodeSequence")),
        type=_first(_codes(item, "SegmentedPropertyTypeCodeSequence")),
        modifiers=_codes(types[0], "SegmentedPropertyTypeModifierCodeSequence") if types else (),
        regions=_codes(item, "AnatomicRegionSequence"),
        algorithm_type=text_of(item, "SegmentAlgorithmType"),
        algorithm_name=text_of(item, "SegmentAlgorithmName"),
        tracking_id=text_of(item, "TrackingID"),
        tracking_uid=text_of(item, "TrackingUID"),
        cielab=(cielab[0], cielab[1], cielab[2]) if is_colour else None,
        description=text_of(item, "SegmentDescription"),
        region_modifiers=region_modifiers if any(region_modifiers) else (),
        primary_structures=_codes(item, "PrimaryAnatomicStructureSequence"),
        algorithm_version=text_of(identified[0], "AlgorithmVersion") if identified else "",
        algorithm_family=_first(_codes(identified[0], "AlgorithmFamilyCodeSequence")) if identified else None,
    )


def _codes(item: Item, keyword: str) -> tuple[Code, ...]:
    return tuple(
        Code(
            text_of(code, "CodingSchemeDesignator"),
            text_of(code, "CodeValue") or text_of(code, "LongCodeValue") or text_of(code, "URNCodeValue"),
            text_of(code, "CodeMeaning"),
        )
        for code in items_of(item, keyword)
    )


def _first(codes: tuple[Code, ...]) -> Code | None:
    return codes[0] if codes else None
