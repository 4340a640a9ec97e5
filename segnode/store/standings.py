"""How destinations stand: what each took last, how it answered, and whether it is paused or down."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Boolean, Column, Engine, Float, Integer, MetaData, String, Table, select
from sqlalchemy.dialects.sqlite import insert

from segnode.store.database import reading

_DOWN_AFTER: Final = 5

_metadata = MetaData()
_standing = Table(
    "standing",
    _metadata,
    Column("name", String, primary_key=True),
    Column("form", String, nullable=False, default=""),
    Column("learned_at", Float, nullable=False, default=0.0),
    Column("learned_of", String, nullable=False, default=""),
    Column("failures", Integer, nullable=False, default=0),
    Column("last_answer", String, nullable=False, default=""),
    Column("answered_at", Float, nullable=False, default=0.0),
    Column("is_paused", Boolean, nullable=False, default=False),
)


@dataclass(frozen=True)
class Standing:
    """How a destination stands.

    `form` is what it took at `learned_at` of what it was offered (`learned_of`); `failures` counts the attempts that were
    deferred since it last answered for good; `last_answer` came at `answered_at`.
    """

    name: str
    form: str = ""
    learned_at: float = 0.0
    learned_of: str = ""
    failures: int = 0
    last_answer: str = ""
    answered_at: float = 0.0
    is_paused: bool = False

    @property
    def is_down(self) -> bool:
        """Whether so many attempts in a row were deferred that only one is made from time to time."""
        return self.failures >= _DOWN_AFTER


class Standings:
    """The rows of destinations, in the pipeline's database."""

    def __init__(self, engine: Engine) -> None:
        self._writer = engine
        self._reader = reading(engine)
        _metadata.create_all(engine)

    def of(self, name: str) -> Standing:
        """How a destination stands."""
        return self.all().get(name, Standing(name))

    def all(self) -> Mapping[str, Standing]:
        """How every destination stands that was tried or paused, by its name."""
        with self._reader.connect() as connection:
            return {row["name"]: Standing(**row) for row in connection.execute(select(_standing)).mappings()}

    def answered(self, name: str, answer: str, now: float) -> None:
        """A destination has answered an attempt for good: it is not down."""
        self._set(name, {"failures": 0, "last_answer": answer, "answered_at": now})

    def failed(self, name: str, answer: str, now: float) -> None:
        """An attempt was deferred."""
        self._set(name, {"failures": 1, "last_answer": answer, "answered_at": now}, failures=_standing.c.failures + 1)

    def learn(self, name: str, form: str, learned_of: str, now: float) -> None:
        """A destination took this form of what it was offered."""
        self._set(name, {"form": form, "learned_of": learned_of, "learned_at": now})

    def forget(self, name: str) -> None:
        """Have it learned anew what a destination takes."""
        self._set(name, {"form": "", "learned_of": "", "learned_at": 0.0})

    def pause(self, name: str) -> None:
        """Have nothing more sent to a destination."""
        self._set(name, {"is_paused": True})

    def resume(self, name: str) -> None:
        """Go on with a destination, as with one that has not failed."""
        self._set(name, {"is_paused": False, "failures": 0})

    def _set(self, name: str, values: Mapping[str, Any], **where_there: Any) -> None:
        row = insert(_standing).values(name=name, **values)
        with self._writer.begin() as connection:
            connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={**values, **where_there}))
