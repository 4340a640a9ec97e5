"""What a format of training sets is: how an image series with its labels is written, and how labels are read."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from segnode.datasets.classes import Class, Classes
from segnode.datasets.grid import Grid
from segnode.datasets.images import Images
from segnode.datasets.layers import Layers
from segnode.datasets.manifest import Entry, Manifest
from segnode.dicom.geometry import Vector
from segnode.errors import BadDataset
from segnode.seg.combine import label_type, values_in

FormatName = Literal["nifti", "nrrd", "hydrogen-torch", "medsegpy", "mathworks"]

_LARGEST_LABEL: Final = 0xFFFF
# What a format may look like, the usual one first.
LAYOUTS: Final[Mapping[FormatName, Sequence[str]]] = {"medsegpy": ("3d", "2d"), "mathworks": ("dicom", "nifti", "nrrd")}


@dataclass(frozen=True, eq=False)
class Item:
    """An image series to be written.

    `labels` are None where it has none; `classes` are those that its labels tell apart, `every_class` those of the set. What
    `layout` says is the format's own. `key` is that of the manifest; UIDs are replaced by it.
    """

    entry: Entry
    images: Images
    labels: Layers | None
    classes: tuple[Class, ...]
    every_class: tuple[Class, ...]
    layout: str
    key: str

    @property
    def grid(self) -> Grid:
        """Where its voxels lie."""
        return self.images.grid


@dataclass(frozen=True)
class LabelFile:
    """Labels of one image series in a set: where they stand, and of which entry of the manifest they are, where that is known.

    `shape` is that of a labelmap (slices, rows, columns), `affine` maps these to LPS mm where that is said. `load` gives the
    labels in that grid, by values of the classes; it raises BadDataset, LabelError.
    """

    where: str
    entry: Entry | None
    shape: tuple[int, ...]
    affine: Vector | None
    load: Callable[[], Layers]


class Format(Protocol):
    """A format of training sets."""

    zipped: bool
    # Whether images without a place in the patient are taken.
    takes_unplaced: bool

    def write(self, item: Item, folder: Path) -> Iterable[Path]:
        """Write an image series with its labels into the folder of the set; the files, when each is written."""
        ...

    def finish(self, manifest: Manifest, folder: Path) -> None:
        """Write what the set has once, when every series is there."""
        ...

    def labels(self, path: Path, manifest: Manifest | None, classes: Classes) -> Iterator[LabelFile]:
        """The labels of a set, or of a single file where the format has such. Raises BadDataset, LabelError."""
        ...


def relabelled(array: npt.NDArray[Any], class_of: Callable[[int], Class], where: str) -> npt.NDArray[np.unsignedinteger]:
    """Labels as a file has them by values of the classes. Raises BadDataset for what is no label, what `class_of` raises."""
    if array.dtype.kind not in "iufb":
        raise BadDataset(f"{where}: the labels are of type {array.dtype}: whole numbers are")
    if array.dtype.kind in "bf" or array.dtype.itemsize > 2 or array.dtype.kind == "i":
        low, high = (array.min(), array.max()) if array.size else (0, 0)
        if not (low >= 0 and high <= _LARGEST_LABEL):
            raise BadDataset(f"{where}: the labels hold {low} to {high}: they are 0 to {_LARGEST_LABEL}")
        whole = array.astype(np.uint16)
        if array.dtype.kind == "f" and not np.array_equal(whole, array):
            raise BadDataset(f"{where}: the labels hold fractions: whole numbers are labels")
        array = whole
    value_of = {value: class_of(value).value for value in sorted(values_in(array)) if value}
    dtype = label_type(max(value_of.values(), default=0))
    if all(value == of for value, of in value_of.items()):
        return array.astype(dtype, copy=False)
    table = np.zeros(max(value_of) + 1, dtype)
    table[list(value_of)] = list(value_of.values())
    return np.asarray(table[array])


def layers_of_maps(maps: Sequence[npt.NDArray[Any]], class_of: Sequence[Callable[[int], Class]], where: str) -> Layers:
    """Labelmaps of a file as layers. Raises BadDataset, and what `class_of` raises."""
    layers = [relabelled(array, of, where) for array, of in zip(maps, class_of, strict=True)]
    of: dict[int, int] = {}
    for place, labels in enumerate(layers):
        for value in (value for value in values_in(labels) if value):
            if of.setdefault(value, place) != place:
                raise BadDataset(f"{where}: the class {value} is in two of its labelmaps")
    return Layers(tuple(layers), of)


def entry_named(manifest: Manifest | None, name: str) -> Entry | None:
    """The entry of the manifest that a file of this name, without its suffixes, is of."""
    stem = PurePosixPath(name).name.partition(".")[0]
    return next((entry for entry in manifest.entries if entry.id == stem), None) if manifest else None


def format_of(name: FormatName) -> Format:
    """The format of that name; its libraries are loaded when it is used."""
    from segnode.datasets.hydrogen_torch import HydrogenTorch  # noqa: PLC0415
    from segnode.datasets.mathworks import MathWorks  # noqa: PLC0415
    from segnode.datasets.medsegpy import MedSegPy  # noqa: PLC0415
    from segnode.datasets.nifti import Nifti  # noqa: PLC0415  they import this module
    from segnode.datasets.nrrd import Nrrd  # noqa: PLC0415

    formats: Final[Mapping[str, type[Format]]] = {
        "hydrogen-torch": HydrogenTorch,
        "mathworks": MathWorks,
        "medsegpy": MedSegPy,
        "nifti": Nifti,
        "nrrd": Nrrd,
    }
    return formats[name]()
