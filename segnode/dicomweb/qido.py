"""QIDO-RS (PS3.18 10.6): searching studies, series and instances by what the index keeps of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom.datadict import keyword_for_tag

from segnode.dicom.attributes import INSTANCE_ATTRIBUTES, SERIES_ATTRIBUTES, STUDY_ATTRIBUTES
from segnode.dicom.json import Json, attributes_json
from segnode.errors import BadRequest
from segnode.store.index import Index, Level

_CONTROLS: Final = ("limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching", "multiplevaluematching", "accept")
_KEYS: Final[Mapping[Level, Sequence[str]]] = {
    "studies": ("StudyInstanceUID", *STUDY_ATTRIBUTES),
    "series": ("SeriesInstanceUID", *SERIES_ATTRIBUTES),
    "instances": ("SOPInstanceUID", "SOPClassUID", *INSTANCE_ATTRIBUTES),
}


@dataclass(frozen=True)
class Query:
    """A search as the URL asks for it; `ignored` lists the keys that cannot be matched."""

    keys: Mapping[str, str]
    limit: int | None
    offset: int
    ignored: Sequence[str]


def parse_query(level: Level, parameters: Iterable[tuple[str, str]]) -> Query:
    """The query of a URL's parameters: attributes by keyword or tag, limit and offset. Raises BadRequest."""
    keys: dict[str, str] = {}
    ignored: list[str] = []
    numbers = {"limit": "", "offset": ""}
    for name, value in parameters:
        if name in numbers:
            numbers[name] = value
        elif name not in _CONTROLS:
            keyword = _keyword(name)
            if keyword in _searchable(level):
                keys[keyword] = value
            else:
                ignored.append(name)
    limit = _whole_number("limit", numbers["limit"]) if numbers["limit"] else None
    return Query({k: v for k, v in keys.items() if v}, limit, _whole_number("offset", numbers["offset"] or "0"), ignored)


def search(index: Index, level: Level, within: Mapping[str, str], query: Query, root: str) -> list[Json]:
    """What is held and matches, as DICOM JSON; `within` holds the UIDs of the URL, `root` is where studies are under."""
    rows = index.search(level, within, query.keys, query.limit, query.offset)
    return [_document(index, level, row, root) for row in rows]


def _document(index: Index, level: Level, row: Mapping[str, str], root: str) -> Json:
    attributes = {keyword: row[keyword] for keyword in _searchable(level)}
    url = f"{root}/studies/{row['StudyInstanceUID']}"
    if level == "studies":
        attributes |= index.counts(row["StudyInstanceUID"])
    if level != "studies":
        url += f"/series/{row['SeriesInstanceUID']}"
    if level == "series":
        attributes |= index.counts(row["StudyInstanceUID"], row["SeriesInstanceUID"])
    if level == "instances":
        url += f"/instances/{row['SOPInstanceUID']}"
        attributes["AvailableTransferSyntaxUID"] = row["transfer_syntax_uid"]
    return attributes_json({"SpecificCharacterSet": "ISO_IR 192", **attributes, "RetrieveURL": url})


def _searchable(level: Level) -> Sequence[str]:
    levels: Sequence[Level] = ("studies", "series", "instances")
    return [keyword for upper in levels[: levels.index(level) + 1] for keyword in _KEYS[upper]]


def _keyword(name: str) -> str:
    if len(name) == 8 and all(c in "0123456789abcdefABCDEF" for c in name):
        return keyword_for_tag(int(name, 16)) or name
    if not name.replace(".", "").isalnum():
        raise BadRequest(f"{name!r} is neither the keyword nor the tag of an attribute")
    return name


def _whole_number(name: str, value: str) -> int:
    if not value.isdecimal() or len(value) > 9:
        raise BadRequest(f"{name} must be a whole number, not {value!r}")
    return int(value)
