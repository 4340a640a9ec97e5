"""The index: one row for each study, series and instance that is held; columns are called as DICOM calls them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final, Literal

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Delete,
    Engine,
    Float,
    Integer,
    Row,
    Select,
    String,
    Table,
    Update,
    and_,
    exists,
    func,
    literal_column,
    select,
)
from sqlalchemy import Index as DatabaseIndex
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
from segnode.store.database import make_tables, reading
from segnode.store.leases import Lease, lease_ids
from segnode.store.search import Found, find
from segnode.store.tables import ITEMS_OF
from segnode.store.tables import instance as _instance
from segnode.store.tables import metadata as _metadata
from segnode.store.tables import person_name as _person_name
from segnode.store.tables import series as _series
from segnode.store.tables import study as _study
from segnode.store.tables import unread as _unread

# As many as one statement may have in every SQLite.
_MOST_VARIABLES: Final = 500

Origin = Literal["received", "made"]

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


@dataclass(frozen=True)
class Instance:
    """An object that is held: its identity, encoding and place."""

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

    def differs(self, transfer_syntax_uid: str, digest: str) -> bool:
        """Whether a data set is not this one; in another transfer syntax it is taken to be the same."""
        return self.transfer_syntax_uid == transfer_syntax_uid and self.digest != digest


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


class Index:
    """Rows of what is held, in a database that several processes read and write."""

    def __init__(self, engine: Engine) -> None:
        self._writer = engine
        self._reader = reading(engine)
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
        study = {"StudyInstanceUID": header.study_instance_uid, **_pick(header, STUDY_ATTRIBUTES)}
        series = {
            "SeriesInstanceUID": header.series_instance_uid,
            "StudyInstanceUID": header.study_instance_uid,
            "last_received_at": now,
            "considered_at": now if origin == "made" else 0.0,
            **_pick(header, SERIES_ATTRIBUTES),
        }
        instance = {
            "SOPInstanceUID": header.sop_instance_uid,
            "SeriesInstanceUID": header.series_instance_uid,
            "SOPClassUID": header.sop_class_uid,
            "transfer_syntax_uid": header.transfer_syntax_uid,
            "object_key": object_key,
            "size": size,
            "digest": digest,
            "origin": origin,
            "received_at": now,
            **_pick(header, INSTANCE_ATTRIBUTES),
        }
        with self._writer.begin() as connection:
            row = connection.execute(_row_of(header.sop_instance_uid)).first()
            other = row is not None and _as_instance(row).differs(header.transfer_syntax_uid, digest)
            if row is None:
                if connection.execute(insert(_study).values(study).on_conflict_do_nothing()).rowcount:
                    _note_names(connection, study)
                connection.execute(insert(_series).values(series).on_conflict_do_nothing())
                connection.execute(insert(_instance).values(instance))
                _note_items(connection, header)
            elif replace and other and row.origin == "received":
                connection.execute(_doomed.insert().values(object_key=row.object_key, doomed_at=now))
                connection.execute(_upsert(_study, study, STUDY_ATTRIBUTES))
                connection.execute(_upsert(_series, series, SERIES_ATTRIBUTES))
                connection.execute(_instance.update().where(_instance.c.object_key == row.object_key).values(instance))
                _note_anew(connection, header, study)
                if (row.StudyInstanceUID, row.SeriesInstanceUID) != (header.study_instance_uid, header.series_instance_uid):
                    _drop_empty(connection)
            held = _as_instance(connection.execute(_row_of(header.sop_instance_uid)).one())
            if held.object_key == object_key and origin == "received":
                connection.execute(_touch(header.series_instance_uid, now))
            if association is not None:
                _note_sending(connection, association, header.series_instance_uid)
            if sender is not None:
                sent = {"SeriesInstanceUID": header.series_instance_uid, **asdict(sender)}
                connection.execute(insert(_sender).values(sent).on_conflict_do_nothing())
            return held

    def find(self, sop_instance_uid: str) -> Instance | None:
        """The object of that UID, or None."""
        return next(iter(self._instances(_instance.c.SOPInstanceUID == sop_instance_uid)), None)

    def instances(self, study: str, series: str | None = None, instance: str | None = None) -> list[Instance]:
        """The objects of a study, of a series of it, or the one object; in the order they came."""
        asked = [_series.c.StudyInstanceUID == study]
        if series is not None:
            asked.append(_series.c.SeriesInstanceUID == series)
        if instance is not None:
            asked.append(_instance.c.SOPInstanceUID == instance)
        return self._instances(and_(*asked))

    def held_after(self, number: int, limit: int) -> list[tuple[int, Instance]]:
        """Objects that came after the one of that number, with their numbers, which grow; 0 is before the first."""
        numbered: ColumnElement[int] = literal_column("instance.rowid", Integer).label("number")
        query = _instance_rows().add_columns(numbered).where(numbered > number).order_by(numbered).limit(limit)
        with self._reader.connect() as connection:
            return [(row.number, _as_instance(row)) for row in connection.execute(query)]

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
            with self._writer.begin() as connection:
                _note_sending(connection, association, series)

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
        with self._reader.connect() as connection:
            return find(connection, query, keywords, limit, offset)

    def unread(self, limit: int) -> list[Instance]:
        """Some of the objects that were held before the index kept what is in their items."""
        listed = select(_unread.c.SOPInstanceUID).limit(limit)
        return self._instances(_instance.c.SOPInstanceUID.in_(listed))

    def set_read(self, sop_instance_uid: str, header: Header | None) -> None:
        """Keep what is in the items of an object that is held; nothing of one that cannot be read."""
        with self._writer.begin() as connection:
            mine = connection.execute(_unread.delete().where(_unread.c.SOPInstanceUID == sop_instance_uid))
            if mine.rowcount and header is not None:
                _note_items(connection, header)

    def _is_any_open(self, asked: ColumnElement[bool]) -> bool:
        with self._reader.connect() as connection:
            return connection.execute(select(_sending.c.association).where(asked)).first() is not None

    def _doom(self, asked: ColumnElement[bool]) -> None:
        with self._writer.begin() as connection:
            connection.execute(insert(_doomed).from_select(["object_key"], select(_instance.c.object_key).where(asked)))
            connection.execute(_instance.delete().where(asked))
            _drop_empty(connection)

    def _delete(self, statement: Delete) -> None:
        with self._writer.begin() as connection:
            connection.execute(statement)

    def _instances(self, asked: ColumnElement[bool]) -> list[Instance]:
        query = _instance_rows().where(asked).order_by(_instance.c.received_at, _instance.c.SOPInstanceUID)
        with self._reader.connect() as connection:
            return [_as_instance(row) for row in connection.execute(query)]


def _batched(values: Iterable[str], size: int) -> Iterator[list[str]]:
    """Values in lists of that length at most."""
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch


def _instance_rows() -> Select[Any]:
    return select(_series.c.StudyInstanceUID, _instance).join(_series)


def _row_of(sop_instance_uid: str) -> Select[Any]:
    return _instance_rows().where(_instance.c.SOPInstanceUID == sop_instance_uid)


def _note_sending(connection: Connection, association: OpenAssociation, series: str) -> None:
    row = {"association": association.name, "SeriesInstanceUID": series, "lease_id": association.lease_id}
    connection.execute(insert(_sending).values(row).on_conflict_do_nothing())
    brings = insert(_bringer).values(SeriesInstanceUID=series, association=association.name, ended_well=False)
    another = {"association": brings.excluded.association, "ended_well": False}
    is_another = _bringer.c.association != brings.excluded.association
    connection.execute(brings.on_conflict_do_update(index_elements=["SeriesInstanceUID"], set_=another, where=is_another))


def _drop_empty(connection: Connection) -> None:
    """Delete the rows of series and studies that hold nothing any more."""
    held = exists().where(_instance.c.SeriesInstanceUID == _series.c.SeriesInstanceUID)
    connection.execute(_series.delete().where(~held))
    kept = exists().where(_series.c.SeriesInstanceUID == _sender.c.SeriesInstanceUID)
    connection.execute(_sender.delete().where(~kept))
    held = exists().where(_series.c.SeriesInstanceUID == _bringer.c.SeriesInstanceUID)
    connection.execute(_bringer.delete().where(~held))
    held = exists().where(_series.c.StudyInstanceUID == _study.c.StudyInstanceUID)
    connection.execute(_study.delete().where(~held))


def _upsert(table: Table, row: Mapping[str, Any], keywords: Sequence[str]) -> Insert:
    changed = {keyword: row[keyword] for keyword in keywords}
    return insert(table).values(row).on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)


def _received() -> ColumnElement[bool]:
    return _instance.c.origin == "received"


def _touch(series: str, now: float) -> Update:
    update = _series.update().where(_series.c.SeriesInstanceUID == series)
    return update.values(last_received_at=func.max(_series.c.last_received_at, now))


def _pick(header: Header, keywords: Sequence[str]) -> dict[str, str]:
    return {keyword: header.attributes.get(keyword, "") for keyword in keywords}


def _columns(table: Table, keywords: Sequence[str]) -> list[Column[Any]]:
    return [table.c[keyword] for keyword in keywords]


def _note_items(connection: Connection, header: Header) -> None:
    """Keep what is indexed of an object's items; those of a series are those of its first object that has any."""
    uids = {"SeriesInstanceUID": header.series_instance_uid, "SOPInstanceUID": header.sop_instance_uid}
    for sequence, items in header.items.items():
        table = ITEMS_OF[sequence]
        uid = table.primary_key.columns[0].name
        rows = [
            {**{path: item.get(path, "") for path in ITEM_ATTRIBUTES[sequence]}, uid: uids[uid], "place": place}
            for place, item in enumerate(items)
        ]
        if rows:
            connection.execute(insert(table).on_conflict_do_nothing(), rows)


def _note_names(connection: Connection, study: Mapping[str, str]) -> None:
    for keyword in PERSON_NAMES:
        groups = [(False, place, group) for place, group in enumerate(name_groups(study[keyword])) if group]
        parts = [(True, 0, word) for word in words(study[keyword])]
        for is_word, place, text in (*groups, *parts):
            row = {"StudyInstanceUID": study["StudyInstanceUID"], "keyword": keyword, "is_word": is_word, "place": place}
            connection.execute(insert(_person_name).values(text=text, **row).on_conflict_do_nothing())


def _note_anew(connection: Connection, header: Header, study: Mapping[str, str]) -> None:
    """Keep the names and items of an object that took the place of another."""
    connection.execute(_person_name.delete().where(_person_name.c.StudyInstanceUID == study["StudyInstanceUID"]))
    _note_names(connection, study)
    for table in (_unread, *ITEMS_OF.values()):
        if "SOPInstanceUID" in table.c:
            connection.execute(table.delete().where(table.c.SOPInstanceUID == header.sop_instance_uid))
    _note_items(connection, header)


def _fill(connection: Connection, tables: set[str]) -> None:
    """What an earlier version did not keep of what is held: names at once, items when there is time to read the objects."""
    if _person_name.name in tables:
        for study in connection.execute(select(_study)).mappings().all():
            _note_names(connection, {keyword: str(value) for keyword, value in study.items()})
    if _unread.name in tables:
        first = select(func.min(_instance.c.SOPInstanceUID)).group_by(_instance.c.SeriesInstanceUID)
        segs = select(_instance.c.SOPInstanceUID).where(_instance.c.SOPClassUID.in_(SEGMENTATION_CLASSES))
        connection.execute(insert(_unread).from_select(["SOPInstanceUID"], first.union(segs)))


def _as_instance(row: Row[Any]) -> Instance:
    return Instance(
        study_instance_uid=row.StudyInstanceUID,
        series_instance_uid=row.SeriesInstanceUID,
        sop_instance_uid=row.SOPInstanceUID,
        sop_class_uid=row.SOPClassUID,
        transfer_syntax_uid=row.transfer_syntax_uid,
        object_key=row.object_key,
        size=row.size,
        digest=row.digest,
        origin=row.origin,
        received_at=row.received_at,
    )
