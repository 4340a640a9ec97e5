"""Requests without Accept, where the configuration is strict about them, and where it is not."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from segnode.testing.part10 import encode_part10
from segnode.testing.servers import Server, segnode
from tests.wire.test_storage import small, stow

OBJECT = "/studies/1.2.3/series/1.2.3.5/instances/1.2.51.1"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node that is strict, and holds an object."""
    tables = "models = []\nrules = []\n[web]\nstrict_accept = true\n"
    with segnode(tmp_path_factory.mktemp("strict"), tables, roles=("web",)) as node:
        assert stow(node, encode_part10(small("1.2.51.1"), ExplicitVRLittleEndian)).status_code == 200
        yield node


def silent(method: str, url: str, **more) -> httpx.Response:
    """A request without Accept, which httpx adds by itself."""
    with httpx.Client() as client:
        del client.headers["Accept"]
        return client.request(method, url, **more)


@pytest.mark.parametrize("path", ["/studies", OBJECT, f"{OBJECT}/metadata"])
def test_a_request_that_says_nothing_is_not_acceptable(strict: Server, path: str) -> None:
    """406 without Accept; with */*, or with the query parameter, the resource."""
    assert silent("GET", strict.dicomweb + path).status_code == 406
    assert httpx.get(strict.dicomweb + path).status_code == 200
    assert silent("GET", strict.dicomweb + path, params={"accept": "*/*"}).status_code == 200


def test_storing_answers_too(strict: Server) -> None:
    """STOW-RS without Accept is 406, and nothing of it is held."""
    data = encode_part10(small("1.2.51.2"), ExplicitVRLittleEndian)
    answer = silent("POST", f"{strict.dicomweb}/studies", content=data, headers={"Content-Type": "application/dicom"})
    assert answer.status_code == 406
    assert httpx.get(f"{strict.dicomweb}/instances", params={"SOPInstanceUID": "1.2.51.2"}).status_code == 204


def test_what_has_one_form_is_not_asked_for_one(strict: Server) -> None:
    """OPTIONS, methods that are not served, and what is no DICOMweb are answered as ever."""
    assert silent("OPTIONS", f"{strict.dicomweb}/").status_code == 200
    assert silent("DELETE", strict.dicomweb + OBJECT).status_code == 405
    assert silent("GET", strict.dicomweb.replace("/dicom-web", "/health/live")).status_code == 200


def test_the_default_is_lenient(tmp_path: Path) -> None:
    """Without the key a request without Accept gets the default of the resource."""
    with segnode(tmp_path, "models = []\nrules = []", roles=("web",)) as node:
        assert silent("GET", f"{node.dicomweb}/studies").status_code == 204
