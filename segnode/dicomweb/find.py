"""The QIDO-RS client: asks a DICOMweb server how many instances of a series it has (PS3.18 10.6)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from segnode.dicomweb.peer import DicomWebPeer
from segnode.errors import DeliveryFailed, FindFailed

_SERIES_UID, _COUNT, _INSTANCE_UID = "0020000E", "00201209", "00080018"
_ANSWER_S: Final = 10.0
_PAGE: Final = 1000


@dataclass(frozen=True)
class DicomWebCatalogue:
    """A peer that is asked by QIDO-RS; it has ten seconds for an answer at most, because the sweep waits for it."""

    peer: DicomWebPeer

    def count_instances(self, study_instance_uid: str, series_instance_uid: str) -> int:
        """What the peer says, or where that has no number its instances counted; see the port Catalogue."""
        url = self.peer.url(f"/studies/{study_instance_uid}/series")
        with self.peer.within(_ANSWER_S).client() as client:
            keys = {"SeriesInstanceUID": series_instance_uid, "includefield": "NumberOfSeriesRelatedInstances"}
            found = [item for item in self._search(client, url, keys) if _value(item, _SERIES_UID) == series_instance_uid]
            if not found:
                return 0
            number = _value(found[0], _COUNT)
            return int(number) if number is not None else self._count(client, f"{url}/{series_instance_uid}/instances")

    def _count(self, client: httpx.Client, url: str) -> int:
        """Instances, page by page; a server may give fewer at once than are asked for, or know no pages."""
        counted: set[str] = set()
        while True:
            page = self._search(client, url, {"limit": _PAGE, "offset": len(counted)})
            new = {str(_value(item, _INSTANCE_UID)) for item in page} - counted
            if not new:
                return len(counted)
            counted |= new

    def _search(self, client: httpx.Client, url: str, keys: Mapping[str, str | int]) -> list[dict[str, Any]]:
        try:
            response = client.get(url, params=keys)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise FindFailed(self.peer.trouble(error)) from error
        except DeliveryFailed as failure:  # no token is had for it
            raise FindFailed(str(failure)) from failure
        if response.status_code == httpx.codes.NO_CONTENT:
            return []
        try:
            found = response.json() if response.status_code == httpx.codes.OK else None
        except ValueError:
            found = None
        if not isinstance(found, list):
            raise FindFailed(f"{self.peer.root} answers a search with HTTP {response.status_code}, and no list of what it has")
        return [item for item in found if isinstance(item, dict)]


def _value(item: dict[str, Any], tag: str) -> Any:
    return (item.get(tag, {}).get("Value") or [None])[0]
