"""The HTTP API as documents: what goes in and comes out, and an OpenAPI 3.1 description made of the same types."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from segnode.pipeline.job_document import JobDocument
from segnode.pipeline.replay import Replayed
from segnode.store.jobs import State


class JobQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which jobs are listed."""

    state: Annotated[State, Meta(description="Only jobs in this state.")] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000, description="At most so many.")] = 100
    offset: Annotated[int, Meta(ge=0, le=1_000_000_000, description="Leave out so many of the newest.")] = 0


class ReplayRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which series is replayed; a dry run writes nothing."""

    series: Annotated[str, Meta(description="SeriesInstanceUID of images that are held.")]
    dry_run: bool = False


class ErrorDocument(msgspec.Struct, frozen=True):
    """Why a request was not done."""

    error: str


_Schema = Mapping[str, Any]

_NO_JOB: Final = {404: "No job has an id that begins like that, or more than one has."}
_NO_JSON: Final = {415: "The request does not say Content-Type: application/json."}
_UNFORESEEN: Final = {500: "Unforeseen: the node's log has the details; or a label dictionary cannot be read."}
_NOT_LET_IN: Final = {
    401: "No key or token was shown, or one that is not valid.",
    403: "The key or token lacks the scope: dicom.read to read, dicom.write to steer.",
    421: "A node that asks nobody who they are answers to names of loopback only.",
    503: "The issuer of tokens does not say with which keys it signs.",
}
_JOB_ID: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "The id of a job, or the beginning of it.",
    "schema": {"type": "string", "minLength": 1},
}
_ANY_BODY: Final = {
    "description": "Nothing is read of a body, but the header Content-Type: application/json must be there.",
    "content": {"application/json": {"schema": {"type": "object"}}},
}


def openapi_document() -> Mapping[str, Any]:
    """The OpenAPI description of what is under /api."""
    types = (JobDocument, list[JobDocument], list[Replayed], ReplayRequest, ErrorDocument)
    (job, jobs, replayed, asked, _), schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "segnode",
            "version": version("segnode"),
            "description": "What a node has decided to do, how far it is, and how it is steered.",
        },
        "servers": [{"url": "/api"}],
        "paths": {
            "/jobs": {"get": _list(jobs)},
            "/jobs/replay": {"post": _replay(asked, replayed)},
            "/jobs/{id}": {"get": _show(job)},
            "/jobs/{id}/retry": {"post": _retry(job)},
            "/jobs/{id}/release": {"post": _release(job)},
            "/jobs/{id}/cancel": {"post": _cancel(job)},
        },
        # A node may be set up to ask for neither.
        "security": [{"bearer": []}, {}],
        "components": {"schemas": schemas, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }


def _list(jobs: _Schema) -> _Schema:
    return {
        "operationId": "listJobs",
        "summary": "List jobs, newest first",
        "description": "The first page is what goes on now. Jobs that are made while page after page is read move the others "
        "on: one may then be listed twice, and none is left out.",
        "parameters": _query_parameters(),
        "responses": _answers(jobs, {400: "A parameter is wrong or unknown."}),
    }


def _replay(asked: _Schema, replayed: _Schema) -> _Schema:
    return {
        "operationId": "replaySeries",
        "summary": "Ask every rule about a series now, however long ago its images came",
        "description": "One answer for each rule that selects the series. The worker takes up a job that is made; one that "
        "exists stays as it is.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
        "responses": _answers(
            replayed,
            {
                400: "The body is wrong.",
                404: "No images of that series are held.",
                413: "The body is larger than any that is right.",
                **_NO_JSON,
            },
        ),
    }


def _show(job: _Schema) -> _Schema:
    return {
        "operationId": "showJob",
        "summary": "Show a job",
        "parameters": [_JOB_ID],
        "responses": _answers(job, _NO_JOB),
    }


def _retry(job: _Schema) -> _Schema:
    return {
        "operationId": "retryJob",
        "summary": "Have a failed or cancelled job done again",
        "description": "Its result is made anew where there is none, else the deliveries that failed are attempted again.",
        "parameters": [_JOB_ID],
        "requestBody": _ANY_BODY,
        "responses": _answers(job, {**_NO_JOB, 409: "The job has not failed.", **_NO_JSON}),
    }


def _release(job: _Schema) -> _Schema:
    return {
        "operationId": "releaseJob",
        "summary": "Have the result of a job that is held go its way as it is",
        "description": "It was held for a person to look at; its note says why.",
        "parameters": [_JOB_ID],
        "requestBody": _ANY_BODY,
        "responses": _answers(job, {**_NO_JOB, 409: "The job is not held.", **_NO_JSON}),
    }


def _cancel(job: _Schema) -> _Schema:
    return {
        "operationId": "cancelJob",
        "summary": "Have a job that goes on end here",
        "description": "What is not delivered yet is not delivered.",
        "parameters": [_JOB_ID],
        "requestBody": _ANY_BODY,
        "responses": _answers(job, {**_NO_JOB, 409: "The job has ended.", **_NO_JSON}),
    }


def _answers(schema: _Schema, errors: Mapping[int, str]) -> _Schema:
    error = {"$ref": f"#/components/schemas/{ErrorDocument.__name__}"}
    explained = {str(status): _answer(why, error) for status, why in {**errors, **_NOT_LET_IN, **_UNFORESEEN}.items()}
    return {"200": _answer("Done.", schema), **explained}


def _answer(description: str, schema: _Schema) -> _Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _query_parameters() -> Sequence[_Schema]:
    properties = msgspec.json.schema_components([JobQuery])[1][JobQuery.__name__]["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]
