"""Documents: the metadata of objects, made once and kept compressed; whatever is lost here is made again."""

import zlib
from collections.abc import Iterable, Mapping
from typing import Final

from sqlalchemy import Column, Engine, Integer, LargeBinary, MetaData, String, Table, select
from sqlalchemy.dialects.sqlite import insert

from segnode.store.database import reading

# Another number has everything made anew.
FORMAT: Final = 1
# As many as one statement may have in every SQLite.
_MOST_VARIABLES: Final = 500

_metadata = MetaData()
_document = Table(
    "document",
    _metadata,
    Column("object_key", String, primary_key=True),
    Column("format", Integer, primary_key=True),
    Column("text", LargeBinary, nullable=False),
)
_progress = Table("progress", _metadata, Column("format", Integer, primary_key=True), Column("number", Integer, nullable=False))


class Documents:
    """Rows of what was made of objects, by their keys, in a database of their own."""

    def __init__(self, engine: Engine) -> None:
        self._writer = engine
        self._reader = reading(engine)
        _metadata.create_all(engine)

    def find(self, object_keys: Iterable[str]) -> Mapping[str, bytes]:
        """The documents of those of some objects that have one."""
        keys, found = list(object_keys), dict[str, bytes]()
        with self._reader.connect() as connection:
            for start in range(0, len(keys), _MOST_VARIABLES):
                some = _document.c.object_key.in_(keys[start : start + _MOST_VARIABLES])
                rows = connection.execute(select(_document).where(some, _document.c.format == FORMAT))
                found |= {row.object_key: zlib.decompress(row.text) for row in rows}
        return found

    def add(self, documents: Mapping[str, bytes], progress: int | None = None) -> None:
        """Keep documents by the keys of their objects; and how far their making has come. Raises OutOfResources."""
        rows = [{"object_key": key, "format": FORMAT, "text": zlib.compress(text)} for key, text in documents.items()]
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
