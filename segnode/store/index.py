"""The index: one row for each study, series and instance that is held; columns are called as DICOM calls them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Delete,
    Engine,
    Float,
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
    literal_column,
    select,
)
from sqlalchemy import Index as DatabaseIndex
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import Insert, insert

from segnode.dicom.attributes import (
    INSTANCE_ATTRIBUTES,
    ITEM_ATTRIBUTES,
    PERSON_NAMES,
    SENDER_KEYS,
    SERIES_ATTRIBUTES,
    STUDY_ATTRIBUTES,
)
from segnode.dicom.header import Header
from segnode.dicom.query import Query, name_groups, words
from segnode.dicom.uids import SEGMENTATION_CLASSES
from segnode.store.database import Driver, Execute, driven, make_tables, reading
from segnode.store.leases import Lease, lease_ids
from segnode.store.search import Found, Patient, Row, count_of, describe, find, matching_after, patients_after
from segnode.store.tables import ITEMS_OF
from segnode.store.tables import instance as _instance
from segnode.store.tables import metadata as _metadata
from segnode.store.tables import person_name as _person_name
from segnode.store.tables import series as _series
from segnode.store.tables import study as _study
from segnode.store.tables import unread as _unread

_SQLITE: Final = sqlite.dialect(paramstyle="qmark")
_NAMED: Final = sqlite.dialect(paramstyle="named")
_UID_FIELDS: Final = {
    "series_instance_uid": "SeriesInstanceUID",
    "sop_instance_uid": "SOPInstanceUID",
    "sop_class_uid": "SOPClassUID",
}
# As many as one statement may have in every SQLite.
_MOST_VARIABLES: Final = 500
# How many matches are looked for at once, where all are wanted, and how many rows of them are read at once.
_MATCHES_AT_ONCE: Final = 5000
_ROWS_AT_ONCE: Final = 500

Origin = Literal["received", "made"]

# Objects are numbered as they come.
_RECEIVED_AS: Final[ColumnElement[int]] = literal_column("instance.rowid", Integer)
_LATER: Final[ColumnElement[float]] = literal_column("0.000001", Float)
_COMES_LAST: Final = "UPDATE instance SET rowid = (SELECT max(rowid) + 1 FROM instance) WHERE object_key = ?"

_sending = Table(
    "sending",
    _metadata,
    Column("association", String, primary_key=True),
    Column("SeriesInstanceUID", String, primary_key=True, index=True),
    Column("lease_id", String, nullable=False),
)
_sender = Table(
    "sender",
    _metadata,
    Column("SeriesInstanceUID", String, primary_key=True),
    *(Column(key, String, primary_key=True) for key in SENDER_KEYS),
)
# What brought the newest image of a series, and whether that has ended as it should.
_bringer = Table(
    "bringer",
    _metadata,
    Column("SeriesInstanceUID", String, primary_key=True),
    Column("association", String, nullable=False, index=True),
    Column("ended_well", Boolean, nullable=False, default=False),
)
# What peers have of series that are not complete yet.
_answer = Table(
    "answer",
    _metadata,
    Column("SeriesInstanceUID", String, primary_key=True),
    Column("peer", String, primary_key=True),
    Column("instances", Integer, nullable=False),
    Column("asked_at", Float, nullable=False),
)
_doomed = Table(
    "doomed",
    _metadata,
    Column("object_key", String, primary_key=True),
    Column("doomed_at", Float, nullable=False, server_default="0"),
)
DatabaseIndex(
    "series_not_considered", _series.c.SeriesInstanceUID, sqlite_where=_series.c.considered_at < _series.c.last_received_at
)


class Instance(msgspec.Struct, frozen=True):
    """An object that is held: its identity, encoding and place. A struct is made several times faster than a dataclass."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    object_key: str
    size: int
    digest: str
    origin: Origin
    received_at: float
    replaced: bool

    @property
    def content(self) -> str:
        """What it is called in the content of a series: by its UID, and by its digest too where that was another object's."""
        return f"{self.sop_instance_uid} {self.digest}" if self.replaced else self.sop_instance_uid

    def differs(self, transfer_syntax_uid: str, digest: str) -> bool:
        """Whether a data set is not this one; in another transfer syntax it is taken to be the same."""
        return self.transfer_syntax_uid == transfer_syntax_uid and self.digest != digest


def uid_of(instance: Instance) -> str:
    """Its SOP instance UID."""
    return instance.sop_instance_uid


@dataclass(frozen=True)
class Image:
    """An object that is held and has rows of pixels, and how many frames it says it has."""

    instance: Instance
    frames: int


@dataclass(frozen=True)
class OpenAssociation:
    """An association, or a STOW request, that brings objects: the number it has in the process that holds the lease."""

    lease_id: str
    number: int

    @property
    def name(self) -> str:
        """What it is called in logs and rows."""
        return f"{self.lease_id}-{self.number}"


@dataclass(frozen=True)
class Sender:
    """Who sent an object: AE titles where it came by DIMSE, and the address of the host; empty where that is not known."""

    calling_ae: str = ""
    called_ae: str = ""
    host: str = ""


@dataclass(frozen=True)
class QuietSeries:
    """A series that no rule has been asked about since its last image came.

    `is_being_sent` by an association or a STOW request that is open; `came_well` when the one that brought its newest
    image has ended as it should: all of its objects were taken, and it did not break off.
    """

    study_instance_uid: str
    series_instance_uid: str
    last_received_at: float
    attributes: Mapping[str, str]
    is_being_sent: bool
    came_well: bool


@dataclass(frozen=True)
class Answer:
    """How many instances of a series a peer had when it was asked; 0 also when it did not say."""

    instances: int
    asked_at: float


@dataclass(frozen=True)
class Arrival:
    """A file that is to have a row: its object, and what brought it when."""

    header: Header
    object_key: str
    size: int
    digest: str
    origin: Origin
    now: float
    association: OpenAssociation | None = None
    sender: Sender | None = None


class Index:
    """Rows of what is held, in a database that several processes read and write."""

    def __init__(self, engine: Engine) -> None:
        self._writer = engine
        self._reader = reading(engine)
        self._driver = Driver(engine)
        self._rows = self._driver.rows
        make_tables(_metadata, engine, _fill)

    def add(
        self,
        header: Header,
        object_key: str,
        size: int,
        digest: str,
        origin: Origin,
        now: float,
        association: OpenAssociation | None = None,
        sender: Sender | None = None,
        *,
        replace: bool = False,
    ) -> Instance:
        """Commit the row of an object; when one of that UID is held already, nothing changes and that one is returned.

        With `replace` another object that was received before gives up its row, and its file is doomed. While the
        association that brought it is open, its series is not quiet. Raises OutOfResources when the database does not
        take it.
        """
        arrival = Arrival(header, object_key, size, digest, origin, now, association, sender)
        return self.add_all([arrival], replace=replace)[0]

    def add_all(self, arrivals: Sequence["Arrival"], *, replace: bool = False) -> list[Instance]:
        """Commit the rows of objects at once; of each what `add` says. Raises OutOfResources: then there is none of them."""
        if replace:
            with self._writer.begin() as connection, driven(connection) as execute:
                return [_replace(connection, execute, arrival) or _add(execute, arrival) for arrival in arrivals]
        return self._driver.write(lambda execute: [_add(execute, arrival) for arrival in arrivals])

    def find(self, sop_instance_uid: str) -> Instance | None:
        """The object of that UID, or None."""
        return next(iter(self._known(SOPInstanceUID=sop_instance_uid)), None)

    def instances(self, study: str, series: str | None = None, instance: str | None = None) -> list[Instance]:
        """The objects of a study, of a series of it, or the one object; in the order they came."""
        asked = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": instance}
        return self._known(**{keyword: uid for keyword, uid in asked.items() if uid is not None})

    def images_by_number(self, study: str, series: str | None = None, instance: str | None = None) -> list[Image]:
        """The images of a study, of a series of it, or the one, by number of series and instance."""
        asked = [_series.c.StudyInstanceUID == study, _instance.c.Rows != ""]
        if series is not None:
            asked.append(_series.c.SeriesInstanceUID == series)
        if instance is not None:
            asked.append(_instance.c.SOPInstanceUID == instance)
        numbers = (
            cast(_series.c.SeriesNumber, Integer),
            _series.c.SeriesInstanceUID,
            cast(_instance.c.InstanceNumber, Integer),
        )
        query = (
            _instance_rows()
            .add_columns(_instance.c.NumberOfFrames)
            .where(and_(*asked))
            .order_by(*numbers, _instance.c.SOPInstanceUID)
        )
        with self._reader.connect() as connection:
            return [Image(Instance(*row), _count(frames)) for *row, frames in connection.execute(query)]

    def held_after(self, number: int, limit: int) -> list[tuple[int, Instance]]:
        """Objects that came after the one of that number, with their numbers, which grow; 0 is before the first."""
        numbered = _RECEIVED_AS.label("number")
        query = _instance_rows().add_columns(numbered).where(numbered > number).order_by(numbered).limit(limit)
        with self._reader.connect() as connection:
            return [(number, Instance(*row)) for *row, number in connection.execute(query)]

    def newest(self) -> int:
        """The greatest number of an object; when objects are deleted that came last, theirs are given again."""
        with self._reader.connect() as connection:
            return connection.execute(select(func.max(_RECEIVED_AS)).select_from(_instance)).scalar() or 0

    def images(self, series: str) -> list[Instance]:
        """The objects of a series that were received, by SOP instance UID."""
        found = self._instances(and_(_instance.c.SeriesInstanceUID == series, _instance.c.origin == "received"))
        return sorted(found, key=lambda instance: instance.sop_instance_uid)

    def count_images(self, series: str) -> int:
        """How many objects of a series were received."""
        query = select(func.count()).where(_instance.c.SeriesInstanceUID == series, _received())
        with self._reader.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def add_sending(self, association: OpenAssociation, series: str) -> None:
        """Say that an open association brings images of a series; also when they are all held already."""
        mine = and_(_sending.c.association == association.name, _sending.c.SeriesInstanceUID == series)
        if not self._is_any_open(mine):
            with self._writer.begin() as connection, driven(connection) as execute:
                _note_sending(execute, association, series)

    def close_association(self, association: OpenAssociation, *, well: bool) -> None:
        """Say that an association sends no more; `well` when it did not break off and all it brought was taken."""
        mine = _sending.c.association == association.name
        if self._is_any_open(mine):  # most have sent nothing, and need not wait for the write lock
            with self._writer.begin() as connection:
                connection.execute(_sending.delete().where(mine))
                ended = _bringer.update().where(_bringer.c.association == association.name)
                connection.execute(ended.values(ended_well=well))

    def close_associations(self, living: Iterable[Lease]) -> None:
        """Say of every association that was open in a process which is no longer alive that it sends no more."""
        dead = _sending.c.lease_id.not_in(lease_ids(living))
        if self._is_any_open(dead):
            self._delete(_sending.delete().where(dead))

    def series(self, uid: str) -> Mapping[str, str]:
        """The attributes of a series and its study; none when it is not held."""
        query = select(*_columns(_study, STUDY_ATTRIBUTES), *_columns(_series, SERIES_ATTRIBUTES)).join_from(_series, _study)
        with self._reader.connect() as connection:
            row = connection.execute(query.where(_series.c.SeriesInstanceUID == uid)).mappings().first()
        return {keyword: value for keyword, value in (row or {}).items() if value}

    def senders(self, series: str) -> list[Sender]:
        """Who has sent objects of a series."""
        query = select(*_columns(_sender, SENDER_KEYS)).where(_sender.c.SeriesInstanceUID == series)
        with self._reader.connect() as connection:
            return [Sender(*row) for row in connection.execute(query.order_by(*_sender.primary_key.columns))]

    def quiet_series(self) -> list[QuietSeries]:
        """Every series that no rule has been asked about since its last image came."""
        sent = exists().where(_sending.c.SeriesInstanceUID == _series.c.SeriesInstanceUID)
        well = exists().where(_bringer.c.SeriesInstanceUID == _series.c.SeriesInstanceUID, _bringer.c.ended_well)
        sending = (sent.label("is_being_sent"), well.label("came_well"))
        query = select(_series, *sending, *_columns(_study, STUDY_ATTRIBUTES)).join(_study)
        query = query.where(_series.c.considered_at < _series.c.last_received_at)
        with self._reader.connect() as connection:
            rows = connection.execute(query).mappings().all()
        keywords = (*STUDY_ATTRIBUTES, *SERIES_ATTRIBUTES)
        return [
            QuietSeries(
                row["StudyInstanceUID"],
                row["SeriesInstanceUID"],
                row["last_received_at"],
                {k: row[k] for k in keywords if row[k]},
                bool(row["is_being_sent"]),
                bool(row["came_well"]),
            )
            for row in rows
        ]

    def set_considered(self, series: QuietSeries) -> None:
        """Say that every rule has been asked about a series as it was; an image that came since makes it quiet anew."""
        update = _series.update().where(_series.c.SeriesInstanceUID == series.series_instance_uid)
        with self._writer.begin() as connection:
            connection.execute(update.values(considered_at=series.last_received_at))
            connection.execute(_answer.delete().where(_answer.c.SeriesInstanceUID == series.series_instance_uid))

    def answer(self, series: str, peer: str) -> Answer | None:
        """What a peer has of a series, where it was asked."""
        query = select(_answer).where(_answer.c.SeriesInstanceUID == series, _answer.c.peer == peer)
        with self._reader.connect() as connection:
            row = connection.execute(query).first()
        return Answer(row.instances, row.asked_at) if row else None

    def set_answer(self, series: str, peer: str, answer: Answer) -> None:
        """Say what a peer has of a series; it replaces what it had before."""
        row = insert(_answer).values(SeriesInstanceUID=series, peer=peer, **vars(answer))
        with self._writer.begin() as connection:
            connection.execute(row.on_conflict_do_update(index_elements=["SeriesInstanceUID", "peer"], set_=vars(answer)))

    def rowless(self, object_keys: Iterable[str]) -> set[str]:
        """Those of some keys that no object has."""
        asked = set(object_keys)
        with self._reader.connect() as connection:
            for some in _batched(sorted(asked), _MOST_VARIABLES):
                held = connection.execute(select(_instance.c.object_key).where(_instance.c.object_key.in_(some)))
                asked -= set(held.scalars())
        return asked

    def considered_series(self, received_before: float) -> list[str]:
        """Series of received objects whose last came before then, and which every rule has been asked about."""
        received = exists().where(_instance.c.SeriesInstanceUID == _series.c.SeriesInstanceUID, _received())
        query = select(_series.c.SeriesInstanceUID).where(
            _series.c.last_received_at < received_before, _series.c.considered_at >= _series.c.last_received_at, received
        )
        with self._reader.connect() as connection:
            return list(connection.execute(query).scalars())

    def doom_images(self, series: str) -> None:
        """Take the received objects of a series off the index; their files are doomed, and deleted after this."""
        self._doom(and_(_instance.c.SeriesInstanceUID == series, _received()))

    def doom_made(self, sop_instance_uid: str) -> None:
        """Take an object that the node has made off the index; its file is doomed."""
        self._doom(and_(_instance.c.SOPInstanceUID == sop_instance_uid, ~_received()))

    def doom(
        self, study: str, series: str | None, instance: str | None, allow: Callable[[Sequence[Instance]], None]
    ) -> list[str]:
        """Take a study, a series of it or the one object off the index; the keys of the files, which are doomed.

        `allow` is asked about them while nothing else can come or go, and may raise.
        """
        with self._writer.begin() as connection:
            rows = connection.execute(_instance_rows().where(_within(study, series, instance)))
            found = [Instance(*row) for row in rows]
            allow(found)
            keys = [instance.object_key for instance in found]
            for some in _batched(keys, _MOST_VARIABLES):
                _doom(connection, _instance.c.object_key.in_(some))
            _drop_empty(connection)
            return keys

    def doomed(self, before: float) -> list[str]:
        """Keys of files that are to be deleted: no row leads to them any more; of those that were replaced, before then."""
        with self._reader.connect() as connection:
            return list(connection.execute(select(_doomed.c.object_key).where(_doomed.c.doomed_at <= before)).scalars())

    def forget_doomed(self, object_keys: Iterable[str]) -> None:
        """Say that these files are gone."""
        for some in _batched(object_keys, _MOST_VARIABLES):
            self._delete(_doomed.delete().where(_doomed.c.object_key.in_(some)))

    def search(self, query: Query, keywords: Sequence[str], limit: int, offset: int = 0) -> Found:
        """What is held and matches, a page of it in a stable order; see segnode.store.search.find."""
        return find(self._rows, query, keywords, limit, offset)

    def matches(self, query: Query, keywords: Sequence[str]) -> Iterator[Row]:
        """All that is held and matches, by UID; see segnode.store.search.find.

        However much it is, and however slowly it is taken: some is read at a time, and no transaction stays open.
        """
        last, is_more = "", True
        while is_more:
            with self._reader.connect() as connection:
                uids = matching_after(connection, query, last, _MATCHES_AT_ONCE)
            for some in _batched(uids, _ROWS_AT_ONCE):
                yield from describe(self._rows, query.level, keywords, some)
            is_more = len(uids) == _MATCHES_AT_ONCE
            last = uids[-1] if uids else last

    def patients(self, query: Query, keywords: Sequence[str], *, counted: bool) -> Iterator[Row]:
        """The patients of the studies that match, with what one study says of each; where it is asked for, what is counted."""
        last, is_more = None, True
        while is_more:
            with self._reader.connect() as connection:
                patients = patients_after(connection, query, last, _ROWS_AT_ONCE)
                of_study = {patient.study_instance_uid: patient for patient in patients}
            rows = describe(self._rows, "studies", [*keywords, "StudyInstanceUID"], sorted(of_study))
            found = {row.attributes["StudyInstanceUID"]: row for row in rows}
            for uid, patient in of_study.items():
                if uid in found:  # else it is gone meanwhile
                    yield self._with_counts(found[uid], patient) if counted else found[uid]
            is_more = len(patients) == _ROWS_AT_ONCE
            last = patients[-1] if patients else last

    def of_keys(self, object_keys: Iterable[str]) -> list[Instance]:
        """Those of some objects that are held."""
        return [
            held
            for some in _batched(object_keys, _MOST_VARIABLES)
            for held in self._instances(_instance.c.object_key.in_(some))
        ]

    def unread(self, limit: int) -> list[Instance]:
        """Some of the objects that were held before the index kept what is in their items."""
        listed = select(_unread.c.SOPInstanceUID).limit(limit)
        return self._instances(_instance.c.SOPInstanceUID.in_(listed))

    def set_read(self, sop_instance_uid: str, header: Header | None) -> None:
        """Keep what is in the items of an object that is held; nothing of one that cannot be read."""
        with self._writer.begin() as connection:
            mine = connection.execute(_unread.delete().where(_unread.c.SOPInstanceUID == sop_instance_uid))
            if mine.rowcount and header is not None:
                with driven(connection) as execute:
                    _note_items(execute, header)

    def _with_counts(self, row: Row, patient: Patient) -> Row:
        with self._reader.connect() as connection:
            return Row({**row.attributes, **count_of(connection, patient)}, row.object_key)

    def _is_any_open(self, asked: ColumnElement[bool]) -> bool:
        with self._reader.connect() as connection:
            return connection.execute(select(_sending.c.association).where(asked)).first() is not None

    def _doom(self, asked: ColumnElement[bool]) -> None:
        with self._writer.begin() as connection:
            _doom(connection, asked)
            _drop_empty(connection)

    def _delete(self, statement: Delete) -> None:
        with self._writer.begin() as connection:
            connection.execute(statement)

    def _instances(self, asked: ColumnElement[bool]) -> list[Instance]:
        query = _instance_rows().where(asked).order_by(_instance.c.received_at, _instance.c.SOPInstanceUID)
        with self._reader.connect() as connection:
            return [Instance(*row) for row in connection.execute(query)]

    def _known(self, **uids: str) -> list[Instance]:
        """The objects of these UIDs; as _instances."""
        return [Instance(*row) for row in self._rows(_of_uids(tuple(uids)), tuple(uids.values()))]


def _add(execute: Execute, arrival: Arrival) -> Instance:
    """Make the row of an object, unless one of its UID is held; the one that is held then."""
    header = arrival.header
    if _one(execute, header.sop_instance_uid) is None:
        study = _study_row(header)
        if execute(_put(_study), study).rowcount:
            _note_names(execute, study)
        execute(_put(_series), _series_row(arrival))
        execute(_put(_instance, "abort"), _instance_row(arrival))
        _note_items(execute, header)
    return _brought(execute, arrival)


def _replace(connection: Connection, execute: Execute, arrival: Arrival) -> Instance | None:
    """Give the row of another object of that UID that was received to this one, if there is such another; it is held then."""
    header = arrival.header
    held = _one(execute, header.sop_instance_uid)
    if held is None or held.origin != "received" or not held.differs(header.transfer_syntax_uid, arrival.digest):
        return None
    study = _study_row(header)
    connection.execute(_doomed.insert().values(object_key=held.object_key, doomed_at=arrival.now))
    connection.execute(_upsert(_study, study, STUDY_ATTRIBUTES))
    connection.execute(_upsert(_series, _series_row(arrival), SERIES_ATTRIBUTES))
    new = {**_instance_row(arrival), "replaced": True}
    connection.execute(_instance.update().where(_instance.c.object_key == held.object_key).values(new))
    execute(_COMES_LAST, (arrival.object_key,))
    _note_anew(connection, execute, header, study)
    if (held.study_instance_uid, held.series_instance_uid) != (header.study_instance_uid, header.series_instance_uid):
        _drop_empty(connection)
    return _brought(execute, arrival)


def _brought(execute: Execute, arrival: Arrival) -> Instance:
    """Note what has brought an object; the one that is held."""
    header = arrival.header
    held = _one(execute, header.sop_instance_uid)
    if held is None:
        raise LookupError(header.sop_instance_uid)
    if held.object_key == arrival.object_key and arrival.origin == "received":
        execute(_touch(), {"series": header.series_instance_uid, "now": arrival.now})
    if arrival.association is not None:
        _note_sending(execute, arrival.association, header.series_instance_uid)
    if arrival.sender is not None:
        execute(_put(_sender), {"SeriesInstanceUID": header.series_instance_uid, **vars(arrival.sender)})
    return held


def _study_row(header: Header) -> dict[str, Any]:
    return {"StudyInstanceUID": header.study_instance_uid, **_pick(header, STUDY_ATTRIBUTES)}


def _series_row(arrival: Arrival) -> dict[str, Any]:
    return {
        "SeriesInstanceUID": arrival.header.series_instance_uid,
        "StudyInstanceUID": arrival.header.study_instance_uid,
        "last_received_at": arrival.now,
        "considered_at": arrival.now if arrival.origin == "made" else 0.0,
        **_pick(arrival.header, SERIES_ATTRIBUTES),
    }


def _instance_row(arrival: Arrival) -> dict[str, Any]:
    return {
        "SOPInstanceUID": arrival.header.sop_instance_uid,
        "SeriesInstanceUID": arrival.header.series_instance_uid,
        "SOPClassUID": arrival.header.sop_class_uid,
        "transfer_syntax_uid": arrival.header.transfer_syntax_uid,
        "object_key": arrival.object_key,
        "size": arrival.size,
        "digest": arrival.digest,
        "origin": arrival.origin,
        "received_at": arrival.now,
        "replaced": False,
        **_pick(arrival.header, INSTANCE_ATTRIBUTES),
    }


def _one(execute: Execute, sop_instance_uid: str) -> Instance | None:
    row = execute(_of_uids(("SOPInstanceUID",)), (sop_instance_uid,)).fetchone()
    return None if row is None else Instance(*row)


def _batched(values: Iterable[str], size: int) -> Iterator[list[str]]:
    """Values in lists of that length at most."""
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch


def _instance_rows() -> Select[Any]:
    """Rows in the order of Instance's fields."""
    names = Instance.__struct_fields__
    columns = {**_series.c, **_instance.c, **{uid: _instance.c[keyword] for uid, keyword in _UID_FIELDS.items()}}
    return select(_series.c.StudyInstanceUID, *(columns[name] for name in names[1:])).join_from(_instance, _series)


@cache
def _of_uids(keywords: Sequence[str]) -> str:
    """A statement for the objects of these UIDs, which takes them in this order.

    SQLAlchemy takes longer to put it together than SQLite to answer it.
    """
    columns = {**_instance.c, "StudyInstanceUID": _series.c.StudyInstanceUID}
    query = _instance_rows().where(*(columns[keyword] == bindparam(keyword) for keyword in keywords))
    compiled = query.order_by(_instance.c.received_at, _instance.c.SOPInstanceUID).compile(dialect=_SQLITE)
    if list(compiled.positiontup or ()) != list(keywords):
        raise ValueError(keywords)
    return str(compiled)


@cache
def _put(table: Table, on_conflict: Literal["ignore", "abort"] = "ignore") -> str:
    """A statement that takes a row by the names of the columns, all of them; where its key is there, it is passed over."""
    statement = insert(table) if on_conflict == "abort" else insert(table).on_conflict_do_nothing()
    return str(statement.compile(dialect=_NAMED))


@cache
def _touch() -> str:
    update = _series.update().where(_series.c.SeriesInstanceUID == bindparam("series"))
    # By a clock that was set back an image comes before those that came: its series is to be considered anew all the same.
    before, now = _series.c.last_received_at, bindparam("now", type_=Float)
    last = case((now < before, before + _LATER), else_=now)
    return str(update.values(last_received_at=last).compile(dialect=_NAMED))


@cache
def _bring() -> str:
    """A statement that takes a row of _bringer, which replaces that of another association."""
    brings = insert(_bringer)
    another = {"association": brings.excluded.association, "ended_well": brings.excluded.ended_well}
    is_another = _bringer.c.association != brings.excluded.association
    statement = brings.on_conflict_do_update(index_elements=["SeriesInstanceUID"], set_=another, where=is_another)
    return str(statement.compile(dialect=_NAMED))


def _note_sending(execute: Execute, association: OpenAssociation, series: str) -> None:
    row = {"association": association.name, "SeriesInstanceUID": series}
    execute(_put(_sending), {**row, "lease_id": association.lease_id})
    execute(_bring(), {**row, "ended_well": False})


def _within(study: str, series: str | None, instance: str | None) -> ColumnElement[bool]:
    asked = [_series.c.StudyInstanceUID == study]
    if series is not None:
        asked.append(_series.c.SeriesInstanceUID == series)
    if instance is not None:
        asked.append(_instance.c.SOPInstanceUID == instance)
    return and_(*asked)


def _doom(connection: Connection, asked: ColumnElement[bool]) -> None:
    connection.execute(insert(_doomed).from_select(["object_key"], select(_instance.c.object_key).where(asked)))
    connection.execute(_instance.delete().where(asked))


def _drop_empty(connection: Connection) -> None:
    """Delete the rows of series and studies that hold nothing any more."""
    held = exists().where(_instance.c.SeriesInstanceUID == _series.c.SeriesInstanceUID)
    connection.execute(_series.delete().where(~held))
    kept = exists().where(_series.c.SeriesInstanceUID == _sender.c.SeriesInstanceUID)
    connection.execute(_sender.delete().where(~kept))
    held = exists().where(_series.c.SeriesInstanceUID == _bringer.c.SeriesInstanceUID)
    connection.execute(_bringer.delete().where(~held))
    held = exists().where(_series.c.SeriesInstanceUID == _answer.c.SeriesInstanceUID)
    connection.execute(_answer.delete().where(~held))
    held = exists().where(_series.c.StudyInstanceUID == _study.c.StudyInstanceUID)
    connection.execute(_study.delete().where(~held))


def _upsert(table: Table, row: Mapping[str, Any], keywords: Sequence[str]) -> Insert:
    changed = {keyword: row[keyword] for keyword in keywords}
    return insert(table).values(row).on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)


def _received() -> ColumnElement[bool]:
    return _instance.c.origin == "received"


def _pick(header: Header, keywords: Sequence[str]) -> dict[str, str]:
    return {keyword: header.attributes.get(keyword, "") for keyword in keywords}


def _columns(table: Table, keywords: Sequence[str]) -> list[Column[Any]]:
    return [table.c[keyword] for keyword in keywords]


def _note_items(execute: Execute, header: Header) -> None:
    """Keep what is indexed of an object's items; those of a series are those of its first object that has any."""
    uids = {"SeriesInstanceUID": header.series_instance_uid, "SOPInstanceUID": header.sop_instance_uid}
    for sequence, items in header.items.items():
        table = ITEMS_OF[sequence]
        uid = table.primary_key.columns[0].name
        if not items or execute(_any_of(table), (uids[uid],)).fetchone():
            continue
        for place, item in enumerate(items):
            texts = {path.replace(".", "_"): item.get(path, "") for path in ITEM_ATTRIBUTES[sequence]}
            execute(_put(table), {**texts, uid: uids[uid], "place": place})


@cache
def _any_of(table: Table) -> str:
    """A statement for a row of that key, which is the first of the table's own."""
    key = table.primary_key.columns[0]
    return str(select(literal_column("1")).select_from(table).where(key == bindparam("key")).compile(dialect=_SQLITE))


def _note_names(execute: Execute, study: Mapping[str, str]) -> None:
    for keyword in PERSON_NAMES:
        groups = [(False, place, group) for place, group in enumerate(name_groups(study[keyword])) if group]
        parts = [(True, 0, word) for word in words(study[keyword])]
        for is_word, place, text in (*groups, *parts):
            row = {"StudyInstanceUID": study["StudyInstanceUID"], "keyword": keyword, "is_word": is_word, "place": place}
            execute(_put(_person_name), {**row, "text": text})


def _note_anew(connection: Connection, execute: Execute, header: Header, study: Mapping[str, str]) -> None:
    """Keep the names and items of an object that took the place of another."""
    connection.execute(_person_name.delete().where(_person_name.c.StudyInstanceUID == study["StudyInstanceUID"]))
    _note_names(execute, study)
    uids = {"SeriesInstanceUID": header.series_instance_uid, "SOPInstanceUID": header.sop_instance_uid}
    for table in (_unread, *ITEMS_OF.values()):
        uid = table.primary_key.columns[0]
        connection.execute(table.delete().where(uid == uids[uid.name]))
    _note_items(execute, header)


def _fill(connection: Connection, tables: set[str]) -> None:
    """What an earlier version did not keep of what is held: names at once, items when there is time to read the objects."""
    if _person_name.name in tables:
        with driven(connection) as execute:
            for study in connection.execute(select(_study)).mappings().all():
                _note_names(execute, {keyword: str(value) for keyword, value in study.items()})
    if _unread.name in tables:
        first = select(func.min(_instance.c.SOPInstanceUID)).group_by(_instance.c.SeriesInstanceUID)
        segs = select(_instance.c.SOPInstanceUID).where(_instance.c.SOPClassUID.in_(SEGMENTATION_CLASSES))
        connection.execute(insert(_unread).from_select(["SOPInstanceUID"], first.union(segs)))


def _count(number_of_frames: str) -> int:
    """1 where there is none, or what is no number."""
    return max(1, int(number_of_frames)) if number_of_frames.isdecimal() else 1
