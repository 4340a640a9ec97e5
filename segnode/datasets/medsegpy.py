"""MedSegPy: HDF5 files in a folder for each split, with the dataset dicts and the metadata that its catalogues register.

Layout 3d is one ID.h5 a series, `volume` (rows, columns, slices) and `seg` (rows, columns, slices, classes). Layout 2d is two
files a slice, from 1: ID-Aug00_001.im with `data` (rows, columns, 1), and .seg with `data` (rows, columns, 1, classes). The
classes of the set are the channels, in order; masks may overlap. dataset.json has dicts and metadata, register.py registers
them. An image series without labels has no masks, and no dict.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from segnode.datasets.classes import Class, Classes
from segnode.datasets.formats import Item, LabelFile, entry_named
from segnode.datasets.layers import Layers, layers_of_masks
from segnode.datasets.manifest import Entry, Manifest
from segnode.errors import BadDataset

Layout = Literal["3d", "2d"]

DATASET_FILE: Final = "dataset.json"
SLICE_NAME: Final = re.compile(r"([\d]+)_V([\d]+)-Aug([\d]+)_([\d]+)")
_FOLDERS: Final = {"train": "train", "validation": "val", "test": "test"}
# HDF5 keeps chunks that nothing was written to as zeros, which take no room; the others hold few runs.
_MASKS: Final[Mapping[str, Any]] = {"dtype": np.uint8, "compression": "gzip", "compression_opts": 1, "shuffle": False}
_REGISTER: Final = '''"""Registers the splits of this set and their classes with MedSegPy: import it, or run it, first."""

import json
from pathlib import Path

from medsegpy.data import DatasetCatalog, MetadataCatalog

ROOT = Path(__file__).resolve().parent


def _id(category):
    return tuple(category) if isinstance(category, list) else category


def dicts_of(split):
    """The dataset dicts of a split, with full paths."""
    rows = json.loads((ROOT / "dataset.json").read_text())["splits"][split]["dicts"]
    return [{**row, **{key: str(ROOT / row[key]) for key in ("file_name", "sem_seg_file")}} for row in rows]


def register(name):
    """Register NAME_train, NAME_val and NAME_test, as far as there are such splits."""
    described = json.loads((ROOT / "dataset.json").read_text())
    metadata = described["metadata"]
    ids = [_id(category) for category in metadata["category_ids"]]
    for split, of in described["splits"].items():
        DatasetCatalog.register(f"{name}_{split}", lambda split=split: dicts_of(split))
        MetadataCatalog.get(f"{name}_{split}").set(
            scan_root=str(ROOT / split),
            category_ids=ids,
            categories=metadata["categories"],
            category_id_to_contiguous_id={category: place for place, category in enumerate(ids)},
            category_abbreviations=metadata["category_abbreviations"],
            category_colors=[tuple(colour) for colour in metadata["category_colors"]],
            spacing=tuple(of["spacing"]),
            evaluator_type="SemSegEvaluator",
        )


register(ROOT.name)
'''


class MedSegPy:
    """The format `medsegpy`; see Format."""

    zipped = False
    takes_unplaced = False

    def write(self, item: Item, folder: Path) -> Sequence[Path]:
        """See Format; a slice at a time is held of the image, and of the masks."""
        where = folder / _FOLDERS[item.entry.split]
        where.mkdir(parents=True, exist_ok=True)
        return _write_2d(item, where) if item.layout == "2d" else [_write_3d(item, where)]

    def finish(self, manifest: Manifest, folder: Path) -> None:
        """Write the dataset dicts, the metadata, and what registers them."""
        layout, splits = manifest.options["layout"], dict.fromkeys(entry.split for entry in manifest.entries)
        described = {
            "metadata": _metadata(manifest),
            "splits": {
                _FOLDERS[split]: _split([entry for entry in manifest.entries if entry.split == split], layout)
                for split in splits
            },
        }
        (folder / DATASET_FILE).write_text(json.dumps(described, indent=1), encoding="utf-8")
        (folder / "register.py").write_text(_REGISTER, encoding="utf-8")

    def labels(self, path: Path, manifest: Manifest | None, classes: Classes) -> Iterator[LabelFile]:
        """See Format; both layouts, without the copies that were augmented: these are no labels of the images."""
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        volumes = [file for file in files if file.suffix == ".h5" and file.is_file()]
        slices = [file for file in files if file.suffix == ".seg" and file.is_file()]
        if not volumes and not slices:
            raise BadDataset(f"{path} has no file that ends in .h5 or .seg")
        channels = _channels(path, classes)
        for file in volumes:
            if found := _volume_labels(file, manifest, channels):
                yield found
        yield from _slice_labels(slices, manifest, channels)


def _masks_at(item: Item, place: int) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """The channel and the mask (rows, columns) of each class that a slice has."""
    if item.labels is None:
        return
    for channel, each in enumerate(item.every_class):
        if each.value in item.labels.of:
            mask = item.labels.maps[item.labels.of[each.value]][place] == each.value
            if mask.any():
                yield channel, mask


def _write_3d(item: Item, where: Path) -> Path:
    import h5py  # noqa: PLC0415  seldom needed

    slices, rows, columns = item.grid.shape
    path, count = where / f"{item.entry.id}.h5", len(item.every_class)

    def write(dtype: "np.dtype[Any]") -> None:
        with h5py.File(path, "w") as file:
            volume = file.create_dataset("volume", (rows, columns, slices), dtype, chunks=(rows, columns, 1))
            seg: Any = None
            if item.labels is not None:
                seg = file.create_dataset("seg", (rows, columns, slices, count), chunks=(rows, columns, 1, 1), **_MASKS)
            for place, plane in enumerate(item.images.planes(dtype)):
                volume[:, :, place] = plane
                for channel, mask in _masks_at(item, place):
                    seg[:, :, place, channel] = mask

    item.images.written(write)
    return path


def _write_2d(item: Item, where: Path) -> list[Path]:
    stems = [where / f"{item.entry.id}-Aug00_{place + 1:03d}" for place in range(item.grid.shape[0])]
    written = item.images.written(
        lambda dtype: [
            _write_slice(item, place, plane, stem)
            for place, (plane, stem) in enumerate(zip(item.images.planes(dtype), stems, strict=True))
        ]
    )
    return [file for files in written for file in files]


def _write_slice(item: Item, place: int, plane: npt.NDArray[Any], stem: Path) -> list[Path]:
    import h5py  # noqa: PLC0415

    image, labels = stem.with_name(f"{stem.name}.im"), stem.with_name(f"{stem.name}.seg")
    with h5py.File(image, "w") as file:
        file.create_dataset("data", data=plane[:, :, np.newaxis])
    if item.labels is None:
        return [image]
    masks = np.zeros((*item.grid.shape[1:], 1, len(item.every_class)), np.uint8)
    for channel, mask in _masks_at(item, place):
        masks[:, :, 0, channel] = mask
    with h5py.File(labels, "w") as file:
        file.create_dataset("data", data=masks, chunks=(*item.grid.shape[1:], 1, 1), **_MASKS)
    return [image, labels]


def _metadata(manifest: Manifest) -> dict[str, Any]:
    """What MetadataCatalog has; classes that are collated have the channels that they are made of for an id."""
    names = [each.name for each in manifest.classes]
    collated = [super_class.partition("=") for super_class in manifest.options.get("collate", "").split(";") if super_class]
    ids: list[int | list[int]] = [*range(len(names))]
    for _, _, of in collated:
        ids.append([names.index(part) for part in of.split(",")])
    categories = [*names, *(name for name, _, _ in collated)]
    first = dict(zip(names, manifest.classes, strict=True))
    colours = [first[name].colour for name in names] + [first[of.split(",")[0]].colour for _, _, of in collated]
    return {
        "category_ids": ids,
        "categories": categories,
        "category_abbreviations": ["".join(word[0] for word in name.split()).upper() or name for name in categories],
        "category_colors": colours,
        "evaluator_type": "SemSegEvaluator",
    }


def _split(entries: Sequence[Entry], layout: str) -> dict[str, Any]:
    labelled = [entry for entry in entries if entry.values is not None]
    dicts = [row for entry in labelled for row in _dicts(entry, layout)]
    return {"spacing": _spacing(entries[0]), "dicts": dicts}


def _spacing(entry: Entry) -> list[float]:
    """Millimetres between rows, columns and slices."""
    slices, rows, columns = np.linalg.norm(np.array(entry.affine)[:3, :3], axis=0).tolist()
    return [rows, columns, slices]


def _dicts(entry: Entry, layout: str) -> Iterator[dict[str, Any]]:
    """A dataset dict for each slice, or for the series in layout 3d."""
    of_scan = {
        "scan_num_slices": entry.shape[0],
        "subject_id": entry.patient,
        "time_point": entry.scan,
        "scan_spacing": _spacing(entry),
    }
    where = _FOLDERS[entry.split]
    if layout == "3d":
        file = f"{where}/{entry.id}.h5"
        yield {"file_name": file, "sem_seg_file": file, "scan_id": entry.id, **of_scan}
        return
    for number in range(1, entry.shape[0] + 1):
        stem = f"{where}/{entry.id}-Aug00_{number:03d}"
        names = {"file_name": f"{stem}.im", "sem_seg_file": f"{stem}.seg"}
        yield {**names, "scan_id": f"{entry.id}-Aug00", "slice_id": number, **of_scan}


def _channels(path: Path, classes: Classes) -> list[Class]:
    """The class of each channel: by the names in dataset.json, else in the order of the dictionary's values."""
    file = (path if path.is_dir() else path.parent) / DATASET_FILE
    if not file.exists():
        return list(classes.all)
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))["metadata"]
        named = dict(zip(map(json.dumps, metadata["category_ids"]), metadata["categories"], strict=True))
        count = sum(isinstance(category, int) for category in metadata["category_ids"])
        names = [named[str(channel)] for channel in range(count)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadDataset(f"{file}: category_ids and categories do not name the channels: {error}") from error
    return [classes.of_name(name, f"channel {channel} in {file}") for channel, name in enumerate(names)]


def _dataset(file: Path, key: str, axes: int) -> tuple[int, ...] | None:
    """The shape of a dataset in an HDF5 file; None where there is none. Raises BadDataset."""
    import h5py  # noqa: PLC0415

    try:
        with h5py.File(file, "r") as opened:
            found = opened.get(key)
            if found is None:
                return None
            if (
                not isinstance(found, h5py.Dataset)
                or found.ndim != axes
                or found.dtype.kind not in "bui"
                or not all(found.shape)
            ):
                raise BadDataset(f"{file}: `{key}` is no array of whole numbers with {axes} axes")
            return tuple(found.shape)
    except OSError as error:
        raise BadDataset(f"{file} is no HDF5 file, or a damaged one: {error}") from error


def _require_channels(file: Path, count: int, channels: Sequence[Class]) -> None:
    if count != len(channels):
        raise BadDataset(f"{file} has masks of {count} classes, and {len(channels)} have a name")


def _volume_labels(file: Path, manifest: Manifest | None, channels: Sequence[Class]) -> LabelFile | None:
    volume, seg = _dataset_of_any(file, "volume"), _dataset(file, "seg", 4)
    if volume is None:
        raise BadDataset(f"{file} has no `volume`")
    if seg is None:
        return None
    if seg[:3] != volume:
        raise BadDataset(f"{file}: `volume` is {volume} and `seg` {seg}: they are of one grid")
    _require_channels(file, seg[3], channels)
    rows, columns, slices, _ = seg
    shape = (slices, rows, columns)

    def masks() -> Iterator[tuple[int, npt.NDArray[Any]]]:
        import h5py  # noqa: PLC0415

        with h5py.File(file, "r") as opened:
            for channel, each in enumerate(channels):
                yield each.value, _binary(opened["seg"][:, :, :, channel], f"{file}, channel {channel}").transpose(2, 0, 1)

    entry = entry_named(manifest, file.name)
    return LabelFile(str(file), entry, shape, None, partial(_load, masks, shape, channels, file, entry))


def _dataset_of_any(file: Path, key: str) -> tuple[int, ...] | None:
    import h5py  # noqa: PLC0415

    try:
        with h5py.File(file, "r") as opened:
            found = opened.get(key)
            return tuple(found.shape) if isinstance(found, h5py.Dataset) else None
    except OSError as error:
        raise BadDataset(f"{file} is no HDF5 file, or a damaged one: {error}") from error


def _binary(values: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    if values.size and (values.min() < 0 or values.max() > 1):
        raise BadDataset(f"{where}: a mask holds 0 and 1, and this one {values.min()} to {values.max()}")
    return values


def _load(masks: Any, shape: tuple[int, int, int], channels: Sequence[Class], where: Path, entry: Entry | None) -> Layers:
    try:
        made = layers_of_masks(masks(), shape, max((each.value for each in channels), default=0))
    except OSError as error:
        raise BadDataset(f"{where} is damaged: {error}") from error
    if entry is None:
        return made
    # A channel is there for every class of the set; which of them the image's labels tell apart, the manifest says.
    present = {value for value in made.of if made.mask(value).any()}
    return Layers(made.maps, {value: layer for value, layer in made.of.items() if value in present})


def _slice_labels(files: Sequence[Path], manifest: Manifest | None, channels: Sequence[Class]) -> Iterator[LabelFile]:
    scans: dict[tuple[Path, str], dict[int, Path]] = defaultdict(dict)
    for file in files:
        named = SLICE_NAME.fullmatch(file.stem)
        if named is None:
            raise BadDataset(f"{file} is not named as a slice is, such as 0123456_V01-Aug00_001.seg")
        if int(named[3]) == 0:
            scans[file.parent, f"{named[1]}_V{named[2]}"][int(named[4])] = file
    for (_, scan), slices in scans.items():
        yield _scan_labels(scan, slices, manifest, channels)


def _scan_labels(scan: str, slices: Mapping[int, Path], manifest: Manifest | None, channels: Sequence[Class]) -> LabelFile:
    ordered = [slices[number] for number in sorted(slices)]
    missing = sorted(set(range(1, max(slices) + 1)) - slices.keys())
    if missing:
        raise BadDataset(f"{ordered[0].parent}: scan {scan} has no masks of slice {missing[0]}")
    shapes = [_dataset(file, "data", 4) for file in ordered]
    first = shapes[0]
    for file, found in zip(ordered, shapes, strict=True):
        if found is None or found != first or found[2] != 1:
            raise BadDataset(f"{file}: `data` is {found}, and not (rows, columns, 1, classes) as in {ordered[0]}")
    rows, columns, _, count = first or (0, 0, 0, 0)
    _require_channels(ordered[0], count, channels)
    shape = (len(ordered), rows, columns)

    def masks() -> Iterator[tuple[int, npt.NDArray[Any]]]:
        import h5py  # noqa: PLC0415

        for channel, each in enumerate(channels):
            mask = np.zeros(shape, np.uint8)
            for place, file in enumerate(ordered):
                with h5py.File(file, "r") as opened:
                    mask[place] = _binary(opened["data"][:, :, 0, channel], f"{file}, channel {channel}")
            yield each.value, mask

    where = f"{ordered[0].parent / scan}-Aug00"
    entry = entry_named(manifest, scan)
    return LabelFile(where, entry, shape, None, partial(_load, masks, shape, channels, ordered[0], entry))
