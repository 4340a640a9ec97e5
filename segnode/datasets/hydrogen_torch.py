"""H2O Hydrogen Torch, 3-D image semantic segmentation: a zip of Parquet files and a folder of images.

train.pq, validation.pq and test.pq have the columns image, class_id, rle_mask and, where folds are asked for, fold; test.pq has
no labels. images/ID.npy are (slices, rows, columns) in the modality's units. Masks may overlap. What test.pq leaves out is
lost on purpose: the labels of the test split do not come back.
"""

import tokenize
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

import msgspec
import numpy as np

from segnode.datasets.classes import Classes
from segnode.datasets.formats import Item, LabelFile, entry_named
from segnode.datasets.images import Images
from segnode.datasets.layers import Layers, layers_of_masks
from segnode.datasets.manifest import Entry, Manifest
from segnode.datasets.rle import mask_of, runs_of
from segnode.errors import BadDataset

_IMAGES: Final = "images"
_RUNS: Final = ".runs"
_COLUMNS: Final = ("image", "class_id", "rle_mask")


class HydrogenTorch:
    """The format `hydrogen-torch`; see Format."""

    zipped = True
    takes_unplaced = False

    def write(self, item: Item, folder: Path) -> Iterator[Path]:
        """See Format; the runs wait in a file of their own until all rows are known."""
        image = folder / _IMAGES / f"{item.entry.id}.npy"
        image.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(1, "runs") as beside:
            found = [beside.submit(runs_of, labels) for labels in (item.labels.maps if item.labels else ())]
            item.images.written(lambda dtype: _write_npy(image, item.images, dtype))
        yield image
        if item.labels is None:
            return
        runs = {value: text for each in found for value, text in each.result().items()}
        kept = folder / _RUNS / f"{item.entry.id}.json"
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(msgspec.json.encode(runs))
        yield kept

    def finish(self, manifest: Manifest, folder: Path) -> None:
        """Write the Parquet files; a row at a time is held."""
        import pyarrow as pa  # noqa: PLC0415  seldom needed
        import pyarrow.parquet as pq  # noqa: PLC0415

        names = [each.name for each in manifest.classes]
        lists = pa.list_(pa.string())
        fields = [("image", pa.string()), ("class_id", lists), ("rle_mask", lists)]
        folds = [("fold", pa.int64())] if manifest.options.get("folds", "0") != "0" else []
        for split in dict.fromkeys(entry.split for entry in manifest.entries):
            schema = pa.schema([*(fields if split != "test" else fields[:1]), *folds])
            file = folder / f"{split}.pq"
            with pq.ParquetWriter(file, schema) as rows:
                for entry in (each for each in manifest.entries if each.split == split):
                    runs = _read_runs(folder, entry.id)
                    masks = [runs.get(each.value, "") for each in manifest.classes]
                    row = {"image": f"{entry.id}.npy", "class_id": names, "rle_mask": masks, "fold": entry.fold}
                    rows.write_table(pa.table({name: [row[name]] for name in schema.names}, schema=schema))
        for kept in (folder / _RUNS).glob("*.json"):
            kept.unlink()
        if (folder / _RUNS).exists():
            (folder / _RUNS).rmdir()

    def labels(self, path: Path, manifest: Manifest | None, classes: Classes) -> Iterator[LabelFile]:
        """See Format; a zip, or the folder that it was unpacked to."""
        if path.is_dir():
            files = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
            yield from _labels(path, {name: file.open for name, file in files.items()}, manifest, classes)
            return
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise BadDataset(f"{path} is no zip, or a broken one: {error}") from error
        with archive:
            _require_safe(archive, path)
            opens = {info.filename: _opens(archive, info, path) for info in archive.infolist() if not info.is_dir()}
            yield from _labels(path, opens, manifest, classes)


def _write_npy(path: Path, images: Images, dtype: "np.dtype[Any]") -> None:
    """Write an array (slices, rows, columns) as numpy.save does, slice by slice."""
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": images.grid.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, described)
        for plane in images.planes(dtype):
            file.write(np.ascontiguousarray(plane).data)


def _read_runs(folder: Path, id_: str) -> Mapping[int, str]:
    file = folder / _RUNS / f"{id_}.json"
    return msgspec.json.decode(file.read_bytes(), type=dict[int, str]) if file.exists() else {}


def _require_safe(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse names that lead out of the folder that a zip is unpacked to; nothing is unpacked here, but by others it may be."""
    for info in archive.infolist():
        parts = PurePosixPath(info.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in info.filename or info.external_attr >> 28 == 0o12:
            raise BadDataset(f"{path} has an entry that leads out of it, {info.filename!r}: it is not read")


Opens = Any


def _opens(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Opens:
    def open_(_mode: str = "rb") -> IO[bytes]:
        try:
            return archive.open(info)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError) as error:
            raise BadDataset(f"{info.filename} in {path} cannot be read: {error}") from error

    return open_


def _labels(path: Path, opens: Mapping[str, Opens], manifest: Manifest | None, classes: Classes) -> Iterator[LabelFile]:
    tables = [name for name in sorted(opens) if name.endswith((".pq", ".parquet"))]
    if not tables:
        raise BadDataset(f"{path} has no Parquet file (.pq)")
    images: dict[str, str] = {}
    for name in opens:
        if PurePosixPath(name).suffix == ".npy" and images.setdefault(PurePosixPath(name).name, name) != name:
            raise BadDataset(f"{path} has two images {PurePosixPath(name).name}: which one labels are of is not said")
    for table in tables:
        for number, row in enumerate(_rows(opens[table], f"{table} in {path}")):
            where = f"row {number} of {table} in {path}"
            image = row["image"]
            if not isinstance(image, str) or PurePosixPath(image).name not in images:
                raise BadDataset(f"{where}: its image {image!r} is not in the set")
            if "rle_mask" not in row:  # of a test split
                continue
            entry = entry_named(manifest, image)
            if entry is not None and entry.values is None:  # its image had no labels
                continue
            shape = _shape(opens[images[PurePosixPath(image).name]], f"{image} of {where}")
            yield LabelFile(where, entry, shape, None, _loading(row, shape, classes, entry, where))


def _rows(open_: Opens, where: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with open_("rb") as file:
            table = pq.ParquetFile(pa.BufferReader(file.read()))
        names = table.schema_arrow.names
        if "image" not in names or ("rle_mask" in names) != ("class_id" in names):
            raise BadDataset(f"{where}: its columns are {', '.join(names)}, and not {', '.join(_COLUMNS)}")
        for batch in table.iter_batches(batch_size=1, columns=[name for name in _COLUMNS if name in names]):
            yield from batch.to_pylist()
    except (pa.ArrowException, zipfile.BadZipFile, OSError, EOFError) as error:
        raise BadDataset(f"{where} is no Parquet file: {error}") from error


def _shape(open_: Opens, where: str) -> tuple[int, int, int]:
    """The shape of an image, by the header of its file."""
    try:
        with open_("rb") as file:
            version = np.lib.format.read_magic(file)
            reads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, _ = reads[version](file)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, tokenize.TokenError, OSError) as error:
        raise BadDataset(f"{where} is no array (.npy): {error}") from error
    if len(shape) != 3 or not all(shape):
        raise BadDataset(f"{where} has the shape {shape}: (slices, rows, columns) is needed")
    return int(shape[0]), int(shape[1]), int(shape[2])


def _loading(
    row: Mapping[str, Any], shape: tuple[int, int, int], classes: Classes, entry: Entry | None, where: str
) -> Callable[[], Layers]:
    names, texts = row["class_id"], row["rle_mask"]
    if not isinstance(names, list) or not isinstance(texts, list) or len(names) != len(texts):
        raise BadDataset(f"{where}: class_id and rle_mask are not lists of one length")
    if len(set(names)) < len(names):
        raise BadDataset(f"{where}: a class is in class_id twice")
    masked = [(name, text) for name, text in zip(names, texts, strict=True) if text]
    if not all(isinstance(name, str) and name and isinstance(text, str) for name, text in masked):
        raise BadDataset(f"{where}: a mask has no name in class_id, or is no text")
    found = [(classes.of_name(name, where).value, text) for name, text in masked]

    def masks() -> Iterator[tuple[int, Any]]:
        for value, text in found:
            try:
                yield value, mask_of(text, shape)
            except ValueError as error:
                raise BadDataset(f"{where}, the mask of class {value}: {error}") from error

    def load() -> Layers:
        made = layers_of_masks(masks(), shape, max((value for value, _ in found), default=0))
        # A row lists every class there might be; which of them the image's labels tell apart, the manifest says.
        looked_for = () if entry else (classes.of_name(name, where).value for name in names)
        return Layers(made.maps, {**dict.fromkeys(looked_for, 0), **made.of})

    return load
