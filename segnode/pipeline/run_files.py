"""Running a model on files by hand: the series in them, each the way that a job goes, without a node."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segnode.config import FormName, ModelConfig, RuleConfig
from segnode.dicom.digest import data_set_digest
from segnode.dicom.header import read_header
from segnode.dicom.slices import mapped_volume
from segnode.dicom.uids import SEGMENTATION_CLASSES, derived_uid
from segnode.dicom.volume import Volume
from segnode.errors import Misplaced, Refusal
from segnode.pipeline.assemble import map_slices, patients, read_image, require_one_patient, slices_for
from segnode.pipeline.encode import Maker, write_proven
from segnode.pipeline.infer import Inferred, infer_series
from segnode.pipeline.ports import Model
from segnode.pipeline.rules import Rule
from segnode.seg.convert import Target, convert
from segnode.seg.diff import diff
from segnode.seg.forms import FORMS
from segnode.seg.read import read_segmentation
from segnode.seg.recode import recode
from segnode.seg.segments import LabelDictionary
from segnode.seg.write import ENCODER_REVISION


@dataclass(frozen=True)
class SeriesFiles:
    """A series in files, by SOP instance UID."""

    series_instance_uid: str
    files: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def contents(self) -> list[str]:
        """What its images are called by their content, in no order of theirs."""
        found = []
        for path in self.files.values():
            with path.open("rb") as file:
                found.append(data_set_digest(file, read_header(file)))
        return sorted(found)


@dataclass(frozen=True, eq=False)
class SegmentedSeries:
    """The SEG of a series: `numbers` are segment numbers ([layers,] slices, rows, columns), `notes` for people."""

    volume: Volume
    numbers: npt.NDArray[np.unsignedinteger]
    notes: Sequence[str]
    sop_instance_uid: str
    form: FormName
    part10: bytes

    def voxels(self, dictionary: LabelDictionary) -> Mapping[str, int]:
        """How many voxels each segment has, by label."""
        counts = np.zeros(1 << 16, np.int64)
        for plane in self.numbers.reshape(-1, *self.numbers.shape[-2:]):
            counts += np.bincount(plane.ravel(), minlength=len(counts))
        return {segment.label: int(counts[segment.segment_number]) for segment in dictionary.segment}


def series_in(files: Iterable[Path]) -> tuple[list[SeriesFiles], dict[Path, str]]:
    """The series of images in files, and the files that are none, with the reason; SEGs and the like are neither.

    Of several files with one image the first counts.
    """
    found: dict[str, SeriesFiles] = {}
    refused: dict[Path, str] = {}
    for path in files:
        try:
            with path.open("rb") as file:
                header = read_header(file)
        except OSError as error:
            refused[path] = f"cannot be read: {error.strerror}"
        except Refusal as refusal:
            refused[path] = str(refusal)
        else:
            if "Rows" in header.attributes and header.sop_class_uid not in SEGMENTATION_CLASSES:
                series = found.setdefault(header.series_instance_uid, SeriesFiles(header.series_instance_uid))
                series.files.setdefault(header.sop_instance_uid, path)
    return list(found.values()), refused


@dataclass(frozen=True)
class FileRunner:
    """Runs a model on series in files; in `form` results are written, in what holds them where there is none.

    `folder` is for what is written on the way.
    """

    model: Model
    config: ModelConfig
    dictionary: LabelDictionary
    maker: Maker
    form: FormName | None
    folder: Path

    @cached_property
    def rule(self) -> Rule:
        """The rule that a job would be of; on which side segments lie is said, and holds up nothing."""
        config = RuleConfig(when={}, model=self.config.name, laterality="warn")
        first = self.form if self.form and FORMS[self.form].type == "LABELMAP" else "labelmap:rle"
        return Rule(config, self.config, self.dictionary, first)

    def run(self, series: SeriesFiles, now: datetime) -> SegmentedSeries:
        """The SEG of a series. Raises SegnodeError with the reason when there can be none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what pydicom warns in images, the model's result says nothing
            headers = [read_image(path, uid, with_pixels=False) for uid, path in series.files.items()]
            require_one_patient(patients(headers))
            slices = slices_for(self.rule, headers)
            volume = mapped_volume(slices, map_slices(slices, series.files.__getitem__, self.folder))
            images = (read_image(path, uid, with_pixels=True) for uid, path in series.files.items())
            inferred = infer_series(self.model, self.rule, slices, volume, images, lambda _: None)
            uids = self._uids(series)
            identity = self.maker.identity(self.rule, slices.images[0], uids, now)
            part10 = write_proven(inferred.numbers, inferred.returned, slices, self.rule, identity)
            return SegmentedSeries(volume, inferred.numbers, inferred.notes, *self._in_form(part10, uids[0], inferred, now))

    def _uids(self, series: SeriesFiles) -> tuple[str, str]:
        """Those of the SEG's instance and series: a repeat, of which nothing else is said, is the same object."""
        of_series = series.series_instance_uid, self.rule.digest
        said = repr((self.maker.output, self.maker.station_name, self.maker.secret is None))
        instance = derived_uid("run instance", *of_series, series.contents, ENCODER_REVISION, said, root=self.maker.root)
        return instance, derived_uid("run series", *of_series, root=self.maker.root)

    def _in_form(self, part10: bytes, uid: str, inferred: Inferred, now: datetime) -> tuple[str, FormName, bytes]:
        """SOP instance UID, form and bytes of what is written. Raises what converting raises, and Misplaced."""
        as_it_is: FormName = self.rule.first_form if inferred.numbers.ndim == 3 else "binary:native"
        form = FORMS[self.form or as_it_is]
        if form.name == as_it_is:
            return uid, form.name, part10
        if form.type == FORMS[as_it_is].type:
            return uid, form.name, recode(part10, form.codec)
        target = Target(form.type, form.codec, station_name=self.maker.station_name, uid_root=self.maker.root)
        (made,) = convert(part10, target, now)
        if not diff(read_segmentation(part10), read_segmentation(made.part10)).is_equal:
            raise Misplaced(f"as {form.name} it would have other labels, and is not written")
        return made.sop_instance_uid, form.name, made.part10
