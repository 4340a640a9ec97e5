"""NIfTI-1: an image and its labels in one grid, as images/ID.nii.gz and labels/ID.nii.gz in the folder of a split.

The labels have their names and colours in an extension (ecode 30, a Caret label table), as TotalSegmentator, wb_command and
others write and read them. Segments that overlap are labelmaps along the fourth axis, each with a table of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt

from segnode.datasets.classes import Class, Classes
from segnode.datasets.formats import Item, LabelFile, entry_named, layers_of_maps
from segnode.datasets.layers import Layers
from segnode.datasets.manifest import Manifest
from segnode.dicom.geometry import LPS_TO_RAS, Vector, column_row_slice
from segnode.errors import BadDataset

_CARET: Final = 30
_SUFFIXES: Final = (".nii.gz", ".nii")


class Nifti:
    """The format `nifti`; see Format."""

    zipped = False
    takes_unplaced = False

    def write(self, item: Item, folder: Path) -> Sequence[Path]:
        """See Format."""
        where = folder / item.entry.split
        image = where / "images" / f"{item.entry.id}.nii.gz"
        write_nifti(image, item.images.array(), item.grid.affine)
        if item.labels is None:
            return [image]
        labels = where / "labels" / f"{item.entry.id}.nii.gz"
        write_labels(labels, item.labels, item.classes, item.grid.affine)
        return [image, labels]

    def finish(self, _manifest: Manifest, _folder: Path) -> None:
        """See Format."""

    def labels(self, path: Path, manifest: Manifest | None, classes: Classes) -> Iterator[LabelFile]:
        """See Format; the files in folders `labels`, all where there is none, or the one file."""
        for file in label_files(path, _SUFFIXES):
            yield label_file(file, manifest, classes)


def label_files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The label files of a set: those in its folders `labels`, or all where it has no such folder. Raises BadDataset."""
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(tuple(suffixes)))
    found = [file for file in found if "labels" in file.relative_to(path).parts[:-1]] or found
    if not found:
        raise BadDataset(f"{path} has no file that ends in {' or '.join(suffixes)}")
    return found


def write_nifti(
    path: Path,
    array: npt.NDArray[Any],
    affine: Vector,
    extension: bytes = b"",
    axes: Sequence[int] = (2, 1, 0),
    *,
    placed: bool = True,
) -> None:
    """Write (slices, rows, columns), or (…, layers), with an affine of these to LPS mm, as RAS; `axes` is their order.

    What is not `placed` is said to have no place in the patient.
    """
    from nibabel.loadsave import save  # noqa: PLC0415  takes half a second
    from nibabel.nifti1 import Nifti1Extension, Nifti1Image  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    turned = array.transpose(*axes, *range(3, array.ndim))
    image: Any = cast("Any", Nifti1Image)(turned, LPS_TO_RAS @ affine[:, [*axes, 3]])
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code=int(placed))
    image.set_sform(image.affine, code=int(placed))
    if extension:
        image.header.extensions.append(cast("Any", Nifti1Extension)(_CARET, extension))
    save(image, path)


def write_labels(path: Path, labels: Layers, classes: Sequence[Class], affine: Vector, axes: Sequence[int] = (2, 1, 0)) -> None:
    """Write labels, with the names and colours of their classes; see write_nifti."""
    maps = labels.maps
    array = maps[0] if len(maps) == 1 else np.stack(maps, axis=-1)
    write_nifti(path, array, affine, _label_tables(labels, classes), axes)


def _label_tables(labels: Layers, classes: Sequence[Class]) -> bytes:
    root = ET.Element("CaretExtension")
    for layer in range(len(labels.maps)):
        volume = ET.SubElement(root, "VolumeInformation", Index=str(layer))
        table = ET.SubElement(volume, "LabelTable")
        for each in classes:
            if labels.of.get(each.value) == layer:
                red, green, blue = (f"{part / 255:.6g}" for part in each.colour)
                label = ET.SubElement(table, "Label", Key=str(each.value), Red=red, Green=green, Blue=blue, Alpha="1")
                label.text = each.name
        ET.SubElement(volume, "StudyMetaDataLinkSet")
        ET.SubElement(volume, "VolumeType").text = "Label"
    return bytes(ET.tostring(root, encoding="UTF-8", xml_declaration=True))


def label_file(file: Path, manifest: Manifest | None, classes: Classes, names: Mapping[int, str] | None = None) -> LabelFile:
    """The labels in a NIfTI file; `names` are those of values that the file has no name for. Raises BadDataset."""
    from nibabel.filebasedimages import ImageFileError  # noqa: PLC0415
    from nibabel.loadsave import load  # noqa: PLC0415
    from nibabel.nifti1 import Nifti1Pair  # noqa: PLC0415

    try:
        image: Any = load(file)
    except FileNotFoundError as error:
        raise BadDataset(f"{file} is not there") from error
    except (ImageFileError, OSError, ValueError, EOFError) as error:
        raise BadDataset(f"{file} is no NIfTI file: {error}") from error
    if not isinstance(image, Nifti1Pair):
        raise BadDataset(f"{file} is no NIfTI file")
    shape = tuple(int(length) for length in image.shape)
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) not in (3, 4) or not all(shape):
        raise BadDataset(f"{file}: labels have three axes, or four where segments overlap, and these are {shape}")
    header: Any = image.header
    placed = header["sform_code"] > 0 or header["qform_code"] > 0
    affine = column_row_slice(LPS_TO_RAS @ np.asarray(image.affine, np.float64)) if placed else None
    tables = _read_tables(image, file)
    return LabelFile(
        str(file),
        entry_named(manifest, file.name),
        (shape[2], shape[1], shape[0]),
        affine,
        lambda: _load(image, shape, tables, classes, str(file), names or {}),
    )


def _load(
    image: Any,
    shape: tuple[int, ...],
    tables: Mapping[int, Mapping[int, str]],
    classes: Classes,
    where: str,
    names: Mapping[int, str],
) -> Layers:
    try:
        values = np.asanyarray(image.dataobj).reshape(shape)
    except (OSError, ValueError, EOFError) as error:
        raise BadDataset(f"{where} ends before its labels do, or is damaged: {error}") from error
    layers = [values] if values.ndim == 3 else [values[..., layer] for layer in range(values.shape[3])]
    return layers_of_maps(
        [layer.transpose(2, 1, 0) for layer in layers],
        [class_of_names({**names, **tables.get(layer, {})}, classes, where) for layer in range(len(layers))],
        where,
    )


def class_of_names(table: Mapping[int, str], classes: Classes, where: str) -> Callable[[int], Class]:
    """The class of a value: by the name that it has in a set, else by the value itself."""
    return lambda value: classes.of_name(table[value], where) if value in table else classes.of_value(value, where)


def _read_tables(image: Any, file: Path) -> Mapping[int, Mapping[int, str]]:
    """The names of values, by volume along the fourth axis, from a Caret label table; empty where there is none."""
    tables: dict[int, dict[int, str]] = {}
    for extension in image.header.extensions:
        if extension.get_code() != _CARET and b"<CaretExtension" not in extension.content:
            continue
        try:
            text = extension.content.rstrip(b"\0 \n").decode("utf-8")
            # Without a document type there are no entities to expand.
            text = text if "<!DOCTYPE" not in text else ""
            root = ET.fromstring(text.partition("?>")[2] or text)  # noqa: S314  see above
            for volume in root.iter("VolumeInformation"):
                labels = {int(label.get("Key", "")): (label.text or "").strip() for label in volume.iter("Label")}
                tables[int(volume.get("Index", "0"))] = {key: name for key, name in labels.items() if name}
        except (ET.ParseError, ValueError) as error:
            raise BadDataset(f"{file}: its label table (NIfTI extension {_CARET}) cannot be read: {error}") from error
    return tables
