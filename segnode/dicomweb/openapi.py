"""The DICOMweb resources as an OpenAPI 3.1 document: what programs that test or call a server by its description read."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from segnode.dicomweb.media_types import DICOM, JSON, OCTETS, XML

_Schema = Mapping[str, Any]

_RELATED: Final = "multipart/related"
_STUDY, _SERIES = "/studies/{study}", "/studies/{study}/series/{series}"
_INSTANCE: Final = f"{_SERIES}/instances/{{instance}}"
_UID: Final = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)*$", "maxLength": 64}
_DATA_SETS: Final = {"type": "array", "items": {"type": "object"}}
_BYTES: Final = {"type": "string", "format": "binary"}
_TEXT: Final = {"text/plain": {"schema": {"type": "string"}}}
_ERRORS: Final = {
    400: "The request is wrong; the text says where.",
    401: "No key or token that is taken is shown.",
    403: "That key or token does not open this.",
    404: "Nothing is held under that URL.",
    406: "It cannot be had as that; the text says as what.",
    408: "The sender was silent for too long.",
    409: "A job needs it; the text says which.",
    413: "It is larger, or is more, than is taken or given at once.",
    415: "That is not taken.",
    416: "It has none of the bytes of that range.",
    421: "The node is not called by that name.",
    503: "There is no room now: ask again later.",
}


def openapi_document(*, deletes: bool) -> _Schema:
    """The OpenAPI description of what is under the DICOMweb root; `deletes` where it is let delete."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "segnode DICOMweb",
            "version": version("segnode"),
            "description": "STOW-RS, QIDO-RS and WADO-RS as in PS3.18.",
        },
        "servers": [{"url": "/dicom-web"}],
        "paths": _paths(deletes=deletes),
    }


def _paths(*, deletes: bool) -> dict[str, dict[str, _Schema]]:
    paths: dict[str, dict[str, _Schema]] = {}
    for path in ("/studies", _STUDY):
        paths.setdefault(path, {})["post"] = _operation(path, "Store objects", [], _stored(), _body())
    searched = ("/studies", "/series", "/instances", f"{_STUDY}/series", f"{_STUDY}/instances", f"{_SERIES}/instances")
    for path in searched:
        found = {
            "200": _answer("What matches.", _METADATA),
            "204": {"description": "Nothing matches."},
            **_errors(400, 404, 406, 503),
        }
        paths.setdefault(path, {})["get"] = _operation(path, "Search", [*_SEARCH_PARAMETERS, _ACCEPT], found)
    for path, summary, media_types, parameters in _RETRIEVED:
        given = {
            "200": _answer("What is asked for.", media_types),
            "206": _answer("What can be given of it; the Warning names what is left out.", media_types),
            "304": {"description": "It is what the client has."},
            **_errors(400, 404, 406, 413, 503),
        }
        if path == _VALUE:
            given |= _errors(416)
        paths.setdefault(path, {})["get"] = _operation(path, summary, [_ACCEPT, *parameters], given)
    for path in _LEVELS if deletes else ():
        gone = {"204": {"description": "It is deleted."}, **_errors(404, 409)}
        paths[path]["delete"] = _operation(path, "Delete objects", [], gone)
    return paths


_LEVELS: Final = (_STUDY, _SERIES, _INSTANCE)
_FRAMES: Final = f"{_INSTANCE}/frames/{{frames}}"
_VALUE: Final = f"{_INSTANCE}/bulkdata/{{place}}"
_OBJECTS: Final = {_RELATED: _BYTES, DICOM: _BYTES}
_METADATA: Final = {JSON: _DATA_SETS, _RELATED: _BYTES}
_VALUES: Final = {_RELATED: _BYTES, OCTETS: _BYTES, "image/*": _BYTES}
_PICTURES: Final = {_RELATED: _BYTES, "image/jpeg": _BYTES, "image/png": _BYTES, "image/gif": _BYTES}


def _parameter(where: str, name: str, schema: _Schema, description: str) -> _Schema:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": description}


_IN_PATHS: Final = {
    "study": _parameter("path", "study", _UID, "A Study Instance UID."),
    "series": _parameter("path", "series", _UID, "A Series Instance UID."),
    "instance": _parameter("path", "instance", _UID, "A SOP Instance UID."),
    "frames": _parameter(
        "path",
        "frames",
        {"type": "string", "pattern": r"^[1-9][0-9]*(,[1-9][0-9]*)*$"},
        "Frame numbers from 1 on, with commas.",
    ),
    "place": _parameter(
        "path",
        "place",
        {"type": "string", "pattern": "^[0-9A-F]{8}(/[0-9]+/[0-9A-F]{8})*$"},
        "Tags, and items between them from 0 on.",
    ),
}
_ACCEPT: Final = _parameter("query", "accept", {"type": "string"}, "Media types; they outrank those of the header Accept.")
_WHOLE: Final = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
_FLAG: Final = {"type": "string", "enum": ["true", "false"]}
_SEARCH_PARAMETERS: Final = [
    _parameter("query", "limit", _WHOLE, "At most so many."),
    _parameter("query", "offset", _WHOLE, "Leave out so many of the first."),
    _parameter("query", "fuzzymatching", _FLAG, "Names match in any order of their words, and without their accents."),
    _parameter("query", "includefield", {"type": "string"}, "Attributes by keyword or tag, with commas; or all."),
    _parameter("query", "PatientID", {"type": "string"}, "Any attribute may be a key so, by keyword or tag."),
    _parameter(
        "query", "StudyDate", {"type": "string", "pattern": "^([0-9]{8})?-?([0-9]{8})?$"}, "A date or a range of dates."
    ),
]


_VIEWPORT: Final = _parameter("query", "viewport", {"type": "string"}, "vw,vh or vw,vh,sx,sy,sw,sh (PS3.18 8.3.5.1.3).")
_RENDERING: Final = [
    _parameter("query", "window", {"type": "string"}, "center,width,function (PS3.18 8.3.5.1.4)."),
    _VIEWPORT,
    _parameter("query", "quality", {"type": "integer", "minimum": 1, "maximum": 100}, "Of JPEG."),
    _parameter("query", "overlay", {"type": "string", "enum": ["source"]}, "A SEG over the image that it was drawn on."),
]
_RETRIEVED: Final[Sequence[tuple[str, str, _Schema, Sequence[_Schema]]]] = (
    *((path, "Retrieve objects", _OBJECTS, ()) for path in _LEVELS),
    *((f"{path}/metadata", "Retrieve metadata", _METADATA, ()) for path in _LEVELS),
    *((f"{path}/bulkdata", "Retrieve all bulk data", _VALUES, ()) for path in _LEVELS),
    *((f"{path}/pixeldata", "Retrieve pixel data", _VALUES, ()) for path in _LEVELS),
    *((f"{path}/rendered", "Retrieve pictures", _PICTURES, _RENDERING) for path in (*_LEVELS, _FRAMES)),
    *((f"{path}/thumbnail", "Retrieve a small picture", _PICTURES, [_VIEWPORT]) for path in (*_LEVELS, _FRAMES)),
    (_FRAMES, "Retrieve frames", _VALUES, ()),
    (_VALUE, "Retrieve a value", _VALUES, ()),
)


def _operation(
    path: str, summary: str, parameters: Sequence[_Schema], responses: _Schema, body: _Schema | None = None
) -> _Schema:
    in_path = [parameter for name, parameter in _IN_PATHS.items() if f"{{{name}}}" in path]
    operation = {"summary": summary, "parameters": [*in_path, *parameters], "responses": responses}
    return operation if body is None else {**operation, "requestBody": body}


def _body() -> _Schema:
    media_types = (f'{_RELATED}; type="{DICOM}"', f'{_RELATED}; type="{JSON}"', f'{_RELATED}; type="{XML}"', DICOM)
    return {"required": True, "content": {media_type: {"schema": _BYTES} for media_type in media_types}}


def _stored() -> _Schema:
    told = {JSON: {"type": "object"}, XML: {"type": "string"}}
    answers = {200: "All objects are held.", 202: "Some objects are held.", 409: "No object is held."}
    errors = _errors(400, 404, 406, 408, 413, 415, 503)
    return {**{str(status): _answer(why, told) for status, why in answers.items()}, **errors}


def _answer(description: str, media_types: _Schema) -> _Schema:
    return {"description": description, "content": {name: {"schema": schema} for name, schema in media_types.items()}}


def _errors(*statuses: int) -> dict[str, _Schema]:
    return {str(status): {"description": _ERRORS[status], "content": _TEXT} for status in (*statuses, 401, 403, 421)}
