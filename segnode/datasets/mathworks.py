"""MathWorks' groundTruthMedical: data sources and label images, in lists that load_ground_truth.m makes the object of.

The object itself is MATLAB's own and cannot be written outside MATLAB. SPLIT/images/ID is a folder of DICOM files, or one with
the suffix .dcm, .nii.gz or .nrrd; SPLIT/labels/ID.nii.gz are the labels of a volume, in its grid and in the order of axes in
which MATLAB reads it; ID.mat those of a 2-D image, `labels` (rows, columns), or (rows, columns, frames). ground_truth.mat has a
row for each data source; where segments overlap, which one label image cannot hold, another with the same source and ID-2.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian

from segnode.datasets.classes import Classes
from segnode.datasets.formats import Item, LabelFile, entry_named, layers_of_maps
from segnode.datasets.layers import Layers
from segnode.datasets.manifest import Entry, Manifest
from segnode.datasets.nifti import class_of_names, label_file, write_labels, write_nifti
from segnode.datasets.nrrd import write_image
from segnode.dicom.deidentify import deidentified
from segnode.dicom.native import in_native
from segnode.errors import BadDataset, GridMismatch
from segnode.seg.combine import Labelmap

LISTS_FILE: Final = "ground_truth.mat"
_LISTS: Final = ("Split", "Dimensions", "DataSource", "LabelData", "Name", "LabelColor", "PixelLabelID")
_LABELS: Final = "labels"
_NIFTI: Final = (".nii.gz", ".nii")
# MATLAB reads DICOM as rows, columns, slices, and other files as they are.
_ROWS_FIRST: Final = (1, 2, 0)
_COLUMNS_FIRST: Final = (2, 1, 0)
_NUMERIC: Final = frozenset(("double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "logical"))
_LOAD: Final = """function gTruth = load_ground_truth(split, dimensions)
%LOAD_GROUND_TRUTH  The groundTruthMedical object of a split of this set.
%   gTruth = LOAD_GROUND_TRUTH(split) is that of 'train' (what is taken when nothing is said), 'validation' or 'test'.
%   gTruth = LOAD_GROUND_TRUTH(split, dimensions) has the 2-D images (2) or the volumes (3); an object holds one kind.
if nargin < 1
  split = 'train';
end
root = fileparts(mfilename('fullpath'));
lists = load(fullfile(root, 'ground_truth.mat'));
inside = strcmp(lists.Split, split);
if nargin < 2
  dimensions = max([0; double(lists.Dimensions(inside))]);
end
rows = find(inside & lists.Dimensions == dimensions);
if isempty(rows)
  error('segnode:noData', 'There are no such data in the split %s.', split);
end
sources = cell(numel(rows), 1);
labels = cell(numel(rows), 1);
for n = 1:numel(rows)
  source = fullfile(root, lists.DataSource{rows(n)});
  if isfolder(source)
    files = dir(fullfile(source, '*.dcm'));
    sources{n} = string(fullfile(source, sort({files.name}')));
  else
    sources{n} = string(source);
  end
  labels{n} = '';
  if ~isempty(lists.LabelData{rows(n)})
    labels{n} = fullfile(root, lists.LabelData{rows(n)});
  end
end
definitions = table(string(lists.Name), lists.LabelColor, lists.PixelLabelID, ...
  'VariableNames', {'Name', 'LabelColor', 'PixelLabelID'});
if dimensions == 3
  data = medical.labeler.loading.VolumeSource(sources);
else
  data = medical.labeler.loading.ImageSource(vertcat(sources{:}));
end
gTruth = groundTruthMedical(data, definitions, string(labels));
end
"""


class MathWorks:
    """The format `mathworks`; see Format."""

    zipped = False
    takes_unplaced = True

    def write(self, item: Item, folder: Path) -> Sequence[Path]:
        """See Format."""
        where = folder / item.entry.split
        written = _write_source(item, where / "images")
        for place in range(len(item.labels.maps) if item.labels else 0):
            stem = item.entry.id if place == 0 else f"{item.entry.id}-{place + 1}"
            written.append(_write_label(item, place, where / "labels", stem))
        return written

    def finish(self, manifest: Manifest, folder: Path) -> None:
        """Write the lists, and what makes the object of them."""
        from scipy.io import savemat  # noqa: PLC0415  seldom needed

        rows = [row for entry in manifest.entries for row in _rows(entry)]
        ids = np.array([each.value for each in manifest.classes], np.int64)
        lists = {
            "Split": _texts(row.split for row in rows),
            "Dimensions": np.array([[row.dimensions] for row in rows], np.float64),
            "DataSource": _texts(row.source for row in rows),
            "LabelData": _texts(row.label for row in rows),
            "Name": _texts(each.name for each in manifest.classes),
            "LabelColor": np.array([each.colour for each in manifest.classes], np.float64).reshape(-1, 3) / 255,
            "PixelLabelID": ids.astype(np.uint8 if ids.max(initial=0) < 256 else np.uint16).reshape(-1, 1),
        }
        savemat(folder / LISTS_FILE, lists, do_compression=True)
        (folder / "load_ground_truth.m").write_text(_LOAD, encoding="utf-8")

    def labels(self, path: Path, manifest: Manifest | None, classes: Classes) -> Iterator[LabelFile]:
        """See Format; by the lists of a set, or a single label image."""
        if path.is_file() and path.name != LISTS_FILE:
            yield _label_image(path, None, manifest, classes, {})
            return
        root = path if path.is_dir() else path.parent
        rows, names = _read_lists(root / LISTS_FILE)
        of_source: dict[str, list[tuple[int, Path]]] = defaultdict(list)
        taken: dict[Path, str] = {}
        for number, (source, label) in enumerate(rows, 1):
            where = f"row {number} of {root / LISTS_FILE}"
            if not label:
                continue
            file = _inside(root, label, where)
            if taken.setdefault(file, source) != source:
                raise BadDataset(f"{where}: {label} is the label of two data sources, {taken[file]} and {source}")
            if not file.is_file():
                raise BadDataset(f"{where}: the label {label} is not there")
            of_source[source].append((number, file))
        for source, files in of_source.items():
            entry = entry_named(manifest, source)
            found = [_label_image(file, entry, manifest, classes, names) for _, file in files]
            yield found[0] if len(found) == 1 else _together(found, f"rows {files[0][0]} to {files[-1][0]} of {LISTS_FILE}")


@dataclass(frozen=True)
class _Row:
    split: str
    dimensions: int
    source: str
    label: str


def _is_2d(item: Item) -> bool:
    """Whether it is an image, or frames without a place in the patient, and no volume."""
    return item.grid.shape[0] == 1 or not item.grid.placed


def _write_source(item: Item, where: Path) -> list[Path]:
    where.mkdir(parents=True, exist_ok=True)
    stem = where / item.entry.id
    if item.layout == "nifti":
        # As MATLAB reads the file as it is, a 2-D image has its rows first.
        file = stem.with_name(f"{stem.name}.nii.gz")
        axes = _ROWS_FIRST if _is_2d(item) else _COLUMNS_FIRST
        write_nifti(file, item.images.array(), item.grid.affine, axes=axes, placed=item.grid.placed)
        return [file]
    if item.layout == "nrrd" and not _is_2d(item):
        file = stem.with_name(f"{stem.name}.nrrd")
        write_image(file, item.images.array(), item.grid.affine)
        return [file]
    files = [*dict.fromkeys(item.images.files)]
    if len(files) == 1:
        return [_write_dicom(item, files[0], stem.with_name(f"{stem.name}.dcm"))]
    stem.mkdir(exist_ok=True)
    return [_write_dicom(item, file, stem / f"{place:06d}.dcm") for place, file in enumerate(files, 1)]


def _write_dicom(item: Item, file: Path, out: Path) -> Path:
    """As it is where identities are kept, else de-identified, without what a codestream may have beside its pixels."""
    if item.entry.identity is not None:
        shutil.copyfile(file, out)
        return out
    image = dcmread(BytesIO(in_native(file, ExplicitVRLittleEndian)))
    deidentified(image, item.key, f"{item.entry.patient:07d}").save_as(out, enforce_file_format=True)
    return out


def _write_label(item: Item, place: int, where: Path, stem: str) -> Path:
    from scipy.io import savemat  # noqa: PLC0415

    labels = item.labels
    if labels is None:
        raise BadDataset(f"{stem} has no labels")
    where.mkdir(parents=True, exist_ok=True)
    if _is_2d(item):
        file = where / f"{stem}.mat"
        array = labels.maps[place].transpose(_ROWS_FIRST)
        savemat(file, {_LABELS: array if array.shape[2] > 1 else array[:, :, 0]}, do_compression=True)
        return file
    file = where / f"{stem}.nii.gz"
    values = [value for value, layer in labels.of.items() if layer == place]
    alone = Layers((labels.maps[place],), dict.fromkeys(values, 0))
    write_labels(file, alone, item.classes, item.grid.affine, _ROWS_FIRST if item.layout == "dicom" else _COLUMNS_FIRST)
    return file


def _rows(entry: Entry) -> Iterator[_Row]:
    """The rows of a data source: one, or one for each label image where segments overlap."""
    names = [PurePosixPath(name) for name in entry.files]
    images = [name for name in names if name.parts[1] == "images"]
    source = images[0] if len(images[0].parts) == 3 else images[0].parent
    dimensions = 2 if entry.shape[0] == 1 or not entry.affine else 3
    labels = [str(name) for name in names if name.parts[1] == "labels"]
    for label in labels or [""]:
        yield _Row(entry.split, dimensions, str(source), label)


def _texts(texts: Any) -> npt.NDArray[Any]:
    """A column of texts, as MATLAB's cell array."""
    column = list(texts)
    out = np.empty((len(column), 1), object)
    out[:, 0] = column
    return out


def _read_lists(file: Path) -> tuple[list[tuple[str, str]], Mapping[int, str]]:
    """The data sources with their labels, and the names of values. Raises BadDataset."""
    found = _read_mat(file, _LISTS)
    sources, labels, names = (_column(found[key], f"{key} of {file}") for key in ("DataSource", "LabelData", "Name"))
    ids = _whole(found["PixelLabelID"], f"PixelLabelID of {file}").reshape(-1).tolist()
    if len(sources) != len(labels) or len(names) != len(ids):
        raise BadDataset(f"{file}: DataSource and LabelData are lists of one length, and so are Name and PixelLabelID")
    if len(set(ids)) < len(ids) or not all(names):
        raise BadDataset(f"{file}: each PixelLabelID is there once, and has a Name")
    return list(zip(sources, labels, strict=True)), dict(zip(ids, names, strict=True))


def _read_mat(file: Path, wanted: Sequence[str]) -> Mapping[str, Any]:
    """Variables of a MAT-file, which are arrays of numbers or of texts. Raises BadDataset."""
    from scipy.io import loadmat, whosmat  # noqa: PLC0415
    from scipy.io.matlab import MatReadError  # noqa: PLC0415

    try:
        classes = {name: kind for name, _, kind in whosmat(file)}
        missing = [name for name in wanted if name not in classes]
        objects = [name for name, kind in classes.items() if kind not in (*_NUMERIC, "cell", "char")]
        if objects and (missing or set(objects) & set(wanted)):
            raise BadDataset(
                f"{file}: {', '.join(objects)} is a MATLAB object or struct, which is read by MATLAB alone: arrays and cell"
                f" arrays are read, named {', '.join(wanted)}"
            )
        if missing:
            raise BadDataset(f"{file} has no variable {', '.join(missing)}")
        return dict(loadmat(file, variable_names=list(wanted)))
    except FileNotFoundError as error:
        raise BadDataset(f"{file} is not there") from error
    except NotImplementedError as error:
        raise BadDataset(f"{file} is a MAT-file of version 7.3: save it with -v7") from error
    except (MatReadError, OSError, ValueError, TypeError, KeyError, IndexError, EOFError, MemoryError) as error:
        raise BadDataset(f"{file} is no MAT-file, or a damaged one: {error}") from error


def _column(value: Any, where: str) -> list[str]:
    """A cell array of texts. Raises BadDataset."""
    texts = [np.asarray(each).reshape(-1) for each in np.asarray(value).reshape(-1)]
    if any(text.size > 1 or (text.size and text.dtype.kind != "U") for text in texts):
        raise BadDataset(f"{where} is no cell array of texts")
    return [str(text[0]) if text.size else "" for text in texts]


def _whole(value: Any, where: str) -> npt.NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "iufb" or (array.dtype.kind == "f" and not np.array_equal(array, np.rint(array))):
        raise BadDataset(f"{where}: whole numbers are needed")
    return array.astype(np.int64)


def _inside(root: Path, name: str, where: str) -> Path:
    """A file of the set. Raises BadDataset for what leads out of it."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name:
        raise BadDataset(f"{where}: {name!r} leads out of the set: it is not read")
    return root.joinpath(*parts.parts)


def _label_image(
    file: Path, entry: Entry | None, manifest: Manifest | None, classes: Classes, names: Mapping[int, str]
) -> LabelFile:
    if file.name.endswith(_NIFTI):
        found = label_file(file, manifest, classes, names)
        return LabelFile(found.where, entry or found.entry, found.shape, found.affine, found.load)
    if file.suffix != ".mat":
        raise BadDataset(f"{file} is no label image: those of volumes are NIfTI, those of 2-D images MAT-files")
    shape = _shape_of(file)
    load = partial(_load, file, shape, class_of_names(names, classes, str(file)))
    return LabelFile(str(file), entry or entry_named(manifest, file.name), shape, None, load)


def _shape_of(file: Path) -> tuple[int, int, int]:
    """The shape (frames, rows, columns) of the labels in a MAT-file. Raises BadDataset."""
    from scipy.io import whosmat  # noqa: PLC0415

    try:
        found = {name: (shape, kind) for name, shape, kind in whosmat(file)}
    except Exception:  # noqa: BLE001  what is wrong with it, the reader says
        found = {}
    shape, kind = found.get(_LABELS, ((), ""))
    if kind not in _NUMERIC:
        _read_mat(file, (_LABELS,))
    if kind not in _NUMERIC or len(shape) not in (2, 3) or not all(shape):
        raise BadDataset(f"{file}: `{_LABELS}` is no array of numbers, (rows, columns) or (rows, columns, frames)")
    return (int(shape[2]) if len(shape) == 3 else 1), int(shape[0]), int(shape[1])


def _load(file: Path, shape: tuple[int, int, int], class_of: Callable[[int], Any]) -> Layers:
    array = np.asarray(_read_mat(file, (_LABELS,))[_LABELS])
    turned = array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)
    if turned.shape != shape:
        raise BadDataset(f"{file} is damaged: its labels are {array.shape}")
    return layers_of_maps([turned], [class_of], str(file))


def _together(found: Sequence[LabelFile], where: str) -> LabelFile:
    """Label images of one data source, which lie on one grid, as one. Raises GridMismatch."""
    first = found[0]
    for other in found[1:]:
        placed = first.affine is not None and other.affine is not None and np.allclose(first.affine, other.affine, atol=1e-4)
        if other.shape != first.shape or not (placed or (first.affine is None and other.affine is None)):
            raise GridMismatch(f"{first.where} and {other.where} are labels of one data source, and are not on one grid")

    def load() -> Layers:
        layers = [each.load() for each in found]
        maps: list[Labelmap] = []
        of: dict[int, int] = {}
        for each in layers:
            twice = next((value for value in each.of if value in of), None)
            if twice is not None:
                raise BadDataset(f"{where}: the class {twice} is in two label images of one data source")
            of |= {value: len(maps) + layer for value, layer in each.of.items()}
            maps += each.maps
        return Layers(tuple(maps), of)

    return LabelFile(where, first.entry, first.shape, first.affine, load)
