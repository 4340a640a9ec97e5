"""What codes mean, as the tables of PS3.16 have it that come with pydicom, and whether two meanings are the same."""

import re
from functools import cache
from typing import Any, Final

from pydicom.sr._concepts_dict import concepts

# What context groups say of codes of SNOMED CT for which pydicom has other words, or none but SNOMED CT's own.
_OF_CONTEXT_GROUPS: Final = {
    "12921003": ("Pelvis",),
    "49755003": ("Morphologically Altered Structure",),
    "51185008": ("Chest", "Thorax"),
    "113345001": ("Abdomen",),
    "123037004": ("Anatomical Structure",),
}
# What SNOMED CT says behind a name of what kind it is, such as (body structure).
_KIND = re.compile(r" \([a-z /]+\)$")
_WORD = re.compile(r"\w+")
_BRITISH: Final = {"ae": "e", "oe": "e", "our": "or"}
# Words that one table has and another has not, for the same.
_SAYS_LITTLE: Final = frozenset(
    {"a", "an", "and", "bone", "entire", "gland", "heart", "muscle", "of", "organ", "structure", "the"}
)


def known_meanings(scheme: str, value: str) -> tuple[str, ...]:
    """The meanings of a code, first the one that most context groups have; none where none of these has the code.

    Then SNOMED CT's own name is all there is, and may be in words that nobody writes, as Thoracic structure is for the chest.
    """
    return _meanings(scheme).get(value, ())


def is_known_meaning(meaning: str, known: tuple[str, ...]) -> bool:
    """Whether a meaning is one of those that are known: case, order, plural, spelling and words that say little may differ."""
    return _words(meaning) in map(_words, known)


@cache
def _meanings(scheme: str) -> dict[str, tuple[str, ...]]:
    groups: dict[str, dict[str, int]] = {}
    of_scheme: Any = concepts.get(scheme, {})  # whose type pydicom does not say
    for codes in of_scheme.values():
        for value, (meaning, of_groups) in codes.items():
            groups.setdefault(value, {})[meaning] = len(of_groups)
    said = _OF_CONTEXT_GROUPS if scheme == "SCT" else {}
    return {
        value: (*said.get(value, ()), *sorted(counts, key=counts.__getitem__, reverse=True))
        for value, counts in groups.items()
        if value in said or any(counts.values())
    }


def _words(meaning: str) -> frozenset[str]:
    text = _KIND.sub("", meaning).casefold()
    for british, american in _BRITISH.items():
        text = text.replace(british, american)
    words = frozenset(word.removesuffix("s") for word in _WORD.findall(text))
    # A name of nothing but such words, such as "Bone", says what it says.
    return words - _SAYS_LITTLE or words
