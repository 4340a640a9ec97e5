"""The contract of a model as a test class, for those who write models: a subclass says which model, and pytest runs it."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import msgspec
import numpy as np
from pydicom import dcmread

from segnode.config import ModelConfig
from segnode.dicom.slices import order_slices, read_volume
from segnode.dicom.volume import Volume
from segnode.models.doors import load_model
from segnode.models.grids import turn_to_orientation
from segnode.pipeline.infer import run_model
from segnode.pipeline.ports import Model, Result
from segnode.seg.segments import LabelDictionary, read_label_dictionary, segment_numbers
from segnode.testing.phantom import write_ct


class ModelContract:
    """What the node asks of every model, on a volume of your choice; a synthetic CT where `volume` is not overridden.

    `run` and `labels` are as in `[[models]]`, `keys` its other keys, such as `{"orientation": "RAS"}`. `agreement` is the
    part of all labelled voxels that must stay the same when the volume comes in another order of slices, rows and columns.
    """

    run: ClassVar[str]
    labels: ClassVar[str]
    keys: ClassVar[Mapping[str, Any]] = {}
    agreement: ClassVar[float] = 0.9

    def volume(self) -> Volume:
        """A volume that the model finds something in."""
        return phantom_volume()

    def test_result_is_one(self) -> None:
        """The result is of one kind, and its shape, type and values are right."""
        self._segment(self.volume())

    def test_it_finds_something(self) -> None:
        """A model that never finds anything would pass all the rest."""
        if not self._segment(self.volume()).layers.any():
            raise AssertionError("no voxel of the volume is labelled: override volume() with one that the model knows")

    def test_every_label_has_an_entry(self) -> None:
        """The label dictionary says what each value means."""
        for layer in self._segment(self.volume()).layers:
            segment_numbers(layer, self._dictionary())

    def test_same_volume_has_the_same_labels(self) -> None:
        """A repeat after a crash makes the same object."""
        first, second = self._segment(self.volume()), self._segment(self.volume())
        if not np.array_equal(first.layers, second.layers):
            raise AssertionError("the same volume had other labels the second time: seed what is random")

    def test_labels_stay_in_the_patient(self) -> None:
        """Volumes come from feet to head or the other way, sagittal or coronal: what is left stays left."""
        volume = self.volume()
        labels = self._segment(volume).layers
        for orientation in ("SPL", "IPL", "SAR", "LSP", "PIR"):
            turn = turn_to_orientation(volume.affine, orientation)
            array, affine = np.ascontiguousarray(turn.array(volume.array)), turn.affine(volume.affine, volume.array.shape)
            found = self._segment(Volume(array, affine, volume.series, volume.sop_instance_uids)).layers
            _require_agreement(turn.array(labels), found, orientation, self.agreement)

    def _config(self) -> ModelConfig:
        table = {"name": "contract", "run": self.run, "labels": str(self.labels), "version": "1", **self.keys}
        return msgspec.convert(table, ModelConfig)

    def _dictionary(self) -> LabelDictionary:
        return read_label_dictionary(str(self.labels), Path.cwd())

    def _segment(self, volume: Volume) -> Result:
        given = Volume(volume.array.copy(), volume.affine.copy(), volume.series, volume.sop_instance_uids)
        return run_model(_loaded(msgspec.json.encode(self._config())), given, "contract")


@cache
def _loaded(config: bytes) -> Model:
    return load_model(msgspec.json.decode(config, type=ModelConfig))


@cache
def phantom_volume() -> Volume:
    """A synthetic CT of a body with lungs and bones: 40 slices of 128 x 128."""
    with TemporaryDirectory(prefix="segnode-phantom-") as folder:
        phantom = write_ct(Path(folder), slices=40, size=128)
        slices = order_slices([dcmread(file) for file in sorted(phantom.folder.iterdir())])
        return read_volume(slices, slices.images)


def _require_agreement(expected: Any, found: Any, orientation: str, agreement: float) -> None:
    same_grid = expected.shape == found.shape
    labelled = (expected > 0) | (found > 0) if same_grid else np.ones(1, np.bool_)
    same = float((expected == found)[labelled].mean()) if same_grid and labelled.any() else float(not same_grid)
    if not same_grid or same < agreement:
        raise AssertionError(
            f"of the same volume in the orientation {orientation} (slices, rows, columns) {same:.0%} of the labelled voxels"
            f" have the same labels, less than {agreement:.0%}: does the model look at volume.affine, or say in which"
            ' orientation it wants its volume (orientation = "RAS")?'
        )
