"""The STOW-RS client: sends SEGs to other people's archives."""

import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from io import BytesIO
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO, Final
from uuid import uuid4

import httpx

from segnode.config import FormName
from segnode.dicom.header import read_file_meta
from segnode.dicom.status import meaning_of, require_stored
from segnode.dicomweb.peer import DicomWebPeer
from segnode.errors import (
    AlreadyThere,
    BrokeOff,
    CannotAsk,
    CannotReadBack,
    DeliveryDeferred,
    DeliveryFailed,
    DeliveryRefused,
    FormRefused,
    NotLetIn,
    Refusal,
)
from segnode.pipeline.ports import Encoded, Identified

_REFERENCED, _FAILED, _OTHER = "00081199", "00081198", "0008119A"
_INSTANCE_UID, _REASON, _WARNING = "00081155", "00081197", "00081196"
_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
# What an HTTP status means where no failure reason says more; 5xx but these passes, any other is for good.
_REFUSED_FORM: Final = (400, 409, 415)
_NEVER: Final = (501, 505)
_FOUND: Final = (200, 204)
_NOT_LET_IN: Final = (401, 403, 407)
_PASSING: Final = (408, 425, 429)
_GONE: Final = (404, 410)
# Of a request that many objects were in, and that says nothing of some of them: those are let in by themselves perhaps.
_REFUSED_TOGETHER: Final = (*_REFUSED_FORM, 413)
_BLOCK: Final = 1 << 16
_MOST_BYTES: Final = 64 << 20
# Of an answer that is no object: one to a hundred objects has some fifty thousand.
_LONGEST_ANSWER: Final = 16 << 20
_MOST_PARTS: Final = 100


@dataclass(frozen=True)
class StowDestination:
    """An archive that is reached by STOW-RS: by a connection for each request, or by those of a client that is open."""

    peer: DicomWebPeer
    client: httpx.Client | None = field(default=None, repr=False)

    @property
    def where(self) -> str:
        """Its root."""
        return self.peer.root

    @contextmanager
    def reach(self, _forms: Sequence[FormName]) -> Iterator["StowDestination"]:
        """Nothing is negotiated; see the port Destination."""
        yield self

    def accepts(self, _form: FormName) -> bool:
        """What it takes shows when it is sent."""
        return True

    def store(self, encoded: Encoded) -> str:
        """Send by STOW-RS; see the port Door."""
        return stored_answer(self._post([encoded.part10]), encoded.sop_instance_uid)

    def send_as_is(self, part10: bytes) -> str:
        """Post the object; see the port Destination."""
        try:
            return self.post(part10)
        except AlreadyThere as there:
            return str(there)
        except FormRefused as refusal:
            raise DeliveryRefused(f"{self.where} refuses the object: {refusal}") from refusal

    def _post(self, objects: Sequence[Path | bytes]) -> httpx.Response:
        """Post objects in one request. Raises BrokeOff, FormRefused where one cannot be read."""
        boundary = uuid4().hex
        body = _body(objects, boundary)
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
            # Orthanc 1.10 answers 200 and stores nothing when a part's type has parameters, or the body is chunked.
            "Content-Length": str(body.size),
        }
        return self._request("POST", "/studies", headers, body)

    @contextmanager
    def passage(self, _kinds: Collection[tuple[str, str]]) -> Iterator["StowPassage"]:
        """One connection for all, as long as the archive leaves it open; see the port Destination."""
        with self.peer.client() as client:
            yield StowPassage(replace(self, client=client))

    def post(self, part10: Path | bytes) -> str:
        """Post an object; what was answered. Raises what the port Passage does."""
        uid = _sop_instance_uid(part10)
        return stored_answer(self._post([part10]), uid)

    def post_together(self, files: Sequence[Path], uids: Sequence[str]) -> Iterator[str | DeliveryFailed]:
        """Post files of these SOP instances in one request; see the port Passage.

        What the answer does not tell of is posted again by itself, where that may help.
        """
        try:
            response = self._post(files)
        except (BrokeOff, FormRefused) as failure:
            yield from [failure] * len(files)
            return
        helps = response.is_success or response.status_code in _REFUSED_TOGETHER
        for file, uid in zip(files, uids, strict=True):
            try:
                alone = helps and len(files) > 1 and not _tells_of(response, uid)
                yield self.post(file) if alone else stored_answer(response, uid)
            except DeliveryFailed as failure:
                yield failure

    def held(self, wanted: Identified) -> bytes | None:
        """Search by QIDO-RS and fetch by WADO-RS; see the port Destination.

        Of an archive that answers no searches, or with no list, it is held where it should be, or nowhere.
        """
        uid = wanted.sop_instance_uid
        search = self._request("GET", f"/instances?SOPInstanceUID={uid}", {"Accept": "application/dicom+json"})
        listed = _list(search)
        place = (wanted.study_instance_uid, wanted.series_instance_uid)
        if listed is not None:
            # Some archives match less than they are asked for.
            matches = [item for item in listed if _first(item, _INSTANCE) == uid]
            if not matches:
                return None
            place = (_first(matches[0], _STUDY) or place[0], _first(matches[0], _SERIES) or place[1])
        url = f"/studies/{place[0]}/series/{place[1]}/instances/{uid}"
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        given = self._request("GET", url, {"Accept": accept}, longest=None)
        if given.is_success:
            return given.content[place_of_part(given.content, given.headers.get("content-type", ""))]
        answer = f"{self.where} answers WADO-RS with HTTP {given.status_code}"
        if listed is not None:
            raise CannotReadBack(answer)
        if given.status_code in _GONE:
            return None
        raise CannotAsk(f"{answer}, and a search with HTTP {search.status_code}")

    def _request(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: Iterable[bytes] | None = None,
        longest: int | None = _LONGEST_ANSWER,
    ) -> httpx.Response:
        """Its answer. Raises BrokeOff when there is none, DeliveryDeferred when it does not say what it holds (GET)."""
        url = self.peer.url(path)
        try:
            with (
                nullcontext(self.client) if self.client else self.peer.client() as client,
                client.stream(method, url, content=body, headers=headers) as response,
            ):
                status, content = response.status_code, self._read(response, longest)
                kind = [(name, value) for name, value in response.headers.raw if name.lower() == b"content-type"]
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise BrokeOff(self.peer.trouble(error)) from error
        if method == "GET" and _is_passing(status):
            raise DeliveryDeferred(f"{self.where} does not say what it holds: HTTP {status}")
        return httpx.Response(status, headers=kind, content=content)

    def _read(self, response: httpx.Response, longest: int | None) -> bytes:
        """All of an answer. Raises BrokeOff where it is longer, or comes so slowly that it does not end in time."""
        until, size, blocks = time.monotonic() + self.peer.timeout_s, 0, list[bytes]()
        for block in response.iter_bytes():
            blocks.append(block)
            size += len(block)
            if longest is not None and (size > longest or time.monotonic() > until):
                raise BrokeOff(f"{self.where} answers HTTP {response.status_code} with what does not end")
        return b"".join(blocks)


@dataclass(frozen=True)
class StowPassage:
    """An archive that objects are forwarded to."""

    destination: StowDestination

    def accepts(self, _sop_class_uid: str, _transfer_syntax_uid: str) -> bool:
        """What it takes shows when it is sent."""
        return True

    def store(self, part10: Path | bytes) -> str:
        """Send by STOW-RS; see the port Passage."""
        return self.destination.post(part10)

    def store_each(self, files: Sequence[Path]) -> Iterator[str | DeliveryFailed]:
        """Send small objects together; see the port Passage."""
        for together in _together(files):
            uids = []
            try:
                uids = [_sop_instance_uid(file) for file in together]
            except FormRefused:  # one of them: which one shows when each goes by itself
                for file in together:
                    yield self._stored_alone(file)
                continue
            for answer in self.destination.post_together(together, uids):
                yield answer
                if isinstance(answer, BrokeOff):
                    return

    def _stored_alone(self, file: Path) -> str | DeliveryFailed:
        try:
            return self.store(file)
        except DeliveryFailed as failure:
            return failure


def ask(peer: DicomWebPeer) -> str:
    """Have a DICOMweb server answer a search for one study; what it answered.

    Raises DeliveryDeferred when it cannot be reached, DeliveryRefused when what answers serves us no DICOMweb.
    """
    try:
        # Its answer is left unread: it is about a patient.
        with peer.client() as client, client.stream("GET", peer.url("/studies?limit=1")) as response:
            answer = f"{peer.root} answers a search with HTTP {response.status_code}"
            kind = response.headers.get("content-type", "")
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise DeliveryDeferred(peer.trouble(error)) from error
    if response.status_code in _NOT_LET_IN:
        raise DeliveryRefused(f"{answer}: it does not let this node in: {_key_to_look_at(peer, response.status_code)}")
    if response.is_redirect:
        raise DeliveryRefused(f"{answer}, which leads elsewhere, where nobody follows: give the root that it leads to")
    if response.status_code >= 500:
        raise DeliveryRefused(f"{answer}: its own log says why, or see that this is the root of its DICOMweb")
    if response.status_code not in _FOUND or "html" in kind:
        page = " and a page" if "html" in kind else ""
        raise DeliveryRefused(f"{answer}{page}: see that this is the root of its DICOMweb")
    return answer


def _key_to_look_at(peer: DicomWebPeer, status: int) -> str:
    if status == httpx.codes.PROXY_AUTHENTICATION_REQUIRED:
        return "it is the proxy that wants to know who asks"
    return "see `auth`, and what it is allowed there" if peer.auth else "give it `auth`"


@dataclass(frozen=True)
class _Body:
    """A message of these pieces, `size` bytes; it can be gone through again, as a request that is sent once more is."""

    pieces: Sequence[Path | bytes]
    size: int

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            yield from _blocks_of_file(piece) if isinstance(piece, Path) else _blocks(piece)


def _body(objects: Sequence[Path | bytes], boundary: str) -> _Body:
    """A multipart message with an object in each part. Raises FormRefused where one cannot be read."""
    pieces: list[Path | bytes] = []
    for each in objects:
        start = b"\r\n" if pieces else b""
        pieces += [start + f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(), each]
    pieces.append(f"\r\n--{boundary}--\r\n".encode())
    return _Body(pieces, sum(_size(piece) for piece in pieces))


def _blocks(piece: bytes) -> Iterator[bytes]:
    for start in range(0, len(piece), _BLOCK):
        yield piece[start : start + _BLOCK]


def _blocks_of_file(piece: Path) -> Iterator[bytes]:
    with _open(piece) as file:
        while block := file.read(_BLOCK):
            yield block


def _size(piece: Path | bytes) -> int:
    if isinstance(piece, bytes):
        return len(piece)
    try:
        return piece.stat().st_size
    except OSError as error:
        raise FormRefused(f"cannot be read: {error.strerror}") from error


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise FormRefused(f"cannot be read: {error.strerror}") from error


def _sop_instance_uid(part10: Path | bytes) -> str:
    """Of a Part 10 file. Raises FormRefused where it is none."""
    with BytesIO(part10) if isinstance(part10, bytes) else _open(part10) as file:
        try:
            return read_file_meta(file).sop_instance_uid
        except Refusal as refusal:
            raise FormRefused(f"cannot be sent as it is: {refusal}") from refusal


def _together(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Files in turn, as many at a time as go in one request."""
    together: list[Path] = []
    size = 0
    for file in files:
        more = file.stat().st_size if file.exists() else 0
        if together and (size + more > _MOST_BYTES or len(together) == _MOST_PARTS):
            yield together
            together, size = [], 0
        together.append(file)
        size += more
    if together:
        yield together


def _tells_of(response: httpx.Response, sop_instance_uid: str) -> bool:
    document = _document(response)
    listed = (item for tag in (_REFERENCED, _FAILED, _OTHER) for item in _items(document, tag))
    return any(_first(item, _INSTANCE_UID) == sop_instance_uid for item in listed)


def stored_answer(response: httpx.Response, sop_instance_uid: str) -> str:
    """What the archive said of the object: stored is only what it lists as stored, whatever the HTTP status."""
    document = _document(response)
    answer = f"HTTP {response.status_code}"
    failures = (*_items(document, _FAILED), *_items(document, _OTHER))
    for item in failures:
        reason = _first(item, _REASON)
        if isinstance(reason, int) and _first(item, _INSTANCE_UID) in (sop_instance_uid, None):
            _raise_failure(reason, f"{answer}, failure reason 0x{reason:04X}")
    has_failed = any(_first(item, _INSTANCE_UID) == sop_instance_uid for item in failures)
    for item in _items(document, _REFERENCED) if not has_failed else ():
        if _first(item, _INSTANCE_UID) == sop_instance_uid:
            warning = _first(item, _WARNING)
            answer += f", warning 0x{warning:04X}" if isinstance(warning, int) else ""
            if isinstance(warning, int) and meaning_of(warning) == "there":
                raise AlreadyThere(answer)
            return answer
    if response.status_code in _REFUSED_FORM:
        raise FormRefused(answer)
    if response.status_code in _NOT_LET_IN:
        raise NotLetIn(answer)
    if _is_passing(response.status_code):
        raise DeliveryDeferred(answer)
    if response.is_success:
        raise DeliveryDeferred(f"{answer}, but the object is not in the list of what was stored")
    raise DeliveryRefused(answer)


def _is_passing(status: int) -> bool:
    return (status >= 500 and status not in _NEVER) or status in _PASSING


def _raise_failure(reason: int, answer: str) -> None:
    """A failure is one, also when its reason is a status that means success or a warning elsewhere."""
    if meaning_of(reason) == "stored":
        raise DeliveryRefused(answer)
    require_stored(reason, answer)


def place_of_part(content: bytes | mmap, kind: str) -> slice:
    """Where the object is in an answer of that media type: its only part, or all of it; nowhere where no part ends."""
    boundary = re.search(r'boundary="?([^";,]+)"?', kind)
    if "multipart" not in kind or boundary is None:
        return slice(0, len(content))
    delimiter = b"--" + boundary[1].encode()
    start = content.find(b"\r\n\r\n", max(content.find(delimiter), 0)) + 4
    return slice(start, max(content.rfind(b"\r\n" + delimiter), start))


def _list(response: httpx.Response) -> list[Any] | None:
    """What a search has found; None where the answer says nothing of that."""
    if response.status_code not in _FOUND:
        return None
    found = _json(response) if response.content else []
    return found if isinstance(found, list) else None


def _document(response: httpx.Response) -> Any:
    document = _json(response)
    return document[0] if isinstance(document, list) and len(document) == 1 else document


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _items(document: Any, tag: str) -> list[Any]:
    """The values of an attribute; none where there are none, or it is no DICOM JSON."""
    element = document.get(tag) if isinstance(document, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _first(item: Any, tag: str) -> Any:
    return next(iter(_items(item, tag)), None)
