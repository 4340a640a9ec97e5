"""The manifest of a training set: what is in it, under which pseudonyms, and by which its images are found again.

The pseudonym of a series is a keyed SHA-256 over its UID and those of all its images: whoever holds the images finds them
again, and nobody else learns anything. The key is made for each set, so that two sets cannot be laid beside each other.
"""

import hashlib
import platform
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec

from segnode.datasets.classes import Class, Classes
from segnode.dicom.digest import digest_of
from segnode.errors import BadDataset

MANIFEST_FILE: Final = "manifest.json"
_REVISION: Final = 1
_LIBRARIES: Final = ("nibabel", "pynrrd", "scipy", "h5py", "pyarrow", "numpy", "pydicom")


class Entry(msgspec.Struct, frozen=True):
    """An image series of a set.

    `series` and `segmentations` are pseudonyms; `values` the classes that its labels tell apart, None where it has no labels;
    `shape` is (slices, rows, columns), `affine` maps (slice, row, column) to LPS mm; `files` are digests by path.
    `written_as` is the SeriesInstanceUID that DICOM files of the set have in place of the series' own.
    """

    id: str
    patient: int
    scan: int
    series: str
    segmentations: tuple[str, ...]
    split: str
    fold: int | None
    values: tuple[int, ...] | None
    shape: tuple[int, ...] = ()
    affine: tuple[tuple[float, ...], ...] = ()
    files: dict[str, str] = {}
    identity: dict[str, str] | None = None
    written_as: str = ""


class Manifest(msgspec.Struct, frozen=True):
    """What a training set says of itself; `deidentification` names what was done, and is empty where identities are kept."""

    format: str
    key: str
    classes: tuple[Class, ...]
    entries: tuple[Entry, ...]
    options: dict[str, str]
    deidentification: tuple[str, ...]
    software: dict[str, str]
    revision: int = _REVISION

    def asks_the_same(self, other: "Manifest") -> bool:
        """Whether both come of the same images, labels and wishes, whatever wrote them when."""
        return _request(self) == _request(other)


def _request(manifest: Manifest) -> object:
    entries = [msgspec.structs.replace(entry, shape=(), affine=(), files={}) for entry in manifest.entries]
    return manifest.format, manifest.key, manifest.classes, entries, manifest.options, manifest.deidentification


def pseudonym(key: str, *uids: str | Iterable[str]) -> str:
    """The name of a series or a segmentation in a set with this key."""
    parts = [uid if isinstance(uid, str) else "\\".join(sorted(uid)) for uid in uids]
    return hashlib.sha256("\n".join((key, *parts)).encode()).hexdigest()[:40]


def file_digest(file: Path) -> str:
    """The digest of a file."""
    with file.open("rb", buffering=0) as opened:
        return digest_of(opened)


def software() -> Mapping[str, str]:
    """What writes a set: segnode, Python and the libraries that are there, with their versions."""
    found = {"segnode": version("segnode"), "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def manifest_of(path: Path) -> Manifest | None:
    """The manifest of a set, a folder or a zip; None where it has none. Raises BadDataset."""
    try:
        if path.is_dir():
            written = (path / MANIFEST_FILE).read_bytes()
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                written = archive.read(MANIFEST_FILE)
        else:
            return None
        manifest = msgspec.json.decode(written, type=Manifest)
    except (FileNotFoundError, KeyError):
        return None
    except (OSError, zipfile.BadZipFile, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadDataset(f"{MANIFEST_FILE} of {path} is no manifest of a training set: {error}") from error
    if manifest.revision != _REVISION:
        raise BadDataset(f"{MANIFEST_FILE} of {path} is of revision {manifest.revision}, and this segnode reads {_REVISION}")
    return manifest


def encoded(manifest: Manifest) -> bytes:
    """The manifest as JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1)


def classes_in(manifest: Manifest) -> Classes:
    """The label dictionary of a manifest."""
    return Classes(manifest.classes)
