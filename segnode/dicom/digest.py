"""The digest of a data set, by which an object is known again: BLAKE3, and SHA-256 of what was received by earlier versions.

What the sender's file meta information says of itself does not count.
"""

import hashlib
from pathlib import Path
from typing import BinaryIO, Final

from blake3 import blake3

from segnode.dicom.header import Header

# SHA-256 takes longer than all else that receiving does.
_BLAKE3: Final = "blake3:"
_BLOCK: Final = 1 << 20


class Digest:
    """The digest of bytes that come one after the other."""

    def __init__(self) -> None:
        self._hash = blake3()

    def update(self, block: bytes | memoryview) -> None:
        """Take more bytes."""
        self._hash.update(block)

    def text(self) -> str:
        """The digest of what came."""
        return _BLAKE3 + self._hash.hexdigest()


def data_set_digest(path: Path, header: Header, like: str = "") -> str:
    """The digest of the data set of a file, made as `like` was."""
    with path.open("rb", buffering=0) as file:
        file.seek(header.dataset_offset)
        if is_earlier(like):
            return hashlib.file_digest(file, "sha256").hexdigest()
        return digest_of(file)


def digest_of(file: BinaryIO) -> str:
    """The digest of what a file has from where it is read next."""
    digest = Digest()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.text()


def is_earlier(digest: str) -> bool:
    """Whether a digest is one that earlier versions made."""
    return bool(digest) and not digest.startswith(_BLAKE3)
