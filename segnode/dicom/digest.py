"""The digest of a data set, by which an object is known again: BLAKE3, and SHA-256 of what was received by earlier versions.

What the sender's file meta information says of itself does not count.
"""

import hashlib
from typing import BinaryIO, Final

from blake3 import blake3

from segnode.dicom.header import Header

# SHA-256 takes longer than all else that receiving does.
_BLAKE3: Final = "blake3:"
_BLOCK: Final = 1 << 20
# Of a file, to the end of the length of its file meta information.
_HEAD: Final = 144


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


class DataSetDigest:
    """The digest of the data set of a Part 10 file that comes in blocks.

    `offset` is where that begins as the file meta information has it (PS3.10 7.1), when that has come: what has another one
    in the end has another digest too.
    """

    def __init__(self) -> None:
        self.offset = 0
        self._head = b""
        self._seen = 0
        self._digest = Digest()

    def update(self, block: bytes | memoryview) -> None:
        """Take more of the file."""
        if not self.offset:
            self._head += block[: _HEAD - len(self._head)]
            if len(self._head) == _HEAD:
                self.offset = _HEAD + int.from_bytes(self._head[-4:], "little")
        if self.offset:
            self._digest.update(memoryview(block)[max(self.offset - self._seen, 0) :])
        self._seen += len(block)

    def text(self) -> str:
        """The digest of what came of the data set."""
        return self._digest.text()


def data_set_digest(file: BinaryIO, header: Header, like: str = "") -> str:
    """The digest of the data set of a Part 10 file that is open for reading, made as `like` was."""
    file.seek(header.dataset_offset)
    if is_earlier(like):
        earlier = hashlib.sha256()
        while block := file.read(_BLOCK):
            earlier.update(block)
        return earlier.hexdigest()
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
