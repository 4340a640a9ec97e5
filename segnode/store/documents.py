"""Documents: the metadata of objects, made once and kept, large ones compressed; whatever is lost here is made again."""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from sqlalchemy import Column, Engine, Integer, LargeBinary, MetaData, String, Table, select
from sqlalchemy.dialects.sqlite import insert

from segnode.store.database import Driver, reading

# Another number has everything made anew.
FORMAT: Final = 3
# As many as one statement may have in every SQLite.
_MOST_VARIABLES: Final = 500
# A shorter one is kept as it is: that of an image is little beside its pixels, and a series has hundreds to be read at once.
_COMPRESSED_FROM: Final = 16 << 10
_JSON: Final = b"{"

_metadata = MetaData()
_document = Table(
    "document",
    _metadata,
    Column("object_key", String, primary_key=True),
    Column("format", Integer, primary_key=True),
    Column("text", LargeBinary, nullable=False),
)
_progress = Table("progress", _metadata, Column("format", Integer, primary_key=True), Column("number", Integer, nullable=False))
# One variable, however many keys.
_FIND: Final = "SELECT object_key, text FROM json_each(?) JOIN document ON object_key = value AND format = ?"
# What a join to the left is with comes in its order.
_IN_ORDER: Final = "SELECT text FROM json_each(?) LEFT JOIN document ON object_key = value AND format = ?"
_LACKING: Final = "SELECT value FROM json_each(?) LEFT JOIN document ON object_key = value AND format = ? WHERE format IS NULL"


class Documents:
    """Rows of what was made of objects, by their keys, in a database of their own."""

    def __init__(self, engine: Engine) -> None:
        self._writer = engine
        self._reader = reading(engine)
        self._rows = Driver(engine).rows
        _metadata.create_all(engine)

    def find(self, object_keys: Iterable[str]) -> Mapping[str, bytes]:
        """The documents of those of some objects that have one."""
        return {key: _made(text) for key, text in self._rows(_FIND, (json.dumps(list(object_keys)), FORMAT))}

    def first(self, object_keys: Sequence[str], size: int) -> list[bytes]:
        """The documents of the first of some objects, until they have so many bytes; empty where there is none."""
        found = list[bytes]()
        for (text,) in self._rows(_IN_ORDER, (json.dumps(object_keys), FORMAT)):
            found.append(_made(text or b""))
            size -= len(found[-1])
            if size <= 0:
                break
        return found

    def lacking(self, object_keys: Iterable[str]) -> set[str]:
        """The keys of those of some objects that have no document."""
        return {key for (key,) in self._rows(_LACKING, (json.dumps(list(object_keys)), FORMAT))}

    def add(self, documents: Mapping[str, bytes], progress: int | None = None) -> None:
        """Keep documents by the keys of their objects; and how far their making has come. Raises OutOfResources."""
        rows = [{"object_key": key, "format": FORMAT, "text": _kept(text)} for key, text in documents.items()]
        with self._writer.begin() as connection:
            if rows:
                connection.execute(insert(_document).on_conflict_do_nothing(), rows)
            if progress is not None:
                row = insert(_progress).values(format=FORMAT, number=progress)
                connection.execute(row.on_conflict_do_update(index_elements=["format"], set_={"number": progress}))

    def progress(self) -> int:
        """The number that was last given to `add`; 0 before."""
        with self._reader.connect() as connection:
            query = select(_progress.c.number).where(_progress.c.format == FORMAT)
            return connection.execute(query).scalar_one_or_none() or 0

    def on_shelf(self, shelf: int) -> list[str]:
        """The keys of documents whose objects are on a shelf (0 to 255)."""
        first = f"{shelf:02x}"
        query = select(_document.c.object_key).where(_document.c.object_key.between(first, first + "~")).distinct()
        with self._reader.connect() as connection:
            return list(connection.execute(query).scalars())

    def delete(self, object_keys: Iterable[str]) -> None:
        """Delete the documents of objects; it is no error when there are none."""
        keys = list(object_keys)
        for start in range(0, len(keys), _MOST_VARIABLES):
            with self._writer.begin() as connection:
                some = _document.c.object_key.in_(keys[start : start + _MOST_VARIABLES])
                connection.execute(_document.delete().where(some))


def _kept(text: bytes) -> bytes:
    """What is kept of a document; nothing that is compressed begins as JSON does."""
    return text if text.startswith(_JSON) and len(text) < _COMPRESSED_FROM else zlib.compress(text)


def _made(kept: bytes) -> bytes:
    return kept if not kept or kept.startswith(_JSON) else zlib.decompress(kept)
