"""Where images and segmentations come from, and labels find their images: a folder, or an archive that is searched."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Protocol

from segnode.dicom.attributes import SERIES_ATTRIBUTES, STUDY_ATTRIBUTES
from segnode.dicom.header import read_header
from segnode.dicom.matching import matches
from segnode.dicom.uids import SEGMENTATION_CLASSES, is_uid
from segnode.errors import BadDataset, ConfigError, FindFailed, Refusal
from segnode.pipeline.ports import Archive, Level, Listed

# What an archive lists that has no pixels of a patient (PS3.3 C.7.3.1.1.1); a folder's files are looked into.
_NO_IMAGES: Final = frozenset(
    ("SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "DOC", "ECG", "EPS", "HD", "REG", "FID", "PLAN", "AU", "M3D")
)
_STUDY_KEYS: Final = ("StudyInstanceUID", *STUDY_ATTRIBUTES)
_SERIES_KEYS: Final = ("SeriesInstanceUID", *SERIES_ATTRIBUTES)
_SAID: Final = ("PatientID", "IssuerOfPatientID", "StudyDate")


@dataclass(frozen=True)
class Series:
    """A series that a source has: who it is of and when, by keyword, and its instances, with their files where there are."""

    study_instance_uid: str
    series_instance_uid: str
    modality: str
    said: Mapping[str, str]
    instances: tuple[Listed, ...]
    files: tuple[Path, ...] = ()

    @property
    def is_segmentation(self) -> bool:
        """Whether it holds segmentations."""
        return self.modality == "SEG" or any(each.sop_class_uid in SEGMENTATION_CLASSES for each in self.instances)

    @property
    def patient(self) -> str:
        """What tells its patient from others; without a PatientID the study does."""
        identity = "\\".join((self.said.get("PatientID", ""), self.said.get("IssuerOfPatientID", "")))
        return identity if identity.strip("\\ ") else self.study_instance_uid

    @property
    def sop_instance_uids(self) -> tuple[str, ...]:
        """Those of its instances, sorted."""
        return tuple(sorted(each.sop_instance_uid for each in self.instances))


@dataclass(frozen=True)
class Wanted:
    """What is asked for, by keyword: of studies, and of image series."""

    study: Mapping[str, str]
    series: Mapping[str, str]


class Source(Protocol):
    """What has series."""

    def series(self, wanted: Wanted) -> Sequence[Series]:
        """All series of images and segmentations that match. Raises FindFailed, BadDataset."""
        ...

    @contextmanager
    def files(self, series: Series) -> Iterator[Sequence[Path]]:
        """The files of a series, which are there as long as the block lasts. Raises CannotReadBack, DeliveryDeferred."""
        ...


def wanted_of(study: str | None, pairs: Iterable[str]) -> Wanted:
    """What --study and KEYWORD=VALUE pairs ask for. Raises ConfigError."""
    of_study: dict[str, str] = {"StudyInstanceUID": study} if study else {}
    of_series: dict[str, str] = {}
    for pair in pairs:
        keyword, equals, value = pair.partition("=")
        if not equals or keyword not in (*_STUDY_KEYS, *_SERIES_KEYS):
            raise ConfigError(f"--query {pair}: KEYWORD=VALUE, of {', '.join((*_STUDY_KEYS, *_SERIES_KEYS))}")
        (of_study if keyword in _STUDY_KEYS else of_series)[keyword] = value
    return Wanted(of_study, of_series)


@dataclass(frozen=True)
class FolderSource:
    """The DICOM files in a folder and those below; other files are passed over."""

    folder: Path

    def series(self, wanted: Wanted) -> list[Series]:
        """See Source."""
        if not self.folder.is_dir():
            raise BadDataset(f"{self.folder} is no folder")
        found: dict[str, dict[str, tuple[Listed, Path]]] = defaultdict(dict)
        said: dict[str, Mapping[str, str]] = {}
        for file in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            try:
                with file.open("rb") as opened:
                    header = read_header(opened)
            except (Refusal, OSError):
                continue
            attributes = {
                **header.attributes,
                "StudyInstanceUID": header.study_instance_uid,
                "SeriesInstanceUID": header.series_instance_uid,
            }
            if "Rows" not in attributes or not _matches(wanted.study, attributes):
                continue
            is_segmentation = header.sop_class_uid in SEGMENTATION_CLASSES
            if not is_segmentation and not _matches(wanted.series, attributes):
                continue
            uids = (header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)
            found[header.series_instance_uid].setdefault(header.sop_instance_uid, (Listed(*uids, header.sop_class_uid), file))
            said.setdefault(header.series_instance_uid, attributes)
        return [_series(uid, said[uid], [*instances.values()]) for uid, instances in sorted(found.items())]

    @contextmanager
    def files(self, series: Series) -> Iterator[Sequence[Path]]:
        """See Source."""
        yield series.files


def _series(uid: str, said: Mapping[str, str], instances: Sequence[tuple[Listed, Path]]) -> Series:
    listed, files = zip(*instances, strict=True)
    kept = {keyword: said.get(keyword, "") for keyword in _SAID}
    return Series(said["StudyInstanceUID"], uid, said.get("Modality", ""), kept, listed, files)


def _matches(wanted: Mapping[str, str], said: Mapping[str, str]) -> bool:
    return all(_is_match(value, said.get(keyword, "")) for keyword, value in wanted.items())


def _is_match(asked: str, value: str) -> bool:
    """As an archive matches: dates and times in ranges too (PS3.4 C.2.2.2.5)."""
    first, dash, last = asked.partition("-")
    if dash and (first or "0").isdigit() and (last or "0").isdigit():
        return bool(value) and (not first or value >= first) and (not last or value[: len(last)] <= last)
    return matches(asked, value)


@dataclass(frozen=True)
class ArchiveSource:
    """An archive that is searched, and gives out what it holds, into a temporary folder."""

    archive: Archive

    def series(self, wanted: Wanted) -> list[Series]:
        """See Source."""
        found: list[Series] = []
        keys = {"StudyInstanceUID": "", **dict.fromkeys(_SAID, ""), **wanted.study}
        for study in self._find("STUDY", keys, "StudyInstanceUID"):
            uid = study["StudyInstanceUID"]
            every = self._find(
                "SERIES", {"StudyInstanceUID": uid, "SeriesInstanceUID": "", "Modality": ""}, "SeriesInstanceUID"
            )
            asked = {"StudyInstanceUID": uid, "SeriesInstanceUID": "", "Modality": "", **wanted.series}
            images = self._find("SERIES", asked, "SeriesInstanceUID") if wanted.series else every
            chosen = [each for each in every if each["Modality"] == "SEG"]
            chosen += [each for each in images if each["Modality"] not in (*_NO_IMAGES, "SEG")]
            found += [self._listed(study, each) for each in chosen]
        return sorted(found, key=lambda series: series.series_instance_uid)

    def _listed(self, study: Mapping[str, str], series: Mapping[str, str]) -> Series:
        uids = study["StudyInstanceUID"], series["SeriesInstanceUID"]
        keys = {"StudyInstanceUID": uids[0], "SeriesInstanceUID": uids[1], "SOPInstanceUID": "", "SOPClassUID": ""}
        found = self._find("IMAGE", keys, "SOPInstanceUID")
        instances = tuple(Listed(*uids, each["SOPInstanceUID"], each["SOPClassUID"]) for each in found)
        return Series(*uids, series["Modality"], {keyword: study[keyword] for keyword in _SAID}, instances)

    def _find(self, level: Level, keys: Mapping[str, str], unique: str) -> list[Mapping[str, str]]:
        found = list(self.archive.find(level, keys))
        for item in found:
            if not is_uid(item[unique]):
                raise FindFailed(f"the archive lists something whose {unique} is missing, or is no UID")
            unknown = [
                k for k, value in keys.items() if value.strip("*") and k not in ("StudyInstanceUID", unique) and not item[k]
            ]
            if unknown:  # what matches says its value (PS3.4 C.2.2.1, PS3.18 10.6.3)
                raise FindFailed(f"the archive does not match {', '.join(unknown)}: leave it out, or ask for something else")
        return [item for item in found if keys.get(unique) in ("", item[unique])]

    @contextmanager
    def files(self, series: Series) -> Iterator[Sequence[Path]]:
        """See Source."""
        with TemporaryDirectory(prefix="segnode-dataset-") as scratch:
            paths = []
            for number, listed in enumerate(series.instances):
                path = Path(scratch) / f"{number:06d}.dcm"
                with path.open("wb") as file:
                    file.write(self.archive.fetch(listed))
                paths.append(path)
            yield paths
