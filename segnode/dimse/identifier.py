"""Identifiers of Query/Retrieve (PS3.4 C.4): what a request is about, by level and unique keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Literal

from pydicom import DataElement, Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from segnode.dicom.native import OF_BAD_OBJECTS
from segnode.dicom.query import Level as SearchLevel
from segnode.dicom.query import is_pattern
from segnode.dicom.uids import is_uid
from segnode.dimse.exchange import Exchange
from segnode.errors import BadQuery, BadRequest

Level = Literal["PATIENT", "STUDY", "SERIES", "IMAGE"]
UNIQUE_KEYS: Final[Mapping[Level, str]] = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
# How the index calls them, which knows no patients: theirs are those of studies.
SEARCHED: Final[Mapping[Level, SearchLevel]] = {
    "PATIENT": "studies",
    "STUDY": "studies",
    "SERIES": "series",
    "IMAGE": "instances",
}
_PATIENT_ROOT: Final[Sequence[Level]] = ("PATIENT", "STUDY", "SERIES", "IMAGE")
FIND_MODELS: Final[Mapping[str, Sequence[Level]]] = {
    str(PatientRootQueryRetrieveInformationModelFind): _PATIENT_ROOT,
    str(StudyRootQueryRetrieveInformationModelFind): _PATIENT_ROOT[1:],
}
MOVE_MODELS: Final[Mapping[str, Sequence[Level]]] = {
    str(PatientRootQueryRetrieveInformationModelMove): _PATIENT_ROOT,
    str(StudyRootQueryRetrieveInformationModelMove): _PATIENT_ROOT[1:],
}
GET_MODELS: Final[Mapping[str, Sequence[Level]]] = {
    str(PatientRootQueryRetrieveInformationModelGet): _PATIENT_ROOT,
    str(StudyRootQueryRetrieveInformationModelGet): _PATIENT_ROOT[1:],
}
_LEVELS_OF: Final = {**FIND_MODELS, **MOVE_MODELS, **GET_MODELS}


@dataclass(frozen=True)
class Identifier:
    """What a request asks: at which level, within which of the levels above, by their unique keys; and all of its keys."""

    level: Level
    within: Mapping[str, str]
    keys: Dataset


def read_identifier(exchange: Exchange) -> Identifier:
    """The identifier of a request. Raises BadQuery where its model has another hierarchy (PS3.4 C.4.1.2, C.4.2.2), BadRequest.

    Relational queries are not negotiated: of each level above one thing is named, by its unique key.
    """
    request = exchange.request
    encoded = request.Identifier.getvalue() if request.Identifier is not None else b""
    try:
        keys = read_dataset(BytesIO(encoded), exchange.is_implicit, is_little_endian=True)
    except OF_BAD_OBJECTS as error:
        raise BadRequest("the identifier is no data set in its transfer syntax") from error
    levels = _LEVELS_OF[str(request.AffectedSOPClassUID)]
    level = next((known for known in levels if known == text_of(keys, "QueryRetrieveLevel")), None)
    if level is None:
        raise BadQuery(f"QueryRetrieveLevel is one of {', '.join(levels)} here", "QueryRetrieveLevel")
    above = [UNIQUE_KEYS[each] for each in levels[: levels.index(level)]]
    within = {keyword: text_of(keys, keyword) for keyword in above}
    for keyword, value in within.items():
        if not value:
            raise BadQuery(f"{keyword} is required at {level} level: no relational queries", keyword)
        _require_single(keyword, value)
    return Identifier(level, within, keys)


def named(identifier: Identifier) -> Sequence[str]:
    """What is to be retrieved, by the unique key of the level: one, or several UIDs (PS3.4 C.4.2.2.1). Raises BadQuery."""
    keyword = UNIQUE_KEYS[identifier.level]
    text = text_of(identifier.keys, keyword)
    if not text:
        raise BadQuery(f"{keyword} is required at {identifier.level} level", keyword)
    values = text.split("\\") if keyword != "PatientID" else [text]
    for value in values:
        _require_single(keyword, value)
    return values


def text_of(keys: Dataset, keyword: str) -> str:
    """The text of a key; empty where it is not there. Raises BadRequest where it is no value of its VR."""
    try:
        return text(keys[keyword]) if keyword in keys else ""
    except OF_BAD_OBJECTS as error:
        raise BadRequest(f"{keyword} has a key that is no value of it") from error


def text(element: DataElement) -> str:
    """The text of an element: several values with backslashes between them, and none of what is binary."""
    value = element.value
    if isinstance(value, bytes):
        return ""
    several = value if isinstance(value, (MultiValue, list)) else [value]
    return "\\".join("" if each is None else str(each) for each in several).strip(" \0")


def _require_single(keyword: str, value: str) -> None:
    if keyword == "PatientID" and (is_pattern(value) or "\\" in value):
        raise BadQuery("PatientID is one value without wildcards here", keyword)
    if keyword != "PatientID" and not is_uid(value):
        raise BadQuery(f"{keyword} does not hold one UID", keyword)
