"""The DICOMweb resources as their OpenAPI document describes them: schemathesis asks by it, rightly and wrongly."""

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from openapi_spec_validator import validate
from pydicom.uid import ExplicitVRLittleEndian
from schemathesis import Case, SerializationContext
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from segnode.dicomweb.openapi import openapi_document
from segnode.testing.servers import Server, segnode
from tests.wire.test_frames import SERIES, STUDY, image, store

IMAGE = image("1.2.3.3", np.arange(4 * 16 * 16, dtype=np.uint16).reshape(4, 16, 16), bytes(4 * 16 * 16 * 2))
PATHS = {"study": STUDY, "series": SERIES, "instance": str(IMAGE.SOPInstanceUID), "frames": "2,1", "place": "7FE00010"}
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def held(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document, with paths of what the node holds beside those of what it does not."""
    paths = {
        path: {
            method: {**operation, "parameters": [known(each) for each in operation["parameters"]]}
            for method, operation in item.items()
        }
        for path, item in document["paths"].items()
    }
    return {**document, "paths": paths}


def known(parameter: Mapping[str, Any]) -> Mapping[str, Any]:
    """A parameter of a path, which may be what is held."""
    if parameter["in"] != "path":
        return parameter
    return {**parameter, "schema": {"type": "string", "enum": [PATHS[parameter["name"]], "1.2.9"]}}


@schemathesis.serializer("multipart/related", "application/dicom")
def as_it_is(_context: SerializationContext, value: Any) -> bytes:
    """A body, of which schemathesis knows no more than that it is bytes."""
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node that holds an image of four frames."""
    with segnode(tmp_path_factory.mktemp("node"), "models = []\nrules = []", roles=("web",)) as server:
        store(server, IMAGE, ExplicitVRLittleEndian)
        yield server


def test_document_describes_what_is_served(node: Server) -> None:
    """It is valid OpenAPI, can be had at the DICOMweb root, and has every resource and method, and no other."""
    document = httpx.get(f"{node.dicomweb}/openapi.json").json()
    assert document == openapi_document(deletes=False)
    validate(document)
    described = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    listed = httpx.options(f"{node.dicomweb}/").json()["application"]["resources"]["resource"]
    served = {(f"/{each['@path']}".replace(":path", ""), method["@name"]) for each in listed for method in each["method"]}
    assert described == {(path, method) for path, method in served if method not in ("HEAD", "OPTIONS")} - {
        ("/openapi.json", "GET")
    }


schema = schemathesis.openapi.from_dict(held(openapi_document(deletes=False)))


@schema.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_answers_are_as_described(case: Case, node: Server) -> None:
    """Whatever is asked, rightly or wrongly: a status and a media type of the document, and never a 500."""
    if case.media_type and case.media_type.startswith("multipart/related"):
        case.headers = {**(case.headers or {}), "Content-Type": f"{case.media_type}; boundary=b"}
    case.call_and_validate(base_url=node.dicomweb, checks=CHECKS)
