"""The Query SCP (PS3.4 C.4.1): C-FIND answered from the index, by the matcher that QIDO-RS has too.

Identifiers are packed straight from rows; only what the index does not keep is read from the file of an object.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from segnode.dicom.attributes import FURTHER_PATIENT_ATTRIBUTES, PATIENT_ATTRIBUTES
from segnode.dicom.native import OF_BAD_OBJECTS
from segnode.dicom.packed import UTF_8, is_character_set, packed
from segnode.dicom.query import LEVELS, Asked, Query, asked
from segnode.dicom.status import (
    CANCELLED,
    CANNOT_UNDERSTAND,
    DATA_SET_MISMATCH,
    PENDING,
    PENDING_WITHOUT_SOME_KEYS,
    SUCCESS,
)
from segnode.dimse.exchange import Exchange
from segnode.dimse.identifier import SEARCHED, UNIQUE_KEYS, Identifier, Level, read_identifier, text, text_of
from segnode.errors import BadQuery, BadRequest
from segnode.store.index import Index
from segnode.store.objects import ObjectStore
from segnode.store.search import COUNTED, INDEXED, OF_PATIENTS, Row, is_of, searchable

_log = structlog.get_logger()

# Sent when there is so much of it, or nothing more.
_SENT_AT_ONCE: Final = 1 << 16
_CHARACTER_SET: Final = 0x00080005
_BULK: Final = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
# What is no key, and what is said of every match (PS3.4 C.4.1.1.3.2).
_NO_KEYS: Final = ("QueryRetrieveLevel", "SpecificCharacterSet", "RetrieveAETitle", "InstanceAvailability")


@dataclass(frozen=True)
class _Wanted:
    """A query as it is understood: what matches, and of a match the attributes that the index has, and those of its object.

    Of the latter a sequence has the keys of its items that are asked for. `is_all_known` unless there is a key that is not
    matched, or not known at all, at the level. `character_set` is what the peer has named.
    """

    level: Level
    query: Query
    indexed: Sequence[str]
    further: Dataset
    is_all_known: bool
    character_set: str


@dataclass(frozen=True)
class FindDoor:
    """Answers C-FIND with what is held; `ae_title` is that it can be retrieved from."""

    index: Index
    objects: ObjectStore
    ae_title: str

    def serve(self, exchange: Exchange) -> None:
        """Answer a request."""
        try:
            self._answer(exchange, _understand(read_identifier(exchange)))
        except BadQuery as problem:
            exchange.refuse(DATA_SET_MISMATCH, str(problem), problem.attribute)
        except BadRequest as problem:
            exchange.refuse(CANNOT_UNDERSTAND, str(problem))
        except OSError:
            raise
        except Exception:  # noqa: BLE001  the border of an association: the peer is told, and the node serves on
            _log.exception("a query broke")
            exchange.refuse(CANNOT_UNDERSTAND, "unforeseen error; the node's log has the details")

    def _answer(self, exchange: Exchange, wanted: _Wanted) -> None:
        status = PENDING if wanted.is_all_known else PENDING_WITHOUT_SOME_KEYS
        command = exchange.command(status, has_identifier=True)
        packer = _Packer(wanted, self.ae_title, self.objects, implicit=exchange.is_implicit)
        ready = bytearray()
        found = 0
        for row in self._rows(wanted):
            ready += command
            ready += exchange.pdus(packer.identifier(row))
            found += 1
            if len(ready) >= _SENT_AT_ONCE:
                if exchange.is_cancelled:
                    break
                exchange.send(ready)
                ready = bytearray()
        end = CANCELLED if exchange.is_cancelled else SUCCESS
        exchange.send((b"" if end == CANCELLED else ready) + exchange.response(end))
        _log.info("a query is answered", level=wanted.level, matches=found, calling_ae=exchange.calling_ae)

    def _rows(self, wanted: _Wanted) -> Iterator[Row]:
        if wanted.level != "PATIENT":
            return self.index.matches(wanted.query, wanted.indexed)
        kept = [keyword for keyword in wanted.indexed if keyword not in OF_PATIENTS]
        return self.index.patients(wanted.query, kept, counted=len(kept) < len(wanted.indexed))


class _Packer:
    """Packs the identifiers of matches, as a peer wants them."""

    def __init__(self, wanted: _Wanted, ae_title: str, objects: ObjectStore, *, implicit: bool) -> None:
        self._wanted = wanted
        self._objects = objects
        self._implicit = implicit
        said = {"QueryRetrieveLevel": wanted.level, "RetrieveAETitle": ae_title, "InstanceAvailability": "ONLINE"}
        self._said = [
            (_tag(keyword), packed(_tag(keyword), dictionary_VR(keyword), value, implicit=implicit))
            for keyword, value in said.items()
        ]
        self._columns = sorted((_tag(keyword), dictionary_VR(keyword), keyword) for keyword in wanted.indexed)

    def identifier(self, row: Row) -> bytes:
        """The identifier of a match: text in the character set that the peer has named, or else in Unicode."""
        further = self._further(row.object_key) if self._wanted.further else {}
        text = "".join([row.attributes[keyword] for _, _, keyword in self._columns])
        if text.isascii() and all(value.isascii() for value in further.values()):
            return self._pack(row, further, "")
        if not further and self._wanted.character_set != UTF_8:
            try:
                return self._pack(row, further, self._wanted.character_set)
            except UnicodeEncodeError:
                pass
        return self._pack(row, further, UTF_8)

    def _pack(self, row: Row, further: Mapping[int, bytes], character_set: str) -> bytes:
        implicit, attributes = self._implicit, row.attributes
        elements = [
            (tag, packed(tag, vr, attributes[keyword], implicit=implicit, character_set=character_set or UTF_8))
            for tag, vr, keyword in self._columns
        ]
        if character_set:
            elements.append((_CHARACTER_SET, packed(_CHARACTER_SET, "CS", character_set, implicit=implicit)))
        return b"".join([element for _, element in sorted([*elements, *self._said, *further.items()])])

    def _further(self, object_key: str) -> Mapping[int, bytes]:
        """What an object says of the keys that the index does not keep, by tag; what cannot be read is left out."""
        keys, found = self._wanted.further, dict[int, bytes]()
        try:
            tags = [_CHARACTER_SET, *keys.keys()]
            dataset = dcmread(self._objects.path(object_key), stop_before_pixels=True, specific_tags=tags)
            dataset.decode()
        except (OSError, *OF_BAD_OBJECTS):
            return found
        for tag in keys.keys():  # noqa: SIM118  iterating over a data set gives elements
            try:
                if tag in dataset and (element := dataset[tag]).VR not in _BULK:
                    found[int(tag)] = _encoded(_asked_of(element, keys[tag]), implicit=self._implicit)
            except OF_BAD_OBJECTS:
                continue
        return found


def _understand(identifier: Identifier) -> _Wanted:
    """The query of an identifier. Raises BadQuery, BadRequest."""
    level, search = identifier.level, SEARCHED[identifier.level]
    matched = frozenset(PATIENT_ATTRIBUTES if level == "PATIENT" else searchable(search))
    kept = _kept(level)
    conditions: dict[str, Asked] = {}
    indexed = dict.fromkeys([*identifier.within, UNIQUE_KEYS[level]])
    further = Dataset()
    is_all_known = True
    for path, value in _keys(identifier.keys):
        top = path.partition(".")[0]
        if path in matched and path not in identifier.within:
            what = asked(path, value)
            if what is not None:
                conditions[path] = what
        elif value.strip("*") and path not in identifier.within:
            is_all_known = False
        if top in kept:
            indexed[top] = None
        elif _may_say(level, top):
            further[top] = identifier.keys[top]
        else:
            is_all_known = False
    named = text_of(identifier.keys, "SpecificCharacterSet")
    character_set = named if is_character_set(named) else UTF_8
    query = Query(search, identifier.within, conditions)
    return _Wanted(level, query, list(indexed), further, is_all_known, character_set)


def _keys(keys: Dataset) -> Iterator[tuple[str, str]]:
    """The path and text of every key; keys in the item of a sequence have paths of their own. Raises BadQuery, BadRequest."""
    for tag in keys.keys():  # noqa: SIM118  iterating over a data set gives elements
        try:
            element = keys[tag]
            keyword = element.keyword or f"{tag:08X}"
            if tag.element == 0 or keyword in _NO_KEYS:
                continue
            value = "" if element.VR == "SQ" else text(element)
        except OF_BAD_OBJECTS as error:
            raise BadRequest(f"({tag.group:04x},{tag.element:04x}) has a key that is no value of it") from error
        if element.VR != "SQ":
            yield keyword, value
            continue
        if len(element.value) > 1:
            raise BadQuery(f"{keyword} has several items, where a key has one (PS3.4 C.2.2.2.6)", keyword)
        within = [(f"{keyword}.{path}", inner) for item in element.value for path, inner in _keys(item)]
        yield from within or [(keyword, "")]


def _kept(level: Level) -> frozenset[str]:
    """What a row says of a match: what the index keeps of the level and those above, and what is counted."""
    if level == "PATIENT":
        return frozenset((*PATIENT_ATTRIBUTES, *OF_PATIENTS))
    search = SEARCHED[level]
    upper = [keyword for each in LEVELS[: LEVELS.index(search) + 1] for keyword in INDEXED[each]]
    return frozenset((*upper, *COUNTED[search], "ModalitiesInStudy"))


def _may_say(level: Level, keyword: str) -> bool:
    """Whether the object of a match may say something of an attribute that is of the level."""
    if tag_for_keyword(keyword) is None:
        return False
    return keyword in FURTHER_PATIENT_ATTRIBUTES if level == "PATIENT" else is_of(SEARCHED[level], keyword)


def _asked_of(element: DataElement, key: DataElement) -> DataElement:
    """An element; of a sequence what the item of its key asks for, where it asks for something."""
    if element.VR != "SQ" or key.VR != "SQ" or not key.value or not len(key.value[0]):
        return element
    items = []
    for item in element.value:
        kept = Dataset()
        for tag in key.value[0].keys():  # noqa: SIM118  iterating over a data set gives elements
            if tag in item:
                kept[tag] = _asked_of(item[tag], key.value[0][tag])
        items.append(kept)
    return DataElement(element.tag, "SQ", items)


def _encoded(element: DataElement, *, implicit: bool) -> bytes:
    """An element by itself, its text in Unicode."""
    dataset = Dataset()
    dataset[element.tag] = element
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, implicit
    write_dataset(file, dataset, [UTF_8])
    return file.getvalue()


def _tag(keyword: str) -> int:
    return tag_for_keyword(keyword) or 0
