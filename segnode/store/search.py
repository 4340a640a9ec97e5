"""Searching what is held: keys translated into SQL (PS3.4 C.2.2.2), and the rows of a level with what they count."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
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
    cast,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.dialects import sqlite

from segnode.dicom.attributes import INSTANCE_ATTRIBUTES, ITEM_ATTRIBUTES, PERSON_NAMES, SERIES_ATTRIBUTES, STUDY_ATTRIBUTES
from segnode.dicom.query import (
    LEVELS,
    TIME_OF,
    Asked,
    Between,
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
_TABLE_OF: Final[Mapping[Level, Table]] = {"studies": study, "series": series, "instances": instance}
_ITEMS_AT: Final[Mapping[str, Level]] = {"RequestAttributesSequence": "series", "SegmentSequence": "instances"}
_AFTER_ANY: Final = "~"
_UIDS: Final = object()


@dataclass(frozen=True)
class Row:
    """A match: its attributes by keyword.

    `requests` are the items of RequestAttributesSequence; `object_key` is that of an object of it.
    """

    attributes: Mapping[str, str]
    requests: Sequence[Mapping[str, str]]
    object_key: str


@dataclass(frozen=True)
class Found:
    """A page of matches, by UID, and how many there are after it."""

    rows: Sequence[Row]
    remaining: int


def searchable(level: Level) -> Iterator[str]:
    """The paths that a search of a level matches: what the index keeps of it and of the levels above."""
    upper = LEVELS[: LEVELS.index(level) + 1]
    for each in upper:
        yield from INDEXED[each]
    yield "ModalitiesInStudy"
    for sequence, at in _ITEMS_AT.items():
        if at in upper:
            yield from (f"{sequence}.{path}" for path in ITEM_ATTRIBUTES[sequence])


def find(connection: Connection, query: Query, keywords: Sequence[str], limit: int, offset: int = 0) -> Found:
    """The matches from `offset` on, `limit` at most, in the order of their UIDs; of each what the keywords ask for.

    They may name what the index keeps of the level and of those above, and what COUNTED lists for it.
    """
    uid = _uid(query.level)
    matching = select(uid).select_from(_joined(query.level, _top(query))).where(*_conditions(query))
    page = list(connection.execute(matching.order_by(uid).limit(limit + 1).offset(offset)).scalars())
    remaining = 0
    if len(page) > limit:
        total = connection.execute(select(func.count()).select_from(matching.subquery())).scalar_one()
        remaining = max(0, total - offset - limit)
    statement, parameters, names = _described(query.level, tuple(keywords))
    parameters = tuple(json.dumps(page[:limit]) if value is _UIDS else value for value in parameters)
    described = connection.exec_driver_sql(statement, parameters).all() if page[:limit] else []
    return Found([_as_row(dict(zip(names, row, strict=True))) for row in described], remaining)


def condition(column: ColumnElement[str], keyword: str, what: Asked) -> ColumnElement[bool]:
    """What a key asks of the column of an attribute that is no person's name."""
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
    together = _together(query) if query.combines_datetimes else {}
    for date, time in together.items():
        yield _between_moments(columns[date], query.keys[date], columns[time], query.keys[time])
    in_items: dict[str, list[ColumnElement[bool]]] = defaultdict(list)
    for path, what in query.keys.items():
        sequence, _, below = path.partition(".")
        if below:
            in_items[sequence].append(condition(ITEMS_OF[sequence].c[below], below.rpartition(".")[2], what))
        elif path == "ModalitiesInStudy":
            other = series.alias()
            of_study = other.c.StudyInstanceUID == columns["StudyInstanceUID"]
            yield exists().where(of_study, condition(other.c.Modality, "Modality", what))
        elif path in PERSON_NAMES:
            yield from (columns["StudyInstanceUID"].in_(named) for named in _named(path, what))
        elif path not in together.values():
            yield condition(columns[path], path, what)
    for sequence, conditions in in_items.items():
        owner = ITEMS_OF[sequence].c[_owner(sequence)]
        yield columns[owner.name].in_(select(owner).where(*conditions))


def _together(query: Query) -> dict[str, str]:
    """The dates, each with its time, of which both are ranges."""
    ranges = {path for path, what in query.keys.items() if isinstance(what, Between) and what.first != what.last}
    return {date: time for date, time in TIME_OF.items() if {date, time} <= ranges}


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
def _described(level: Level, keywords: Sequence[str]) -> tuple[str, tuple[Any, ...], Sequence[str]]:
    """A statement for these attributes of rows of a level, its parameters with _UIDS for their UIDs, and its columns.

    SQLAlchemy takes longer to put it together than SQLite to answer it.
    """
    columns = _columns(level)
    tables = [columns[keyword].table for keyword in keywords if keyword not in COUNTED[level]]
    top = next(each for each in LEVELS if each == level or _TABLE_OF[each] in tables)
    counted = _counted(level)
    asked = [counted.pop(keyword) if keyword in COUNTED[level] else columns[keyword] for keyword in keywords]
    further = [counted[name] for name in ("object_key", "requests") if name in counted]
    uids = func.json_each(bindparam("uids", _UIDS)).table_valued("value").c.value
    described = select(*asked, *further).select_from(_joined(level, top)).where(_uid(level).in_(select(uids)))
    compiled = described.order_by(_uid(level)).compile(dialect=sqlite.dialect(paramstyle="qmark"))
    parameters = tuple(compiled.params[name] for name in compiled.positiontup or ())
    return str(compiled), parameters, [column.name for column in described.selected_columns]


def _counted(level: Level) -> dict[str, ColumnElement[str]]:
    """What is counted of a row of a level and listed of what it holds, as text, and the key of an object of it."""
    if level == "instances":
        return {
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
        modalities = func.coalesce(func.group_concat(other.c.Modality.distinct()), "")
        counted["ModalitiesInStudy"] = select(modalities).where(is_of, other.c.Modality != "")
        counted["NumberOfStudyRelatedSeries"] = select(cast(func.count(), String)).select_from(other).where(is_of)
        counted["NumberOfStudyRelatedInstances"] = instances
    return {name: counted.scalar_subquery().label(name) for name, counted in counted.items()}


def _as_row(attributes: dict[str, str]) -> Row:
    object_key = attributes.pop("object_key")
    requests: list[Mapping[str, str]] = []
    if "requests" in attributes:
        keywords = ITEM_ATTRIBUTES["RequestAttributesSequence"]
        requests = [dict(zip(keywords, item, strict=True)) for item in json.loads(attributes.pop("requests"))]
    if "ModalitiesInStudy" in attributes:
        attributes["ModalitiesInStudy"] = "\\".join(sorted(attributes["ModalitiesInStudy"].split(",")))
    return Row(attributes, requests, object_key)


def _has_several_values(keyword: str) -> bool:
    return dictionary_VM(tag_for_keyword(keyword) or 0) != "1"


def _as_list(column: ColumnElement[str]) -> ColumnElement[str]:
    """A JSON array of the values that backslashes are between, which in a JSON string are two each."""
    return literal("[") + func.replace(func.json_quote(column), "\\\\", '","') + literal("]")


def _glob(pattern: str) -> str:
    """A pattern of SQLite's GLOB, to which square brackets mean something as well."""
    return pattern.replace("[", "[[]")
