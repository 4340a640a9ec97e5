"""QIDO-RS (PS3.18 10.6): the parameters of a search, and its matches as DICOM JSON."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom.datadict import keyword_for_tag, tag_for_keyword

from segnode.dicom.json import Json, attributes_json, member, members, objects, sequence_json
from segnode.dicom.query import LEVELS, Asked, Level, Query, asked
from segnode.dicomweb.metadata import Metadata
from segnode.errors import BadRequest
from segnode.store.index import Index
from segnode.store.search import COUNTED, INDEXED, MOST_COUNTED, is_of, searchable

MOST_RESULTS: Final = 10_000
_CONTROLS: Final = ("limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching", "multiplevaluematching", "accept")
_ATTRIBUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*|[0-9A-Fa-f]{8}")
_TAG: Final = re.compile(r"[0-9A-Fa-f]{8}")
_BULK: Final = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")


@dataclass(frozen=True)
class Search:
    """A search as the URL asks for it.

    `fields` are the keywords, or tags, of what is to be in the answer besides what always is; None of all that there is.
    `ignored` lists the keys and fields that nothing is known of.
    """

    query: Query
    fields: frozenset[str] | None
    limit: int
    offset: int
    ignored: Sequence[str]


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
    flags = ("fuzzymatching", "emptyvaluematching", "multiplevaluematching")
    fuzzy, empty, multiple = (_flag(name, controls) for name in flags)
    understood: dict[str, Asked] = {}
    ignored = []
    paths = frozenset(searchable(level))
    for path, value in keys.items():
        if path not in paths:
            ignored.append(path)
        elif (what := asked(path, value, fuzzy=fuzzy, empty=empty, multiple=multiple)) is not None:
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
    )


def search(index: Index, metadata: Metadata, wanted: Search, root: str) -> tuple[list[bytes], int]:
    """What is held and matches, each as DICOM JSON, and how much more there is; `root` is the URL that studies are under.

    What the index does not keep comes from the metadata of objects; one that has none says no more than the index.
    """
    keywords = _answered(wanted)
    found = index.search(wanted.query, keywords, wanted.limit, wanted.offset)
    uids = [found.attributes[INDEXED[level][0]] for level in LEVELS[: LEVELS.index(wanted.query.level) + 1]]
    attributes = {
        **found.attributes,
        "RetrieveURL": _urls(root, uids),
        "SpecificCharacterSet": ["ISO_IR 192"] * len(found.object_keys),
    }
    if not found.requests and _index_says_all(wanted):
        return objects(attributes), found.remaining
    said = members(attributes)
    requests = found.requests or [()] * len(found.object_keys)
    pairs = zip(found.object_keys, requests, strict=True)
    more = (_more(metadata, wanted, key, items, root) for key, items in pairs)
    return [_match(each, others) for each, others in zip(said, more, strict=True)], found.remaining


def warnings(wanted: Search, remaining: int, root: str) -> list[str]:
    """The values of the Warning headers of an answer (PS3.18 8.3.4)."""
    told = []
    if wanted.ignored:
        told.append(f"These attributes are not known at this level and have been ignored: {', '.join(wanted.ignored)}")
    if remaining:
        number = remaining if remaining <= MOST_COUNTED else f"more than {MOST_COUNTED}"
        told.append(f"There are {number} additional results that can be requested")
    return [f"299 {root}: {text}" for text in told]


def _answered(wanted: Search) -> list[str]:
    """What is answered of what the index keeps: all of the level, and of the levels above what the path leaves open."""
    level = wanted.query.level
    keywords = list(COUNTED[level])
    for each in LEVELS[: LEVELS.index(level) + 1]:
        uid, *others = INDEXED[each]
        is_open = uid not in wanted.query.within or wanted.fields is None
        keywords += [uid, *(keyword for keyword in others if is_open or keyword in (wanted.fields or ()))]
    is_open = "StudyInstanceUID" not in wanted.query.within or wanted.fields is None
    if level != "studies" and (is_open or "ModalitiesInStudy" in (wanted.fields or ())):
        keywords.append("ModalitiesInStudy")
    return keywords


def _urls(root: str, uids: Sequence[Sequence[str]]) -> list[str]:
    """The URLs of matches, whose UIDs are given level by level."""
    urls = [root] * len(uids[0])
    for level, of_level in zip(LEVELS, uids, strict=False):
        urls = [f"{url}/{level}/{uid}" for url, uid in zip(urls, of_level, strict=True)]
    return urls


def _match(said: Sequence[bytes], more: Json) -> bytes:
    """The JSON of a match: what the index says of it, and what only others say."""
    tags = {text.partition(b":")[0] for text in said}
    others = (member(tag, element) for tag, element in more.items())
    return b"{" + b",".join(sorted([*said, *(text for text in others if text.partition(b":")[0] not in tags)])) + b"}"


def _more(metadata: Metadata, wanted: Search, object_key: str, requests: Sequence[Mapping[str, str]], root: str) -> Json:
    """What is answered of a match besides the columns of the index."""
    more = Json()
    if not _index_says_all(wanted):
        more = _further(metadata.document(object_key, root), wanted.query.level, wanted.fields)
    if requests:
        items = sequence_json("RequestAttributesSequence", [attributes_json(item) for item in requests])
        more = {**items, **more}
    return more


def _index_says_all(wanted: Search) -> bool:
    """Whether no metadata are to be read for it."""
    return wanted.fields is not None and wanted.fields <= _INDEX_SAYS


_INDEX_SAYS: Final = frozenset(
    {
        *(keyword for keywords in (*INDEXED.values(), *COUNTED.values()) for keyword in keywords),
        "SpecificCharacterSet",
        "RetrieveURL",
    }
)


def _further(document: Json, level: Level, fields: frozenset[str] | None) -> Json:
    """Of the metadata of an object what is asked for, is of the level, and is no bulk data."""
    tags = None if fields is None else {f"{_tag(field):08X}" for field in fields - _INDEX_SAYS}
    return {
        tag: element
        for tag, element in document.items()
        if (tags is None or tag in tags) and element["vr"] not in _BULK and _is_of(level, keyword_for_tag(int(tag, 16)) or tag)
    }


def _is_known(field: str) -> bool:
    return _TAG.fullmatch(field) is not None or tag_for_keyword(field) is not None


def _is_of(level: Level, field: str) -> bool:
    """Whether an attribute is known, and of a level."""
    return _is_known(field) and is_of(level, field)


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
