"""WADO-RS (PS3.18 10.4): what is held, as it is held or in explicit little endian, and its metadata."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydicom import dcmread
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian
from python_multipart.multipart import parse_options_header

from segnode.dicom.native import in_native
from segnode.dicom.uids import uid_name
from segnode.errors import NotAcceptable, UnreadablePixels
from segnode.store.index import Instance
from segnode.store.objects import ObjectStore

_ANY: Final = "*"
_BLOCK: Final = 1 << 18


@dataclass(frozen=True)
class Wanted:
    """What a client accepts of instances: one alone or in multipart/related, and in which transfer syntaxes."""

    multipart: bool
    transfer_syntaxes: Sequence[str]


def parse_accept(accept: str) -> Wanted:
    """What an Accept header asks for. Without one, and without a transfer syntax: multipart in explicit little endian.

    Raises NotAcceptable when it asks for nothing that instances are given as (PS3.18 8.7.3).
    """
    syntaxes: list[str] = []
    multipart: bool | None = None
    for media_range in (accept or "*/*").split(","):
        media_type, parameters = parse_options_header(media_range.strip())
        inner = parameters.get(b"type", b"application/dicom").lower()
        is_multipart = media_type in (b"multipart/related", b"multipart/*", b"*/*")
        is_single = media_type in (b"application/dicom", b"application/*")
        if is_single or (is_multipart and inner in (b"application/dicom", b"application/*", b"*/*")):
            multipart = is_multipart if multipart is None else multipart
            syntaxes.append(parameters.get(b"transfer-syntax", ExplicitVRLittleEndian.encode()).decode("latin-1"))
    if multipart is None:
        raise NotAcceptable('instances are given as multipart/related; type="application/dicom" or as application/dicom')
    return Wanted(multipart, syntaxes)


def instance_blocks(objects: ObjectStore, instance: Instance, wanted: Wanted) -> tuple[str, Iterator[bytes]]:
    """The transfer syntax that an instance is given in, and its Part 10 bytes. Raises NotAcceptable."""
    stored = instance.transfer_syntax_uid
    path = objects.path(instance.object_key)
    if _ANY in wanted.transfer_syntaxes or stored in wanted.transfer_syntaxes:
        return stored, _file_blocks(path)
    if ExplicitVRLittleEndian not in wanted.transfer_syntaxes or stored == ExplicitVRBigEndian:
        raise NotAcceptable(
            f"SOP instance {instance.sop_instance_uid} is held in {uid_name(stored)}: ask for transfer-syntax=*"
        )
    return str(ExplicitVRLittleEndian), iter([_explicit_little_endian(path, instance)])


def multipart_blocks(parts: Iterator[tuple[str, Iterator[bytes]]], boundary: str) -> Iterator[bytes]:
    """A multipart/related body of instances, each with its transfer syntax."""
    for transfer_syntax, blocks in parts:
        yield f"--{boundary}\r\nContent-Type: application/dicom; transfer-syntax={transfer_syntax}\r\n\r\n".encode()
        yield from blocks
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def instance_metadata(objects: ObjectStore, instance: Instance) -> dict[str, Any]:
    """The data set of an instance without its pixel data, as DICOM JSON."""
    dataset = dcmread(objects.path(instance.object_key), stop_before_pixels=True)
    document: dict[str, Any] = dataset.to_json_dict(suppress_invalid_tags=True)
    return document


def _file_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _explicit_little_endian(path: Path, instance: Instance) -> bytes:
    try:
        return in_native(path, ExplicitVRLittleEndian)
    except UnreadablePixels as error:
        stored = uid_name(instance.transfer_syntax_uid)
        what = f"SOP instance {instance.sop_instance_uid} is held in {stored} and cannot be given in another transfer syntax"
        raise NotAcceptable(f"{what}: ask for transfer-syntax=*") from error
