"""The STOW-RS client: sends SEGs to other people's archives."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from mmap import mmap
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx

from segnode.config import FormName
from segnode.dicom.header import read_header
from segnode.dicom.status import meaning_of, require_stored
from segnode.dicomweb.peer import DicomWebPeer
from segnode.errors import AlreadyThere, CannotAsk, CannotReadBack, DeliveryDeferred, DeliveryRefused, FormRefused, NotLetIn
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
_BLOCK: Final = 1 << 16


@dataclass(frozen=True)
class StowDestination:
    """An archive that is reached by STOW-RS."""

    peer: DicomWebPeer

    @property
    def where(self) -> str:
        """Its root."""
        return self.peer.root

    @contextmanager
    def reach(self, _forms: Sequence[FormName]) -> Iterator["StowDestination"]:
        """Every request is a connection of its own, and nothing is negotiated; see the port Destination."""
        yield self

    def accepts(self, _form: FormName) -> bool:
        """What it takes shows when it is sent."""
        return True

    def store(self, encoded: Encoded) -> str:
        """Send by STOW-RS; see the port Door."""
        return self._post(encoded.part10, encoded.sop_instance_uid)

    def send_as_is(self, part10: bytes) -> str:
        """Post the object; see the port Destination."""
        try:
            return self.post(part10)
        except AlreadyThere as there:
            return str(there)
        except FormRefused as refusal:
            raise DeliveryRefused(f"{self.where} refuses the object: {refusal}") from refusal

    def _post(self, part10: bytes, sop_instance_uid: str) -> str:
        boundary = uuid4().hex
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
        }
        # Orthanc 1.10 answers 200 and stores nothing when a part's type has parameters, or the body is chunked.
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers["Content-Length"] = str(len(head) + len(part10) + len(tail))
        response = self._request("POST", "/studies", headers, _Body(head, part10, tail))
        return stored_answer(response, sop_instance_uid)

    @contextmanager
    def passage(self, _kinds: Collection[tuple[str, str]]) -> Iterator["StowPassage"]:
        """As reach; see the port Destination."""
        yield StowPassage(self)

    def post(self, part10: bytes) -> str:
        """Post an object; what was answered. Raises what the port Passage does."""
        return self._post(part10, read_header(BytesIO(part10)).sop_instance_uid)

    def held(self, wanted: Identified) -> bytes | None:
        """Search by QIDO-RS and fetch by WADO-RS; see the port Destination.

        Of an archive that answers no searches it is held where it should be, or nowhere.
        """
        uid = wanted.sop_instance_uid
        search = self._request("GET", f"/instances?SOPInstanceUID={uid}", {"Accept": "application/dicom+json"})
        known = search.status_code in _FOUND
        place = (wanted.study_instance_uid, wanted.series_instance_uid)
        if known:
            # Some archives match less than they are asked for.
            matches = [item for item in _list(search) if _first(item, _INSTANCE) == uid]
            if not matches:
                return None
            place = (_first(matches[0], _STUDY) or place[0], _first(matches[0], _SERIES) or place[1])
        url = f"/studies/{place[0]}/series/{place[1]}/instances/{uid}"
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        given = self._request("GET", url, {"Accept": accept})
        if given.is_success:
            return given.content[place_of_part(given.content, given.headers.get("content-type", ""))]
        answer = f"{self.where} answers WADO-RS with HTTP {given.status_code}"
        if known:
            raise CannotReadBack(answer)
        if given.status_code in _GONE:
            return None
        raise CannotAsk(f"{answer}, and a search with HTTP {search.status_code}")

    def _request(self, method: str, path: str, headers: dict[str, str], body: Iterable[bytes] | None = None) -> httpx.Response:
        """Its answer. Raises DeliveryDeferred when it cannot be reached, or does not say now what it holds (GET)."""
        try:
            with self.peer.client() as client:
                response = client.request(method, self.peer.url(path), content=body, headers=headers)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise DeliveryDeferred(self.peer.trouble(error)) from error
        if method == "GET" and _is_passing(response.status_code):
            raise DeliveryDeferred(f"{self.where} does not say what it holds: HTTP {response.status_code}")
        return response


@dataclass(frozen=True)
class StowPassage:
    """An archive that objects are forwarded to."""

    destination: StowDestination

    def accepts(self, _sop_class_uid: str, _transfer_syntax_uid: str) -> bool:
        """What it takes shows when it is sent."""
        return True

    def store(self, part10: Path | bytes) -> str:
        """Send by STOW-RS; see the port Passage."""
        return self.destination.post(part10 if isinstance(part10, bytes) else part10.read_bytes())


def ask(peer: DicomWebPeer) -> str:
    """Have a DICOMweb server answer a search for one study; what it answered.

    Raises DeliveryDeferred when it cannot be reached, DeliveryRefused when what answers serves us no DICOMweb.
    """
    try:
        # Its answer is left unread: it is about a patient.
        with peer.client() as client, client.stream("GET", peer.url("/studies?limit=1")) as response:
            answer = f"{peer.root} answers a search with HTTP {response.status_code}"
            kind = response.headers.get("content-type", "")
    except (httpx.TransportError, httpx.InvalidURL) as error:
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
    """A multipart message of one part; it can be gone through again, as a request that is sent once more is."""

    head: bytes
    part10: bytes
    tail: bytes

    def __iter__(self) -> Iterator[bytes]:
        yield self.head
        for start in range(0, len(self.part10), _BLOCK):
            yield self.part10[start : start + _BLOCK]
        yield self.tail


def stored_answer(response: httpx.Response, sop_instance_uid: str) -> str:
    """What the archive said of the object: stored is only what it lists as stored, whatever the HTTP status."""
    document = _document(response)
    answer = f"HTTP {response.status_code}"
    for item in (*_items(document, _FAILED), *_items(document, _OTHER)):
        reason = _first(item, _REASON)
        if isinstance(reason, int) and _first(item, _INSTANCE_UID) in (sop_instance_uid, None):
            _raise_failure(reason, f"{answer}, failure reason 0x{reason:04X}")
    for item in _items(document, _REFERENCED):
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


def _list(response: httpx.Response) -> list[dict[str, Any]]:
    try:
        found = response.json() if response.content else []
    except ValueError:
        return []
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        return {}
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    return document if isinstance(document, dict) else {}


def _items(document: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    items = document.get(tag, {}).get("Value") or []
    return [item for item in items if isinstance(item, dict)]


def _first(item: dict[str, Any], tag: str) -> Any:
    return (item.get(tag, {}).get("Value") or [None])[0]
