"""Searching what is held: keys translated into SQL (PS3.4 C.2.2.2), and the rows of a level with what they count."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import repeat
from types import MappingProxyType
from typing import Any, Final

from pydicom.datadict import dictionary_VM, tag_for_keyword
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    Select,
    String,
    Table,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects import sqlite

from segnode.dicom.attributes import (
    FURTHER_SERIES_ATTRIBUTES,
    FURTHER_STUDY_ATTRIBUTES,
    INSTANCE_ATTRIBUTES,
    ITEM_ATTRIBUTES,
    PERSON_NAMES,
    SERIES_ATTRIBUTES,
    STUDY_ATTRIBUTES,
)
from segnode.dicom.query import (
    LEVELS,
    Asked,
    Between,
    Empty,
    Every,
    Exactly,
    Level,
    Name,
    Number,
    Query,
    Wildcard,
    Words,
    is_pattern,
)
from segnode.store.tables import ITEMS_OF, instance, person_name, request, series, study

# What the index keeps of a level, its UID first.
INDEXED: Final[Mapping[Level, Sequence[str]]] = {
    "studies": ("StudyInstanceUID", *STUDY_ATTRIBUTES),
    "series": ("SeriesInstanceUID", *SERIES_ATTRIBUTES),
    "instances": ("SOPInstanceUID", "SOPClassUID", *INSTANCE_ATTRIBUTES),
}
# What it says of a match besides.
COUNTED: Final[Mapping[Level, Sequence[str]]] = {
    "studies": ("ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
    "series": ("NumberOfSeriesRelatedInstances",),
    "instances": ("AvailableTransferSyntaxUID",),
}
# And what is not kept, and objects may say of a study or a series; of an instance they may say anything.
_FURTHER: Final[Mapping[Level, Sequence[str]]] = {
    "studies": FURTHER_STUDY_ATTRIBUTES,
    "series": FURTHER_SERIES_ATTRIBUTES,
    "instances": (),
}
# What is counted of a patient.
OF_PATIENTS: Final = (
    "NumberOfPatientRelatedStudies",
    "NumberOfPatientRelatedSeries",
    "NumberOfPatientRelatedInstances",
)
_TABLE_OF: Final[Mapping[Level, Table]] = {"studies": study, "series": series, "instances": instance}
_ITEMS_AT: Final[Mapping[str, Level]] = {"RequestAttributesSequence": "series", "SegmentSequence": "instances"}
_AFTER_ANY: Final = "~"
# Of what matches behind a page no more is counted: of a hundred thousand that takes longer than all else.
MOST_COUNTED: Final = 10_000

Rows = Callable[[str, Sequence[Any]], Iterator[Any]]


@dataclass(frozen=True)
class _Statement:
    """SQL with its parameters, in which places stand for values that differ from use to use, and its columns."""

    text: str
    parameters: Sequence[Any]
    names: Sequence[str]

    def with_values(self, values: Mapping["_Place", Any]) -> tuple[Any, ...]:
        """The parameters with these values in their places."""
        return tuple(values[each] if isinstance(each, _Place) else each for each in self.parameters)


class _Place:
    """Where a value goes among the parameters of a statement."""


_UIDS: Final = _Place()
_LIMIT: Final = _Place()
_OFFSET: Final = _Place()


@dataclass(frozen=True)
class _Searched:
    """A query, known again by its text."""

    text: str
    query: Query = field(compare=False)


@dataclass(frozen=True)
class Found:
    """A page of matches, by UID: of each attribute, by keyword, the values in all of them, and how many there are after it.

    More than MOST_COUNTED are not all counted.
    `requests` has, of series, the items of RequestAttributesSequence of each; `object_keys` the key of an object of each.
    """

    attributes: Mapping[str, Sequence[str]]
    requests: Sequence[Sequence[Mapping[str, str]]]
    object_keys: Sequence[str]
    remaining: int

    def __iter__(self) -> Iterator["Row"]:
        """The matches by themselves, without their requests."""
        for values, object_key in zip(zip(*self.attributes.values(), strict=True), self.object_keys, strict=True):
            yield Row(dict(zip(self.attributes, values, strict=True)), object_key)


@dataclass(frozen=True)
class Row:
    """A match: its attributes by keyword, and the key of an object of it."""

    attributes: Mapping[str, str]
    object_key: str


def is_of(level: Level, keyword: str) -> bool:
    """Whether an attribute is of a level or of one above; an instance's may be any."""
    upper = LEVELS[: LEVELS.index(level) + 1]
    return level == "instances" or any(keyword in (*INDEXED[each], *COUNTED[each], *_FURTHER[each]) for each in upper)


def searchable(level: Level) -> Iterator[str]:
    """The paths that a search of a level matches: what the index keeps of it and of the levels above."""
    upper = LEVELS[: LEVELS.index(level) + 1]
    for each in upper:
        yield from INDEXED[each]
    yield "ModalitiesInStudy"
    for sequence, at in _ITEMS_AT.items():
        if at in upper:
            yield from (f"{sequence}.{path}" for path in ITEM_ATTRIBUTES[sequence])


def find(rows: Rows, query: Query, keywords: Sequence[str], limit: int, offset: int = 0) -> Found:
    """The matches from `offset` on, `limit` at most, in the order of their UIDs; of each what the keywords ask for.

    They may name what the index keeps of the level and of those above, what COUNTED lists for it, and ModalitiesInStudy.
    `rows` reads those of a statement.
    """
    searched = _Searched(repr(query), query)
    # What the search is within is known of each, and its table need not be joined for that.
    page = _page(searched, tuple(keyword for keyword in keywords if keyword not in query.within))
    found = list(rows(page.text, page.with_values({_LIMIT: limit + 1, _OFFSET: offset})))
    remaining = 0
    if len(found) > limit:
        count = _count(searched)
        ((total,),) = rows(count.text, count.with_values({_LIMIT: offset + limit + MOST_COUNTED + 1}))
        remaining = max(0, total - offset - limit)
    known = {keyword: [uid] * len(found[:limit]) for keyword, uid in query.within.items() if keyword in keywords}
    return _found(page.names, found[:limit], known, remaining)


def matching_after(connection: Connection, query: Query, last: str, limit: int) -> list[str]:
    """The UIDs of matches in their order, from that which follows on `last`."""
    uid = _uid(query.level)
    matching = _matching(query, uid)
    matching = matching.where(uid > last) if last else matching
    return list(connection.execute(matching.order_by(uid).limit(limit)).scalars())


def describe(rows: Rows, level: Level, keywords: Sequence[str], uids: Sequence[str]) -> Found:
    """What is of these UIDs, in their order: of each what the keywords ask for, as `find` has it."""
    statement = _of_uids(level, tuple(keywords))
    described = list(rows(statement.text, statement.with_values({_UIDS: json.dumps(uids)}))) if uids else []
    return _found(statement.names, described)


def _found(
    names: Sequence[str], rows: Sequence[Any], known: Mapping[str, Sequence[str]] = MappingProxyType({}), remaining: int = 0
) -> Found:
    """Matches by what rows of these columns say of them."""
    columns = {**known, **dict(zip(names, zip(*rows, strict=True) if rows else repeat(()), strict=False))}
    object_keys, requests = columns.pop("object_key"), columns.pop("requests", ())
    if "ModalitiesInStudy" in columns:
        columns["ModalitiesInStudy"] = tuple(_in_order(modalities) for modalities in columns["ModalitiesInStudy"])
    return Found(columns, [_items(each) for each in requests], object_keys, remaining)


@dataclass(frozen=True)
class Patient:
    """Who has studies that match: an ID tells patients apart, or a name where there is none. One study stands for all."""

    patient_id: str
    issuer: str
    name: str
    study_instance_uid: str


def patients_after(connection: Connection, query: Query, last: Patient | None, limit: int) -> list[Patient]:
    """Of the studies that match whose they are, in the order of what tells patients apart, from who follows on `last`."""
    keys = _of_patient()
    one = func.max(study.c.StudyInstanceUID)
    matching = select(*keys, one).where(*_conditions(query)).group_by(*keys).order_by(*keys).limit(limit)
    if last is not None:
        matching = matching.where(tuple_(*keys) > tuple_(*map(literal, (last.patient_id, last.issuer, last.name))))
    return [Patient(*map(str, row)) for row in connection.execute(matching)]


def count_of(connection: Connection, patient: Patient) -> Mapping[str, str]:
    """How much is held of a patient, as OF_PATIENTS lists it."""
    counted = (study.c.StudyInstanceUID, series.c.SeriesInstanceUID, instance.c.SOPInstanceUID)
    held = select(*(func.count(each.distinct()) for each in counted)).select_from(study.join(series).join(instance))
    theirs = zip(_of_patient(), (patient.patient_id, patient.issuer, patient.name), strict=True)
    row = connection.execute(held.where(*(key == value for key, value in theirs))).one()
    return dict(zip(OF_PATIENTS, map(str, row), strict=True))


def _of_patient() -> tuple[ColumnElement[str], ...]:
    """What tells patients apart."""
    nameless = case((study.c.PatientID == "", study.c.PatientName), else_="")
    return study.c.PatientID, study.c.IssuerOfPatientID, nameless


def condition(column: ColumnElement[str], keyword: str, what: Asked) -> ColumnElement[bool]:
    """What a key asks of the column of an attribute that is no person's name."""
    if isinstance(what, Empty):
        return column == ""
    if isinstance(what, Every):
        return and_(*(condition(column, keyword, Exactly((value,))) for value in what.values))
    if isinstance(what, Between):
        return and_(column >= (what.first or "0"), *([column <= what.last + _AFTER_ANY] if what.last else []))
    if isinstance(what, Number):
        is_number = and_(column != "", column.op("NOT GLOB")("*[^0-9+-]*"))
        return and_(cast(column, Integer) == what.value, is_number)
    if _has_several_values(keyword):
        value = func.json_each(_as_list(column)).table_valued("value").c.value
        return exists(select(value).where(_text_condition(value, what)))
    return _text_condition(column, what)


def _text_condition(column: ColumnElement[str], what: Asked) -> ColumnElement[bool]:
    if isinstance(what, Wildcard):
        return column.op("GLOB")(_glob(what.pattern))
    if isinstance(what, Exactly):
        if len(what.values) == 1:
            return column == what.values[0]
        # One variable, however many values: SQLite has only so many.
        return column.in_(select(func.json_each(json.dumps(what.values)).table_valued("value").c.value))
    raise TypeError(what)


def _conditions(query: Query) -> Iterator[ColumnElement[bool]]:
    columns = _columns(query.level)
    for keyword, uid in query.within.items():
        yield columns[keyword] == uid
    together = query.moments()
    for date, time in together.items():
        yield _between_moments(columns[date], query.keys[date], columns[time], query.keys[time])
    in_items: dict[str, list[ColumnElement[bool]]] = defaultdict(list)
    for path, what in query.keys.items():
        sequence, _, below = path.partition(".")
        if below:
            in_items[sequence].append(condition(ITEMS_OF[sequence].c[below], below.rpartition(".")[2], what))
        elif path == "ModalitiesInStudy":
            yield from _of_study(columns["StudyInstanceUID"], what)
        elif path in PERSON_NAMES and isinstance(what, Empty):
            nameless = select(study.c.StudyInstanceUID).where(study.c[path] == "")
            yield columns["StudyInstanceUID"].in_(nameless)
        elif path in PERSON_NAMES:
            yield from (columns["StudyInstanceUID"].in_(named) for named in _named(path, what))
        elif path not in together.values():
            yield condition(columns[path], path, what)
    for sequence, conditions in in_items.items():
        owner = ITEMS_OF[sequence].c[_owner(sequence)]
        yield columns[owner.name].in_(select(owner).where(*conditions))


def _of_study(uid: ColumnElement[str], what: Asked) -> Iterator[ColumnElement[bool]]:
    """What a key asks of the modalities of a study."""
    other = series.alias()
    if isinstance(what, Empty):
        yield not_(exists().where(other.c.StudyInstanceUID == uid, other.c.Modality != ""))
        return
    for each in [Exactly((value,)) for value in what.values] if isinstance(what, Every) else [what]:
        yield exists().where(other.c.StudyInstanceUID == uid, condition(other.c.Modality, "Modality", each))


def _between_moments(date: ColumnElement[str], dates: Asked, time: ColumnElement[str], times: Asked) -> ColumnElement[bool]:
    if not (isinstance(dates, Between) and isinstance(times, Between)):
        raise TypeError(dates, times)
    ends: list[ColumnElement[bool]] = []
    if dates.first and times.first:
        ends.append(or_(date > dates.first, time >= times.first))
    if dates.last and times.last:
        ends.append(or_(date < dates.last, and_(time != "", time <= times.last + _AFTER_ANY)))
    return and_(true(), *ends)


def _named(keyword: str, what: Asked) -> Iterator[Select[Any]]:
    """Of each thing that a key asks of a name the studies which have such a one."""
    studies = select(person_name.c.StudyInstanceUID).where(person_name.c.keyword == keyword)
    if isinstance(what, Words):
        for start in what.starts:
            pattern = start if is_pattern(start) else f"{start}*"
            yield studies.where(person_name.c.is_word, _name_condition(pattern))
    elif isinstance(what, Name):
        for place, group in enumerate(what.groups):
            if group:
                of_place = [person_name.c.place == place] if len(what.groups) > 1 else []
                yield studies.where(not_(person_name.c.is_word), _name_condition(group), *of_place)


def _name_condition(pattern: str) -> ColumnElement[bool]:
    return _text_condition(person_name.c.text, Wildcard(pattern) if is_pattern(pattern) else Exactly((pattern,)))


@cache
def _columns(level: Level) -> Mapping[str, Column[Any]]:
    """The columns that a search of a level asks of: a UID's is that of the lowest table which has it."""
    tables = [_TABLE_OF[each] for each in LEVELS[: LEVELS.index(level) + 1]]
    return {column.name: column for table in tables for column in table.columns}


def _top(query: Query) -> Level:
    """The highest level whose table is needed to match; for what is not asked of, a hundred thousand rows are not joined."""
    columns = _columns(query.level)
    keywords = [*query.within, *(_held_by(path) for path in query.keys)]
    tables = {query.level: _TABLE_OF[query.level], **{k: columns[k].table for k in keywords}}.values()
    return next(level for level in LEVELS if _TABLE_OF[level] in tables)


def _held_by(path: str) -> str:
    """The column that is asked for the sake of a key."""
    if path == "ModalitiesInStudy" or path in PERSON_NAMES:
        return "StudyInstanceUID"
    sequence, dot, _ = path.partition(".")
    return _owner(sequence) if dot else path


def _owner(sequence: str) -> str:
    """Whose items they are: the column of a series or an instance."""
    return str(ITEMS_OF[sequence].primary_key.columns[0].name)


def _uid(level: Level) -> Column[Any]:
    return _TABLE_OF[level].c[INDEXED[level][0]]


@cache
def _joined(level: Level, top: Level = "studies") -> Any:
    first, *others = (_TABLE_OF[each] for each in LEVELS[LEVELS.index(top) : LEVELS.index(level) + 1])
    joined: Any = first
    for table in others:
        joined = joined.join(table)
    return joined


@lru_cache(maxsize=64)
def _of_uids(level: Level, keywords: Sequence[str]) -> _Statement:
    """A statement for these attributes of the rows of a level that have _UIDS."""
    uids = func.json_each(bindparam("uids", _UIDS)).table_valued("value").c.value
    return _compiled(_described(level, keywords).where(_uid(level).in_(select(uids))))


@lru_cache(maxsize=256)
def _page(searched: _Searched, keywords: Sequence[str]) -> _Statement:
    """A statement for these attributes of what matches, _LIMIT of it from _OFFSET on."""
    level = searched.query.level
    # SQLite finds a row by its own number several times faster than by a UID.
    row: ColumnElement[Any] = literal_column(f"{_TABLE_OF[level].name}.rowid")
    page = _matching(searched.query, row).order_by(_uid(level)).limit(bindparam("limit", _LIMIT))
    return _compiled(_described(level, keywords).where(row.in_(page.offset(bindparam("offset", _OFFSET)).correlate(None))))


@lru_cache(maxsize=256)
def _count(searched: _Searched) -> _Statement:
    """A statement for the number of what matches, _LIMIT at most."""
    matching = _matching(searched.query, _uid(searched.query.level)).limit(bindparam("limit", _LIMIT))
    return _compiled(select(func.count()).select_from(matching.subquery()))


def _matching(query: Query, column: ColumnElement[Any]) -> Select[Any]:
    """A column of what matches."""
    return select(column).select_from(_joined(query.level, _top(query))).where(*_conditions(query))


def _described(level: Level, keywords: Sequence[str]) -> Select[Any]:
    """These attributes of rows of a level, in the order of their UIDs."""
    columns = _columns(level)
    counted = _counted(level)
    held = [keyword for keyword in keywords if keyword not in COUNTED[level]]
    tables = [columns["StudyInstanceUID" if keyword == "ModalitiesInStudy" else keyword].table for keyword in held]
    top = next(each for each in LEVELS if each == level or _TABLE_OF[each] in tables)
    asked = [counted.pop(keyword) if keyword in counted else columns[keyword] for keyword in keywords]
    further = [counted[name] for name in ("object_key", "requests") if name in counted]
    return select(*asked, *further).select_from(_joined(level, top)).order_by(_uid(level))


def _compiled(statement: Select[Any]) -> _Statement:
    """SQLAlchemy takes longer to put a statement together than SQLite to answer it: this one is used again."""
    compiled = statement.compile(dialect=sqlite.dialect(paramstyle="qmark"))
    parameters = tuple(compiled.params[name] for name in compiled.positiontup or ())
    return _Statement(str(compiled), parameters, [column.name for column in statement.selected_columns])


def _counted(level: Level) -> dict[str, ColumnElement[str]]:
    """What is counted of a row of a level and listed of what it holds, as text, and the key of an object of it."""
    above = series.alias()
    modalities = func.coalesce(func.group_concat(above.c.Modality.distinct()), "")
    of_study = select(modalities).where(above.c.StudyInstanceUID == _columns(level)["StudyInstanceUID"], above.c.Modality != "")
    in_study = {"ModalitiesInStudy": of_study.scalar_subquery().label("ModalitiesInStudy")}
    if level == "instances":
        return {
            **in_study,
            "AvailableTransferSyntaxUID": instance.c.transfer_syntax_uid.label("AvailableTransferSyntaxUID"),
            "object_key": instance.c.object_key,
        }
    other = series.alias()
    is_of = other.c.StudyInstanceUID == study.c.StudyInstanceUID
    if level == "series":
        is_of = other.c.SeriesInstanceUID == series.c.SeriesInstanceUID
    held = other.join(instance)
    instances = select(cast(func.count(), String)).select_from(held).where(is_of)
    counted = {"object_key": select(instance.c.object_key).select_from(held).where(is_of).limit(1)}
    if level == "series":
        paths = ITEM_ATTRIBUTES["RequestAttributesSequence"]
        items = func.json_group_array(func.json_array(*(request.c[path] for path in paths)))
        counted["requests"] = select(items).where(request.c.SeriesInstanceUID == series.c.SeriesInstanceUID)
        counted["NumberOfSeriesRelatedInstances"] = instances
    else:
        counted["NumberOfStudyRelatedSeries"] = select(cast(func.count(), String)).select_from(other).where(is_of)
        counted["NumberOfStudyRelatedInstances"] = instances
    return {**in_study, **{name: counted.scalar_subquery().label(name) for name, counted in counted.items()}}


def _in_order(modalities: str) -> str:
    return "\\".join(sorted(modalities.split(",")))


def _items(requests: str) -> list[Mapping[str, str]]:
    keywords = ITEM_ATTRIBUTES["RequestAttributesSequence"]
    return [dict(zip(keywords, item, strict=True)) for item in json.loads(requests)]


def _has_several_values(keyword: str) -> bool:
    return dictionary_VM(tag_for_keyword(keyword) or 0) != "1"


def _as_list(column: ColumnElement[str]) -> ColumnElement[str]:
    """A JSON array of the values that backslashes are between, which in a JSON string are two each."""
    return literal("[") + func.replace(func.json_quote(column), "\\\\", '","') + literal("]")


def _glob(pattern: str) -> str:
    """A pattern of SQLite's GLOB, to which square brackets mean something as well."""
    return pattern.replace("[", "[[]")
