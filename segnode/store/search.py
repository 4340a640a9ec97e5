"""Searching what is held: keys translated into SQL (PS3.4 C.2.2.2), and the rows of a level with what they count."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydicom.datadict import dictionary_VM, tag_for_keyword
from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    RowMapping,
    Select,
    Table,
    and_,
    cast,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
    true,
)

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
_TABLE_OF: Final[Mapping[Level, Table]] = {"studies": study, "series": series, "instances": instance}
_ITEMS_AT: Final[Mapping[str, Level]] = {"RequestAttributesSequence": "series", "SegmentSequence": "instances"}
_AFTER_ANY: Final = "~"


@dataclass(frozen=True)
class Row:
    """A match: its attributes and those of the levels above by keyword, with what it counts.

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


def find(connection: Connection, query: Query, limit: int, offset: int = 0) -> Found:
    """The matches from `offset` on, `limit` at most, in the order of their UIDs."""
    uid = _TABLE_OF[query.level].c[INDEXED[query.level][0]]
    matching = select(uid).select_from(_joined(query.level)).where(*_conditions(query))
    page = matching.order_by(uid).limit(limit + 1).offset(offset).subquery()
    described = _described(query.level).where(uid.in_(select(page.c[0]))).order_by(uid)
    found = connection.execute(described).mappings().all()
    remaining = 0
    if len(found) > limit:
        total = connection.execute(select(func.count()).select_from(matching.subquery())).scalar_one()
        remaining = max(0, total - offset - limit)
    return Found([_as_row(row) for row in found[:limit]], remaining)


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
    tables = [_TABLE_OF[level] for level in LEVELS[: LEVELS.index(query.level) + 1]]
    columns = {column.name: column for table in reversed(tables) for column in table.columns}
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
            of_study = other.c.StudyInstanceUID == study.c.StudyInstanceUID
            yield exists().where(of_study, condition(other.c.Modality, "Modality", what))
        elif path in PERSON_NAMES:
            yield from _name_conditions(path, what)
        elif path not in together.values():
            yield condition(columns[path], path, what)
    for sequence, conditions in in_items.items():
        owner = ITEMS_OF[sequence].primary_key.columns[0]
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


def _name_conditions(keyword: str, what: Asked) -> Iterator[ColumnElement[bool]]:
    """That a study has names which match; each is looked up in the table of names."""
    if isinstance(what, Words):
        for start in what.starts:
            pattern = start if is_pattern(start) else f"{start}*"
            yield _is_named(keyword, person_name.c.is_word, _name_condition(pattern))
    elif isinstance(what, Name):
        for place, group in enumerate(what.groups):
            if group:
                of_place = [person_name.c.place == place] if len(what.groups) > 1 else []
                yield _is_named(keyword, not_(person_name.c.is_word), _name_condition(group), *of_place)


def _name_condition(pattern: str) -> ColumnElement[bool]:
    return _text_condition(person_name.c.text, Wildcard(pattern) if is_pattern(pattern) else Exactly((pattern,)))


def _is_named(keyword: str, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    named = select(person_name.c.StudyInstanceUID).where(person_name.c.keyword == keyword, *conditions)
    return study.c.StudyInstanceUID.in_(named)


def _joined(level: Level) -> Any:
    joined: Any = study
    for table in [_TABLE_OF[each] for each in LEVELS[1 : LEVELS.index(level) + 1]]:
        joined = joined.join(table)
    return joined


def _described(level: Level) -> Select[Any]:
    """All that is known of the rows of a level."""
    columns = [_TABLE_OF[each].c[keyword] for each in LEVELS[: LEVELS.index(level) + 1] for keyword in INDEXED[each]]
    described = select(*columns).select_from(_joined(level))
    if level == "instances":
        syntax = instance.c.transfer_syntax_uid.label("AvailableTransferSyntaxUID")
        return described.add_columns(syntax, instance.c.object_key)
    other = series.alias()
    is_of = other.c.StudyInstanceUID == study.c.StudyInstanceUID
    if level == "series":
        is_of = other.c.SeriesInstanceUID == series.c.SeriesInstanceUID
    instances = select(func.count()).select_from(other.join(instance)).where(is_of)
    an_object = select(instance.c.object_key).select_from(other.join(instance)).where(is_of).limit(1)
    described = described.add_columns(an_object.scalar_subquery().label("object_key"))
    if level == "series":
        items = [request.c[path] for path in ITEM_ATTRIBUTES["RequestAttributesSequence"]]
        of_series = request.c.SeriesInstanceUID == series.c.SeriesInstanceUID
        requests = select(func.json_group_array(func.json_array(*items))).where(of_series)
        return described.add_columns(
            instances.scalar_subquery().label("NumberOfSeriesRelatedInstances"),
            requests.scalar_subquery().label("requests"),
        )
    modalities = select(func.group_concat(other.c.Modality.distinct())).where(is_of, other.c.Modality != "")
    return described.add_columns(
        modalities.scalar_subquery().label("ModalitiesInStudy"),
        select(func.count()).select_from(other).where(is_of).scalar_subquery().label("NumberOfStudyRelatedSeries"),
        instances.scalar_subquery().label("NumberOfStudyRelatedInstances"),
    )


def _as_row(found: RowMapping) -> Row:
    attributes = {keyword: "" if value is None else str(value) for keyword, value in found.items()}
    object_key = attributes.pop("object_key")
    requests = json.loads(attributes.pop("requests", "[]"))
    if modalities := attributes.get("ModalitiesInStudy"):
        attributes["ModalitiesInStudy"] = "\\".join(sorted(modalities.split(",")))
    keywords = ITEM_ATTRIBUTES["RequestAttributesSequence"]
    return Row(attributes, [dict(zip(keywords, item, strict=True)) for item in requests], object_key)


def _has_several_values(keyword: str) -> bool:
    return dictionary_VM(tag_for_keyword(keyword) or 0) != "1"


def _as_list(column: ColumnElement[str]) -> ColumnElement[str]:
    """A JSON array of the values that backslashes are between, which in a JSON string are two each."""
    return literal("[") + func.replace(func.json_quote(column), "\\\\", '","') + literal("]")


def _glob(pattern: str) -> str:
    """A pattern of SQLite's GLOB, to which square brackets mean something as well."""
    return pattern.replace("[", "[[]")
