"""The STOW-RS client: sends SEGs to other people's archives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import chain
from ssl import SSLContext
from typing import Any, Final
from uuid import uuid4

import httpx

from segnode.config import FormName
from segnode.dicom.header import read_header
from segnode.dicom.status import require_stored
from segnode.errors import DeliveryDeferred, DeliveryRefused, FormRefused
from segnode.pipeline.ports import Segmentation, Sent

_REFERENCED, _FAILED, _OTHER = "00081199", "00081198", "0008119A"
_INSTANCE_UID, _REASON = "00081155", "00081197"
_REFUSED_FORM: Final = (400, 409, 415)
_FOUND: Final = (200, 204)
_FORBIDDEN: Final = (401, 403)
_PASSING: Final = (408, 425, 429)
_BLOCK: Final = 1 << 16
_TIMEOUT: Final = httpx.Timeout(120, connect=10)


@dataclass(frozen=True)
class StowDestination:
    """An archive that is reached by STOW-RS; `root` is its DICOMweb root."""

    root: str

    def send(self, segmentation: Segmentation, forms: Sequence[FormName]) -> Sent:
        """Post each form in turn until one is stored; see the port Destination."""
        refusals = []
        for name in forms:
            try:
                return Sent(name, self._post(segmentation.part10(name), segmentation.sop_instance_uid))
            except FormRefused as refusal:
                refusals.append(f"{name} {refusal}")
        raise DeliveryRefused(f"{self.root} refuses every form: {', '.join(refusals)}")

    def send_as_is(self, part10: bytes) -> str:
        """Post the object; see the port Destination."""
        try:
            return self._post(part10, read_header(BytesIO(part10)).sop_instance_uid)
        except FormRefused as refusal:
            raise DeliveryRefused(f"{self.root} refuses the object: {refusal}") from refusal

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
        body = chain([head], _blocks(part10), [tail])
        try:
            url = f"{self.root.rstrip('/')}/studies"
            response = httpx.post(url, content=body, headers=headers, timeout=_TIMEOUT, verify=_trusted())
        except httpx.TransportError as error:
            raise DeliveryDeferred(f"{self.root} cannot be reached, or broke off: {type(error).__name__}") from error
        return stored_answer(response, sop_instance_uid)


@cache
def _trusted() -> SSLContext:
    """The certificates that are trusted; reading them takes longer than sending a small object."""
    return httpx.create_ssl_context()


def ask(root: str, within: float) -> str:
    """Have a DICOMweb server answer a search for one study, within some seconds; what it answered.

    Raises DeliveryDeferred when it cannot be reached, DeliveryRefused when what answers serves us no DICOMweb.
    """
    search = f"{root.rstrip('/')}/studies?limit=1"
    try:
        # Its answer is left unread: it is about a patient.
        with httpx.stream("GET", search, headers={"Accept": "application/dicom+json"}, timeout=within) as response:
            answer = f"{root} answers a search with HTTP {response.status_code}"
            kind = response.headers.get("content-type", "")
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise DeliveryDeferred(
            f"{root} cannot be reached: {error}: see that it runs, and that the way to it is open"
        ) from error
    if response.status_code >= 500:
        raise DeliveryRefused(f"{answer}: its own log says why")
    if response.status_code in _FORBIDDEN:
        raise DeliveryRefused(f"{answer}: it does not let this node in")
    if response.status_code not in _FOUND or "html" in kind:
        raise DeliveryRefused(f"{answer} {kind}: see that this is the root of its DICOMweb")
    return answer


def _blocks(part10: bytes) -> Iterator[bytes]:
    for start in range(0, len(part10), _BLOCK):
        yield part10[start : start + _BLOCK]


def stored_answer(response: httpx.Response, sop_instance_uid: str) -> str:
    """What the archive said of the object: stored is only what it lists as stored, whatever the HTTP status."""
    document = _document(response)
    answer = f"HTTP {response.status_code}"
    if any(_first(item, _INSTANCE_UID) == sop_instance_uid for item in _items(document, _REFERENCED)):
        return answer
    for item in (*_items(document, _FAILED), *_items(document, _OTHER)):
        reason = _first(item, _REASON)
        if isinstance(reason, int):
            return require_stored(reason, f"{answer}, failure reason 0x{reason:04X}")
    if response.status_code in _REFUSED_FORM:
        raise FormRefused(answer)
    if response.status_code >= 500 or response.status_code in _PASSING:
        raise DeliveryDeferred(answer)
    if response.is_success:
        raise DeliveryDeferred(f"{answer}, but the object is not in the list of what was stored")
    raise DeliveryRefused(answer)


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
