"""C-STORE by hand (PS3.7 9.3.1): requests and responses packed and read, and the file meta information of what comes.

A library takes a hundred times as long for these few bytes as for the object that they come with.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from segnode.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from segnode.dimse import messages
from segnode.errors import BrokeOff

_LONGEST_UID: Final = 64
_MEDIUM: Final = 0


@dataclass(frozen=True)
class StoreRequest:
    """The command of a C-STORE-RQ."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Answer:
    """What is answered to an object: a status, and of a refusal why, and the tag of the attribute that it is for."""

    status: int
    comment: str = ""
    offending: int | None = None


class Originator(NamedTuple):
    """The C-MOVE that an object is sent for: the AE title of who asked, and its message ID."""

    ae_title: str
    message_id: int


class StoreResponse(NamedTuple):
    """What a C-STORE was answered; `comment` is ErrorComment."""

    message_id: int
    status: int
    comment: str


def store_request(sop_class_uid: str, sop_instance_uid: str, message_id: int, originator: Originator | None = None) -> bytes:
    """The command set of a C-STORE-RQ."""
    elements: dict[int, messages.Value] = {
        messages.AFFECTED_SOP_CLASS_UID: sop_class_uid,
        messages.COMMAND_FIELD: messages.C_STORE_RQ,
        messages.MESSAGE_ID: message_id,
        messages.PRIORITY: _MEDIUM,
        messages.DATA_SET_TYPE: messages.DATA_SET,
        messages.AFFECTED_SOP_INSTANCE_UID: sop_instance_uid,
    }
    if originator is not None:
        elements |= {messages.ORIGINATOR: originator.ae_title, messages.ORIGINATOR_MESSAGE_ID: originator.message_id}
    return messages.command_set(elements)


def read_store_request(command: bytes) -> StoreRequest | None:
    """The C-STORE-RQ that a whole command set is; None where it is another message, or not written as usual."""
    try:
        found = messages.read_command_set(command)
        uids = [
            found[number].rstrip(b"\0 ").decode("ascii")
            for number in (messages.AFFECTED_SOP_CLASS_UID, messages.AFFECTED_SOP_INSTANCE_UID)
        ]
    except (KeyError, ValueError):
        return None
    field, message_id, data_set = (
        messages.number_in(found, number) for number in (messages.COMMAND_FIELD, messages.MESSAGE_ID, messages.DATA_SET_TYPE)
    )
    is_usual = message_id >= 0 and data_set not in (-1, messages.NO_DATA_SET) and max(map(len, uids)) <= _LONGEST_UID
    return StoreRequest(message_id, *uids) if field == messages.C_STORE_RQ and is_usual else None


def store_response(context_id: int, request: StoreRequest, answer: Answer) -> bytes:
    """The P-DATA-TF of a C-STORE-RSP."""
    elements: dict[int, messages.Value] = {
        messages.AFFECTED_SOP_CLASS_UID: request.sop_class_uid,
        messages.COMMAND_FIELD: messages.C_STORE_RQ | messages.RESPONSE,
        messages.MESSAGE_ID_BEING_RESPONDED_TO: request.message_id,
        messages.DATA_SET_TYPE: messages.NO_DATA_SET,
        messages.STATUS: answer.status,
        messages.AFFECTED_SOP_INSTANCE_UID: request.sop_instance_uid,
    }
    if answer.offending is not None:
        elements[messages.OFFENDING_ELEMENT] = answer.offending
    if answer.comment:
        elements[messages.ERROR_COMMENT] = answer.comment[: messages.LONGEST_COMMENT]
    command = messages.command_set(elements)
    return messages.pdus(context_id, command, len(command), is_command=True)


def read_store_response(command: bytes) -> StoreResponse | None:
    """What a command set says that is a C-STORE-RSP; None when it is something else. Raises BrokeOff when it is nothing."""
    try:
        found = messages.read_command_set(command)
    except ValueError as error:
        raise BrokeOff(f"what it answers is no command set (PS3.7 6.3): {error}") from error
    if messages.number_in(found, messages.COMMAND_FIELD) != messages.C_STORE_RQ | messages.RESPONSE:
        return None
    about, status, data_set = (
        messages.number_in(found, number)
        for number in (messages.MESSAGE_ID_BEING_RESPONDED_TO, messages.STATUS, messages.DATA_SET_TYPE)
    )
    if about < 0 or status < 0 or data_set not in (-1, messages.NO_DATA_SET):
        raise BrokeOff("the answer to C-STORE is not one (PS3.7 9.3.1.2)")
    return StoreResponse(about, status, found.get(messages.ERROR_COMMENT, b"").decode("latin-1").strip(" \0"))


def part10_start(request: StoreRequest, transfer_syntax: str) -> bytes:
    """Preamble and file meta information (PS3.10 7.1) of what a request brings."""
    meta = b"".join(
        (
            b"\2\0\1\0OB\0\0\2\0\0\0\0\1",
            _meta(0x0002, request.sop_class_uid),
            _meta(0x0003, request.sop_instance_uid),
            _meta_of_association(transfer_syntax),
        )
    )
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta


@lru_cache(maxsize=256)
def _meta_of_association(transfer_syntax: str) -> bytes:
    name = IMPLEMENTATION_VERSION_NAME.encode()
    version = struct.pack("<HH2sH", 2, 0x0013, b"SH", len(name) + len(name) % 2) + name + b" " * (len(name) % 2)
    return _meta(0x0010, transfer_syntax) + _meta(0x0012, str(IMPLEMENTATION_CLASS_UID)) + version


def _meta(number: int, uid: str) -> bytes:
    value = _uid(uid)
    return struct.pack("<HH2sH", 2, number, b"UI", len(value)) + value


def _uid(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)
