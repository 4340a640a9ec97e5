"""SQLite databases that lose nothing: write-ahead log, full synchronisation, writers in turn."""

import errno
import fcntl
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, ExceptionContext, MetaData, Table, create_engine, event, inspect
from sqlalchemy.schema import CreateColumn, CreateIndex

from segnode.errors import OutOfResources, Trouble

_BUSY_TIMEOUT_S: Final = 30
_READS: Final = "segnode_reads"
# Connections that are kept for the next who reads.
_MOST_IDLE: Final = 16
# A full disk has several faces; a database that stays locked is no room either.
_NO_ROOM: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY)


def open_database(path: Path) -> Engine:
    """An engine on the SQLite file, made where there is none.

    Transactions take the write lock at their start (BEGIN IMMEDIATE), so that two writers wait for each other instead
    of failing; `reading(engine)` takes no lock. What the disk does not take is raised as OutOfResources.
    """
    _use_write_ahead_log(path)
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    event.listen(engine, "handle_error", _on_error, retval=True)
    return engine


def make_tables(metadata: MetaData, engine: Engine, fill: Callable[[Connection, set[str]], None] = lambda *_: None) -> None:
    """Make the tables that are missing, and the columns, keys and indexes that an earlier version of segnode did not have.

    Such a column needs a default on the server (server_default): it is that of the rows that are there. `fill` gets the
    names of the tables that were missing, to commit with them what is to be in them.
    """
    with engine.begin() as connection:
        there_before = set(inspect(connection).get_table_names())
        metadata.create_all(connection)
        for table in metadata.tables.values():
            there = {column["name"] for column in inspect(connection).get_columns(table.name)}
            key = inspect(connection).get_pk_constraint(table.name)["constrained_columns"]
            if key != [column.name for column in table.primary_key.columns]:
                _make_anew(connection, table, there)
                continue
            for column in table.columns:
                if column.name not in there:
                    definition = CreateColumn(column).compile(dialect=engine.dialect)
                    connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")
            for index in table.indexes:
                connection.execute(CreateIndex(index, if_not_exists=True))
        fill(connection, {table.name for table in metadata.tables.values()} - there_before)


def _make_anew(connection: Connection, table: Table, there: Collection[str]) -> None:
    """Make a table again that has another key, with the rows that it has: SQLite changes no key in its place."""
    before = f"{table.name}_before"
    connection.exec_driver_sql(f"ALTER TABLE {table.name} RENAME TO {before}")
    for index in table.indexes:
        connection.exec_driver_sql(f"DROP INDEX IF EXISTS {index.name}")
    table.create(connection)
    names = ", ".join(column.name for column in table.columns if column.name in there)
    connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {before}")  # noqa: S608  names of ours
    connection.exec_driver_sql(f"DROP TABLE {before}")


def reading(engine: Engine) -> Engine:
    """The same engine for reading: each statement sees what is committed then, and takes no lock."""
    return engine.execution_options(**{_READS: True})


Written = TypeVar("Written")
Execute = Callable[[str, Mapping[str, Any] | Sequence[Any]], sqlite3.Cursor]


@contextmanager
def driven(connection: Connection) -> Iterator[Execute]:
    """The driver's own way to run a statement in a transaction, for what every object needs: SQLAlchemy's takes longer.

    What the disk does not take is raised as OutOfResources here too.
    """
    driver: Any = connection.connection.driver_connection
    with _no_room_said():
        yield driver.execute


@contextmanager
def _no_room_said() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if is_no_room(error):
            raise OutOfResources(f"a row cannot be written: {error}") from error
        raise


class Driver:
    """Reads and writes by SQLite's driver alone: SQLAlchemy takes longer to hand on a row than SQLite to find it.

    For any thread, several at a time. Who comes next has the connection that was used last, with what that has read.
    """

    def __init__(self, engine: Engine) -> None:
        self._path = str(engine.url.database)
        self._idle: list[sqlite3.Connection] = []

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> Iterator[Any]:
        """The rows of a statement, read as they are taken. Raises OutOfResources where the disk has no room for that.

        Each statement sees what is committed then, and takes no lock.
        """
        connection = self._take()
        try:
            with closing(connection.execute(statement, parameters)) as found:
                yield from found
        except sqlite3.Error as error:
            if is_no_room(error):
                raise _no_room(error) from error
            raise
        finally:
            self._give_back(connection)

    def write(self, work: Callable[[Execute], Written]) -> Written:
        """Do work in a transaction, with the lock from its start; what it returns. Raises OutOfResources."""
        connection = self._take()
        try:
            with _no_room_said():
                connection.execute("BEGIN IMMEDIATE")
                written = work(connection.execute)
                connection.execute("COMMIT")
        except BaseException:
            connection.close()  # which takes back what is not committed
            raise
        self._give_back(connection)
        return written

    def _take(self) -> sqlite3.Connection:
        try:
            return self._idle.pop()
        except IndexError:
            connection = sqlite3.connect(self._path, _BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            _on_connect(connection, None)
            return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()


def workflow_database(path: Path) -> str:
    """The URL of the workflow engine's own database, made in write-ahead mode; the engine sees to its transactions."""
    _use_write_ahead_log(path)
    return f"sqlite:///{path}"


def require_sound(path: Path) -> None:
    """Have SQLite check a database, which a node may be writing to, without changing it. Raises Trouble."""
    log = path.with_name(f"{path.name}-wal")
    # Without a log nobody has the database open; reading it would then leave a log behind, unless it is said not to change.
    untouched = not log.exists()
    uri = f"{path.absolute().as_uri()}?mode=ro" + ("&immutable=1" if untouched else "")
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            problem = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        raise Trouble(f"{path} cannot be read ({error}): become the user of the node; else the disk is in trouble") from error
    except sqlite3.DatabaseError as error:
        problem = str(error)
    if problem != "ok" and untouched and log.exists():  # a node has started meanwhile
        require_sound(path)
    elif problem != "ok":
        raise Trouble(f"{path}: {problem}: stop the node, keep a copy of its data folder, and restore it from a backup")


def is_no_room(error: BaseException | None) -> bool:
    """Whether an error, or what it comes from, is a disk that takes no more."""
    while error is not None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without its extension
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or code in _NO_ROOM or isinstance(error, OutOfResources):
            return True
        error = error.__cause__ or error.__context__
    return False


def _use_write_ahead_log(path: Path) -> None:
    """Put a database into write-ahead mode, which it keeps. SQLite does not wait for others while it changes: we do."""
    with path.with_name(f"{path.name}.lock").open("w") as lock, closing(sqlite3.connect(path)) as connection:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            connection.execute("PRAGMA journal_mode = WAL")


def _on_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: _on_begin does
    for pragma in ("synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: Any) -> None:
    if not connection.get_execution_options().get(_READS):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _on_error(context: ExceptionContext) -> OutOfResources | None:
    """A full disk is no room, whatever was being written; every other error stays what it is."""
    error = context.original_exception
    return _no_room(error) if is_no_room(error) else None


def _no_room(error: BaseException | None) -> OutOfResources:
    return OutOfResources(f"a row cannot be written: {error}")
