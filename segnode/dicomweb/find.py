"""The QIDO-RS and WADO-RS client: asks a DICOMweb server what it has, and for objects (PS3.18 10.6 and 10.4)."""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Final
from urllib.parse import quote

import httpx
from pydicom.datadict import tag_for_keyword

from segnode.dicomweb.client import place_of_part
from segnode.dicomweb.peer import DicomWebPeer
from segnode.errors import CannotReadBack, DeliveryDeferred, DeliveryFailed, FindFailed
from segnode.pipeline.ports import Level, Listed
from segnode.store.filesystem import room_for

_SERIES_UID, _COUNT, _INSTANCE_UID = "0020000E", "00201209", "00080018"
_ANSWER_S: Final = 10.0  # the sweep waits for it
_PAGE: Final = 200  # the most that some servers allow to be asked for
# Of each level the URL, of which the UIDs are keys, and what tells one match from another.
_LEVELS: Final[Mapping[Level, tuple[str, str]]] = {
    "STUDY": ("/studies", "StudyInstanceUID"),
    "SERIES": ("/studies/{StudyInstanceUID}/series", "SeriesInstanceUID"),
    "IMAGE": ("/studies/{StudyInstanceUID}/series/{SeriesInstanceUID}/instances", "SOPInstanceUID"),
}


@dataclass(frozen=True)
class DicomWebCatalogue:
    """A peer that is asked by QIDO-RS, and gives out by WADO-RS; to say how much it has it gets ten seconds at most."""

    peer: DicomWebPeer

    def count_instances(self, study_instance_uid: str, series_instance_uid: str) -> int:
        """What the peer says, or where that has no number its instances counted; see the port Catalogue."""
        path = f"/studies/{study_instance_uid}/series"
        with self.peer.within(_ANSWER_S).client() as client:
            keys = {"SeriesInstanceUID": series_instance_uid, "includefield": "NumberOfSeriesRelatedInstances"}
            found = [item for item in self._search(client, path, keys) if _value(item, _SERIES_UID) == series_instance_uid]
            if not found:
                return 0
            number = _value(found[0], _COUNT)
            if number is not None:
                return int(number)
            return len(self._all(client, f"{path}/{series_instance_uid}/instances", {}, _INSTANCE_UID))

    def find(self, level: Level, keys: Mapping[str, str]) -> list[Mapping[str, str]]:
        """Search by QIDO-RS; see the port Archive."""
        template, unique = _LEVELS[level]
        above = {keyword for keyword in keys if f"{{{keyword}}}" in template}
        asked = {keyword: value for keyword, value in keys.items() if keyword not in above}
        wanted = {keyword: value for keyword, value in asked.items() if value}
        fields = ",".join(asked)
        with self.peer.client() as client:
            found = self._all(client, template.format(**keys), {**wanted, "includefield": fields}, _tag(unique))
        return [{k: keys[k] if k in above else _text(_value(item, _tag(k))) for k in keys} for item in found]

    def fetch(self, listed: Listed) -> memoryview:
        """Fetch by WADO-RS, in the transfer syntax it is held in, into a file that is mapped; see the port Archive."""
        path = _LEVELS["IMAGE"][0].format(
            StudyInstanceUID=listed.study_instance_uid, SeriesInstanceUID=listed.series_instance_uid
        )
        with TemporaryFile() as file:
            kind = self._download(f"{path}/{listed.sop_instance_uid}", file)
            try:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:  # an empty file cannot be mapped
                raise CannotReadBack(f"{self.peer.root} lists it, and answers WADO-RS with nothing") from error
        return memoryview(content)[place_of_part(content, kind)]

    def _download(self, path: str, file: BinaryIO) -> str:
        """Write an answer to a file; its media type."""
        accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        try:
            with self.peer.client() as client, client.stream("GET", self.peer.url(path), headers=accept) as response:
                if not response.is_success:
                    raise CannotReadBack(f"{self.peer.root} lists it, and answers WADO-RS with HTTP {response.status_code}")
                with room_for("an object"):
                    file.writelines(response.iter_bytes())
                    file.flush()
                return str(response.headers.get("content-type", ""))
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise DeliveryDeferred(self.peer.trouble(error)) from error
        except httpx.DecodingError as error:
            raise CannotReadBack(f"{self.peer.root} answers WADO-RS with what cannot be decoded") from error

    def _all(self, client: httpx.Client, path: str, keys: Mapping[str, str], unique: str) -> list[dict[str, Any]]:
        """Matches, page by page; a server may give fewer at once than are asked for, or know no pages."""
        found: dict[str, dict[str, Any]] = {}
        while True:
            page = self._search(client, path, {**keys, "limit": str(_PAGE), "offset": str(len(found))})
            new = {uid: item for item in page if (uid := str(_value(item, unique))) not in found}
            if not new:
                return list(found.values())
            found |= new

    def _search(self, client: httpx.Client, path: str, keys: Mapping[str, str]) -> list[dict[str, Any]]:
        # Orthanc 1.10 does not find what has its wildcards percent-encoded, which they need not be (RFC 3986 3.4).
        query = "&".join(f"{key}={quote(value, safe='*?:@,;/')}" for key, value in keys.items())
        try:
            response = client.get(f"{self.peer.url(path)}?{query}")
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise FindFailed(self.peer.trouble(error)) from error
        except httpx.DecodingError as error:
            raise FindFailed(f"{self.peer.root} answers a search with what cannot be decoded") from error
        except DeliveryFailed as failure:  # no token is had for it
            raise FindFailed(str(failure)) from failure
        below_a_study = path.startswith("/studies/")
        if response.status_code == httpx.codes.NO_CONTENT or (response.status_code == httpx.codes.NOT_FOUND and below_a_study):
            return []
        try:
            found = response.json() if response.status_code == httpx.codes.OK else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list):
            raise FindFailed(f"{self.peer.root} answers a search with HTTP {response.status_code}, and no list of what it has")
        return [item for item in found if isinstance(item, dict)]


def _tag(keyword: str) -> str:
    return f"{tag_for_keyword(keyword):08X}"


def _value(item: dict[str, Any], tag: str) -> Any:
    """The first value of an attribute; None where there is none, or no DICOM JSON."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _text(value: Any) -> str:
    if isinstance(value, dict):  # a person's name
        value = next(iter(value.values()), None)
    return "" if value is None else str(value)
