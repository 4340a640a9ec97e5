"""Answers of several objects, of which one cannot be given: the others are, and the answer says so (PS3.18 table 10.4.3-1)."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from starlette.responses import Response

from segnode.errors import NotAcceptable, NotFound, SegnodeError

_Asked = TypeVar("_Asked")
_Made = TypeVar("_Made")
# A header has no room for more.
_MOST_NAMED: Final = 20


class LeftOut:
    """The objects that an answer leaves out. Once it has begun none is left out any more: then it breaks off."""

    def __init__(self) -> None:
        self._uids: dict[str, SegnodeError] = {}
        self._has_begun = False

    def some(self, asked: Iterable[_Asked], make: Callable[[_Asked], _Made], uid: Callable[[_Asked], str]) -> Iterator[_Made]:
        """What is made of each, where it can be made. Raises NotFound, NotAcceptable when the answer has begun."""
        for each in asked:
            try:
                made = make(each)
            except (NotAcceptable, NotFound) as error:
                if self._has_begun:
                    raise
                self._uids[uid(each)] = error
            else:
                yield made

    def each(self, asked: Iterable[_Asked], make: Callable[[_Asked], _Made], uid: Callable[[_Asked], str]) -> Iterator[_Made]:
        """As some(); raises why, at the end, where nothing could be made."""
        is_any = False
        for made in self.some(asked, make, uid):
            is_any = True
            yield made
        if not is_any:
            self.explain()

    def explain(self) -> None:
        """Raise why something is left out, where anything is."""
        if self._uids:
            raise next(iter(self._uids.values()))

    @property
    def is_any(self) -> bool:
        """Whether any is left out."""
        return bool(self._uids)

    def begin(self, response: Response, root: str) -> Response:
        """The answer, as it begins: of some objects only, it is 206 and names the others."""
        self._has_begun = True
        if self._uids:
            named = ", ".join([*self._uids][:_MOST_NAMED]) + (", ..." if len(self._uids) > _MOST_NAMED else "")
            response.status_code = 206
            text = f"{len(self._uids)} SOP instances cannot be given as asked, and are left out: {named}"
            response.headers["Warning"] = f"299 {root}: {text}"
        return response
