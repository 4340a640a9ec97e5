"""QIDO-RS (PS3.18 10.6): the parameters of a search, and its matches as DICOM JSON."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from pydicom import dcmread
from pydicom.datadict import keyword_for_tag, tag_for_keyword

from segnode.dicom.attributes import FURTHER_SERIES_ATTRIBUTES, FURTHER_STUDY_ATTRIBUTES
from segnode.dicom.json import Json, attributes_as_json, attributes_json, sequence_json
from segnode.dicom.query import LEVELS, Asked, Level, Query, asked
from segnode.errors import BadRequest
from segnode.store.index import Index
from segnode.store.objects import ObjectStore
from segnode.store.search import COUNTED, INDEXED, Row, searchable

MOST_RESULTS: Final = 10_000
_CONTROLS: Final = ("limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching", "multiplevaluematching", "accept")
_ATTRIBUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*|[0-9A-Fa-f]{8}")
_TAG: Final = re.compile(r"[0-9A-Fa-f]{8}")
_FURTHER: Final[Mapping[Level, Sequence[str]]] = {
    "studies": FURTHER_STUDY_ATTRIBUTES,
    "series": FURTHER_SERIES_ATTRIBUTES,
    "instances": (),
}
_BULK: Final = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")


@dataclass(frozen=True)
class Search:
    """A search as the URL asks for it.

    `fields` are the keywords, or tags, of what is to be in the answer besides what always is; None of all that there is.
    `ignored` lists the keys and fields that nothing is known of, `unsupported` the parameters that change nothing.
    """

    query: Query
    fields: frozenset[str] | None
    limit: int
    offset: int
    ignored: Sequence[str]
    unsupported: Sequence[str]


def parse_search(level: Level, within: Mapping[str, str], parameters: Iterable[tuple[str, str]]) -> Search:
    """The search of a URL's parameters; `within` holds the UIDs of its path. Raises BadRequest."""
    keys: dict[str, str] = {}
    controls: dict[str, str] = {}
    fields: list[str] = []
    for name, value in parameters:
        if name == "includefield":
            fields += [field.strip() for field in value.split(",") if field.strip()]
            continue
        path = name if name in _CONTROLS else _path(name)
        known = controls if name in _CONTROLS else keys
        if path in known:
            raise BadRequest(f"{path} is there twice")
        known[path] = value
    fuzzy = _flag("fuzzymatching", controls)
    understood: dict[str, Asked] = {}
    ignored = []
    paths = frozenset(searchable(level))
    for path, value in keys.items():
        if path not in paths:
            ignored.append(path)
        elif (what := asked(path, value, fuzzy=fuzzy)) is not None:
            understood[path] = what
    everything = "all" in fields
    wanted = {_path(field).partition(".")[0] for field in fields if field != "all"}
    ignored += sorted(field for field in wanted if not _is_known(field))
    wanted |= {path.partition(".")[0] for path in keys if path in paths}
    return Search(
        Query(level, within, understood, combines_datetimes=True),
        None if everything else frozenset(field for field in wanted if _is_of(level, field)),
        min(_whole_number("limit", controls.get("limit", str(MOST_RESULTS))), MOST_RESULTS),
        _whole_number("offset", controls.get("offset", "0")),
        ignored,
        [name for name in ("emptyvaluematching", "multiplevaluematching") if _flag(name, controls)],
    )


def search(index: Index, objects: ObjectStore, wanted: Search, root: str) -> tuple[list[bytes], int]:
    """What is held and matches, each as DICOM JSON, and how much more there is; `root` is the URL that studies are under."""
    keywords = _answered(wanted)
    found = index.search(wanted.query, keywords, wanted.limit, wanted.offset)
    as_json = attributes_as_json(["SpecificCharacterSet", *keywords, "RetrieveURL"])
    # One by one, so that of many matches no more than the text is held.
    return [msgspec.json.encode(_document(objects, wanted, as_json, row, root)) for row in found.rows], found.remaining


def warnings(wanted: Search, remaining: int, root: str) -> list[str]:
    """The values of the Warning headers of an answer (PS3.18 8.3.4)."""
    told = [f"The {name} parameter is not supported. Only literal matching has been performed." for name in wanted.unsupported]
    if wanted.ignored:
        told.append(f"These attributes are not known at this level and have been ignored: {', '.join(wanted.ignored)}")
    if remaining:
        told.append(f"There are {remaining} additional results that can be requested")
    return [f"299 {root}: {text}" for text in told]


def _answered(wanted: Search) -> list[str]:
    """What is answered of what the index keeps: all of the level, and of the levels above what the path leaves open."""
    level = wanted.query.level
    keywords = list(COUNTED[level])
    for each in LEVELS[: LEVELS.index(level) + 1]:
        uid, *others = INDEXED[each]
        is_open = uid not in wanted.query.within or wanted.fields is None
        keywords += [uid, *(keyword for keyword in others if is_open or keyword in (wanted.fields or ()))]
    return keywords


def _document(objects: ObjectStore, wanted: Search, as_json: Callable[[Mapping[str, str]], Json], row: Row, root: str) -> Json:
    level = wanted.query.level
    url = "".join(f"/{each}/{row.attributes[INDEXED[each][0]]}" for each in LEVELS[: LEVELS.index(level) + 1])
    document = as_json({"SpecificCharacterSet": "ISO_IR 192", **row.attributes, "RetrieveURL": root + url})
    further: Json = {}
    if wanted.fields is None or not wanted.fields <= _INDEX_SAYS:
        further = _from_header(objects, row.object_key, level, wanted.fields)
    if level == "series" and row.requests:
        requests = sequence_json("RequestAttributesSequence", [attributes_json(item) for item in row.requests])
        further = {**requests, **further}
    return dict(sorted({**further, **document}.items())) if further else document


_INDEX_SAYS: Final = frozenset(
    {
        *(keyword for keywords in (*INDEXED.values(), *COUNTED.values()) for keyword in keywords),
        "SpecificCharacterSet",
        "RetrieveURL",
    }
)


def _from_header(objects: ObjectStore, object_key: str, level: Level, fields: frozenset[str] | None) -> Json:
    """Attributes of an object that the index does not keep, but for bulk data; none when it is gone meanwhile."""
    tags = None if fields is None else [_tag(field) for field in fields - _INDEX_SAYS]
    try:
        dataset = dcmread(objects.path(object_key), stop_before_pixels=True, specific_tags=tags)
        for element in list(dataset):
            if element.VR in _BULK or not _is_of(level, element.keyword or f"{element.tag:08X}"):
                del dataset[element.tag]
        document: Json = json.loads(dataset.to_json(suppress_invalid_tags=True))
    except Exception:  # noqa: BLE001  what pydicom cannot read is held as it is, and says no more than the index
        return {}
    return document


def _is_known(field: str) -> bool:
    return _TAG.fullmatch(field) is not None or tag_for_keyword(field) is not None


def _is_of(level: Level, field: str) -> bool:
    """Whether an attribute is of a level or of one above; an instance's may be any."""
    upper = LEVELS[: LEVELS.index(level) + 1]
    own = any(field in (*INDEXED[each], *COUNTED[each], *_FURTHER[each]) for each in upper)
    return _is_known(field) and (own or level == "instances")


def _tag(field: str) -> int:
    return tag_for_keyword(field) or int(field, 16)


def _path(name: str) -> str:
    """An attribute's path in keywords, whether it is given in keywords or tags. Raises BadRequest."""
    parts = name.split(".")
    if not all(_ATTRIBUTE.fullmatch(part) for part in parts):
        raise BadRequest(f"{name!r} is neither the keyword nor the tag of an attribute")
    return ".".join(keyword_for_tag(int(part, 16)) or part if _TAG.fullmatch(part) else part for part in parts)


def _flag(name: str, controls: Mapping[str, str]) -> bool:
    value = controls.get(name, "false")
    if value not in ("true", "false"):
        raise BadRequest(f"{name} is true or false")
    return value == "true"


def _whole_number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= 9):
        raise BadRequest(f"{name} must be a whole number, not {value!r}")
    return int(value)
