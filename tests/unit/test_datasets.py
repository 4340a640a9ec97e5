"""Training sets: what is exported comes back the same, foreign readers open it, and what is wrong leaves nothing."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import h5py
import nibabel
import nrrd
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from pydicom import dcmread

from segnode.cli import main
from segnode.datasets.classes import Classes
from segnode.datasets.exporting import Export, export_dataset
from segnode.datasets.formats import FormatName, LabelFile
from segnode.datasets.importing import Import, import_dataset
from segnode.datasets.manifest import Entry, manifest_of
from segnode.datasets.medsegpy import SLICE_NAME
from segnode.datasets.rle import mask_of, runs_of
from segnode.datasets.sources import FolderSource
from segnode.datasets.splits import Split, split_of_patients
from segnode.errors import BadDataset, CannotWrite, GridMismatch, LabelError
from segnode.seg.arrays import volume
from segnode.seg.read import open_segmentation
from tests.datasets import (
    FORMATS,
    NAMES,
    Back,
    copied,
    described,
    oblique,
    there_and_back,
    write_seg,
    write_series,
)

Sample = Callable[[str], Path]
Form = tuple[FormatName, str]

each_format = pytest.mark.parametrize("form", FORMATS, ids=NAMES)


def run(*words: object) -> Result:
    """Run a command of `segnode dataset`."""
    return CliRunner().invoke(main, ["dataset", *map(str, words)])


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """An oblique CT of 4 x 5 x 7 voxels with a LABELMAP of segments 2 and 7; 9 is empty."""
    folder = tmp_path / "series"
    images = write_series(folder, oblique(), (4, 5, 7))
    write_seg(folder / "seg.dcm", labels(), images, [described(2), described(7), described(9)])
    return folder


@pytest.fixture
def overlapping(tmp_path: Path) -> Path:
    """The same CT with a BINARY of two segments that overlap."""
    folder = tmp_path / "overlapping"
    images = write_series(folder, oblique(), (4, 5, 7))
    stack = np.zeros((4, 5, 7, 2), np.uint8)
    stack[1:3, 1:4, 1:5, 0] = stack[2:4, 2:5, 3:7, 1] = 1
    write_seg(folder / "seg.dcm", stack, images, [described(1), described(2)])
    return folder


def labels() -> npt.NDArray[np.uint8]:
    """Labels in which no two sides are alike."""
    array = np.zeros((4, 5, 7), np.uint8)
    array[1:3, 1:4, 2:6] = 2
    array[2, 0, 0] = array[3, 4, 6] = 7
    return array


@each_format
def test_labels_come_back_where_they_were(form: Form, series: Path, tmp_path: Path) -> None:
    """On an oblique grid, with gaps in the numbers and an empty segment."""
    there_and_back(series, tmp_path, form).require_same(series / "seg.dcm")


@each_format
def test_overlapping_segments_come_back(form: Form, overlapping: Path, tmp_path: Path) -> None:
    """As one BINARY."""
    there_and_back(overlapping, tmp_path, form).require_same(overlapping / "seg.dcm")


@each_format
def test_overlapping_segments_come_back_as_several_labelmaps(form: Form, overlapping: Path, tmp_path: Path) -> None:
    """Where a split is asked for."""
    export_dataset(FolderSource(overlapping), tmp_path / "set", Export(form[0], layout=form[1]))
    made = import_dataset(tmp_path / "set", FolderSource(overlapping), tmp_path / "back", Import(form[0], overlap="split"))
    assert len(made) == 2


@each_format
@pytest.mark.parametrize("seg", ["dcmqi/liver.dcm", "dcmqi/partial_overlaps.dcm"])
def test_dcmqi_samples_come_back(form: Form, seg: str, sample: Sample, tmp_path: Path) -> None:
    """Its liver, and its partial overlaps."""
    folder = copied([*sample("dcmqi/ct-3slice").iterdir(), sample(seg)], tmp_path / "sample")
    there_and_back(folder, tmp_path, form).require_same(sample(seg))


@each_format
def test_a_sparse_labelmap_with_another_background_comes_back(form: Form, sample: Sample, tmp_path: Path) -> None:
    """Its Pixel Padding Value is 5, and a slice has no frame."""
    seg = sample("dcmqi/sparse-labelmap-ppv5.dcm")
    folder = copied([*sample("dcmqi/24x38x3/image").iterdir(), seg], tmp_path / "sample")
    there_and_back(folder, tmp_path, form).require_same(seg)


@each_format
def test_a_fractional_sample_comes_back_from_a_threshold_on(form: Form, sample: Sample, tmp_path: Path) -> None:
    """Highdicom's, on three slices of the CT that pydicom ships."""
    from pydicom.data import get_testdata_file

    seg = sample("highdicom/seg_image_ct_true_fractional.dcm")
    images = [get_testdata_file(f"dicomdirtests/77654033/CT2/{number}") for number in (17136, 17166, 17196)]
    folder = copied([*map(Path, filter(None, map(str, images))), seg], tmp_path / "sample")
    there_and_back(folder, tmp_path, form, threshold=0.5).require_same(seg, threshold=0.5)


def dictionary_of(table: dict[int, str], file: Path) -> Path:
    """A label dictionary of names."""
    file.write_text(
        "\n".join(
            f'[[segment]]\nvalue = {value}\nlabel = "{name}"\ncategory = ["SCT", "123037004", "Anatomical Structure"]\n'
            f'type = ["99TS", "{value}", "{name}"]\n'
            for value, name in table.items()
        )
    )
    return file


def test_labels_of_totalsegmentator_become_a_segmentation(sample: Sample, sample_ct: Path, tmp_path: Path) -> None:
    """Without a manifest, by their affine and by the names in the file; and they come back through every format."""
    file = sample("totalsegmentator/example_seg_dicom.nii.gz")
    loaded = nibabel.load(file)
    text = loaded.header.extensions[0].get_content().decode()
    table = {int(key): name for key, name in re.findall(r'Key="(\d+)"[^>]*><!\[CDATA\[(.*?)\]\]', text)}
    words = ("--images", sample_ct, "--labels", dictionary_of(table, tmp_path / "labels.toml"), "--out", tmp_path / "made")
    result = run("import", "--format", "nifti", file, *words)
    assert result.exit_code == 0, result.output
    (made,) = (tmp_path / "made").iterdir()
    folder = copied([*sample_ct.iterdir(), made], tmp_path / "both")
    for place, form in enumerate(FORMATS):
        there_and_back(folder, tmp_path / str(place), form).require_same(made)


def test_nibabel_reads_image_and_labels_in_one_grid(series: Path, tmp_path: Path) -> None:
    """In modality units, RAS, with the names of the labels."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("nifti"))
    image = nibabel.load(next((tmp_path / "set").rglob("images/*.nii.gz")))
    label = nibabel.load(next((tmp_path / "set").rglob("labels/*.nii.gz")))
    assert np.allclose(image.affine, label.affine)
    expected = np.diag([-1.0, -1, 1, 1]) @ oblique()[:, [2, 1, 0, 3]]
    assert np.allclose(image.affine, expected, atol=1e-4)
    assert np.asarray(image.dataobj)[3, 2, 1] == 2 * 7 + 3 + 1 - 1024
    assert np.array_equal(np.asarray(label.dataobj).transpose(2, 1, 0), labels())
    assert b">Thing 7<" in label.header.extensions[0].content


def test_pynrrd_reads_what_slicer_reads(series: Path, tmp_path: Path) -> None:
    """Names, values, colours and terminology of segments, and the same labels."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("nrrd"))
    array, header = nrrd.read(str(next((tmp_path / "set").rglob("*.seg.nrrd"))))
    assert np.array_equal(array.transpose(2, 1, 0), labels())
    assert (header["Segment1_Name"], header["Segment1_LabelValue"], header["Segment1_Layer"]) == ("Thing 7", "7", "0")
    assert "~SCT^85756007^Tissue~99TEST^T7^Thing 7~" in header["Segment1_Tags"]
    assert np.allclose(header["space origin"], oblique()[:3, 3])


def test_names_of_segments_in_any_language_come_back_from_nrrd(series: Path, tmp_path: Path) -> None:
    """They are UTF-8 in the header, as 3D Slicer has them, and the labels are found again by them."""
    (file,) = (path for path in series.rglob("*") if path.is_file() and dcmread(path).Modality == "SEG")
    segmentation = dcmread(file)
    segmentation.SpecificCharacterSet = "ISO_IR 192"
    segmentation.SegmentSequence[0].SegmentLabel = "Gefäße 肝"
    segmentation.save_as(file)
    export_dataset(FolderSource(series), tmp_path / "set", Export("nrrd"))
    labels_file = next((tmp_path / "set").rglob("*.seg.nrrd"))
    assert "_Name:=Gefäße 肝\n".encode() in labels_file.read_bytes()
    import_dataset(tmp_path / "set", FolderSource(series), tmp_path / "back", Import("nrrd"))
    (back,) = (tmp_path / "back").iterdir()
    assert "Gefäße 肝" in {segment.label for segment in open_segmentation(back).segments}


@pytest.mark.parametrize("content", [b"", b"NRRD0005\n", b"NRRD0005\n\n", b"\xff\xfe\n" * 9])
def test_label_that_is_no_nrrd_is_named(series: Path, tmp_path: Path, content: bytes) -> None:
    """A file that is empty, cut off in its header, or something else."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("nrrd"))
    file = next((tmp_path / "set").rglob("*.seg.nrrd"))
    file.write_bytes(content)
    with pytest.raises(BadDataset, match=f"{file.name} is no NRRD file"):
        import_dataset(tmp_path / "set", FolderSource(series), tmp_path / "back", Import("nrrd"))


def test_layers_of_overlapping_segments_are_the_first_axis(overlapping: Path, tmp_path: Path) -> None:
    """As Slicer has them."""
    export_dataset(FolderSource(overlapping), tmp_path / "set", Export("nrrd"))
    array, header = nrrd.read(str(next((tmp_path / "set").rglob("*.seg.nrrd"))))
    assert array.shape == (2, 7, 5, 4)
    assert (header["kinds"][0], header["Segment0_Layer"], header["Segment1_Layer"]) == ("list", "0", "1")


def rle2mask_3d(mask_rle: str, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """What the page of Hydrogen Torch defines: 1-based starts and lengths in an array of columns, rows, slices.

    `shape` is (rows, columns, slices); the mask is (slices, rows, columns).
    """
    rows, columns, slices = shape
    numbers = [int(word) for word in mask_rle.split()]
    flat = np.zeros(rows * columns * slices, np.uint8)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        flat[start - 1 : start - 1 + length] = 1
    return flat.reshape(columns, rows, slices).transpose(2, 1, 0)


def test_the_decoder_of_the_page_gives_our_masks(overlapping: Path, tmp_path: Path) -> None:
    """Rows that pyarrow reads, images that NumPy reads, and masks as the page decodes them, also where they overlap."""
    export_dataset(FolderSource(overlapping), tmp_path / "set.zip", Export("hydrogen-torch", split=Split(folds=2)))
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    (row,) = pq.read_table(tmp_path / "unpacked/train.pq").to_pylist()
    assert row["class_id"] == ["Thing 1", "Thing 2"]
    assert row["fold"] in (0, 1)
    image = np.load(tmp_path / "unpacked/images" / row["image"])
    assert image.shape == (4, 5, 7)
    expected = np.zeros((2, 4, 5, 7), np.uint8)
    expected[0, 1:3, 1:4, 1:5] = expected[1, 2:4, 2:5, 3:7] = 1
    for text, mask in zip(row["rle_mask"], expected, strict=True):
        assert np.array_equal(rle2mask_3d(text, (5, 7, 4)), mask)


def test_a_test_split_has_no_labels(tmp_path: Path) -> None:
    """Its Parquet file has the images alone; the others come back."""
    folder = tmp_path / "many"
    for number in range(4):
        images = write_series(folder / str(number), oblique(), (4, 5, 7), seed=str(number))
        write_seg(folder / str(number) / "seg.dcm", labels(), images, [described(2), described(7)])
    split = Split((0.5, 0.25, 0.25), seed=3)
    done = export_dataset(FolderSource(folder), tmp_path / "set.zip", Export("hydrogen-torch", split=split))
    assert [entry.split for entry in done.manifest.entries].count("test") == 1
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        table = pq.read_table(pa.BufferReader(archive.read("test.pq")))
    assert table.column_names == ["image"]
    made = import_dataset(tmp_path / "set.zip", FolderSource(folder), tmp_path / "back", Import("hydrogen-torch"))
    assert len(made) == 3


def test_h5py_reads_a_volume(series: Path, tmp_path: Path) -> None:
    """`volume` is (rows, columns, slices), `seg` the same with a channel for each class of the set."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("medsegpy"))
    with h5py.File(next((tmp_path / "set").rglob("*.h5"))) as file:
        assert file["volume"].shape == (5, 7, 4)
        assert file["volume"][2, 3, 1] == 2 * 7 + 3 + 1 - 1024
        assert np.array_equal(file["seg"][..., 1].transpose(2, 0, 1), labels() == 7)


def image_of_nifti(folder: Path) -> npt.NDArray[np.number]:
    """The image of a set, (slices, rows, columns)."""
    return np.asanyarray(nibabel.load(next(folder.glob("train/images/*.nii.gz"))).dataobj).T


def image_of_hydrogen_torch(file: Path) -> npt.NDArray[np.number]:
    """The same."""
    with zipfile.ZipFile(file) as archive, archive.open("images/0000001_V00.npy") as image:
        return np.load(image)


def image_of_medsegpy(folder: Path) -> npt.NDArray[np.number]:
    """The same, of either layout."""
    volumes = sorted(folder.glob("train/*.h5")) or sorted(folder.glob("train/*.im"))
    key = "volume" if volumes[0].suffix == ".h5" else "data"
    return np.concatenate([h5py.File(file)[key][:] for file in volumes], axis=2).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("form", "read"),
    [
        (("nifti", ""), image_of_nifti),
        (("hydrogen-torch", ""), image_of_hydrogen_torch),
        (("medsegpy", "3d"), image_of_medsegpy),
        (("medsegpy", "2d"), image_of_medsegpy),
    ],
)
@pytest.mark.parametrize(("stored", "dtype"), [(-31744, np.int16), (-31745, np.int32)], ids=["fits", "does not fit"])
def test_images_are_as_small_as_their_values(
    form: Form, read: Callable[[Path], npt.NDArray[np.number]], stored: int, dtype: type, series: Path, tmp_path: Path
) -> None:
    """A CT of 16 bits with an intercept may reach beyond int16: int32 is for one that does, be it in its last slice alone."""
    for file in series.glob("*-*.dcm"):
        image = dcmread(file)
        image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 15, 1
        if file.stem.endswith("-3"):
            image.PixelData = np.full((5, 7), stored, "<i2").tobytes()
        image.save_as(file)
    export_dataset(FolderSource(series), tmp_path / "set", Export(form[0], layout=form[1]))
    image = read(tmp_path / "set")
    assert image.dtype == dtype
    assert image[0, 0, 0] == -1024
    assert (image[3] == stored - 1024).all()


def test_h5py_reads_slices_under_names_of_the_page(series: Path, tmp_path: Path) -> None:
    """`%07d_V%02d-Aug%02d_%03d` from slice 1, `data` of an image and of its masks, and a dataset dict for each."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("medsegpy", layout="2d"))
    names = sorted(file.name for file in (tmp_path / "set/train").iterdir())
    assert names[:2] == ["0000001_V00-Aug00_001.im", "0000001_V00-Aug00_001.seg"]
    assert all(SLICE_NAME.fullmatch(Path(name).stem) for name in names)
    with h5py.File(tmp_path / "set/train/0000001_V00-Aug00_003.seg") as file:
        assert np.array_equal(file["data"][:, :, 0, 0], labels()[2] == 2)
        assert file["data"].shape == (5, 7, 1, 3)
    with h5py.File(tmp_path / "set/train/0000001_V00-Aug00_003.im") as file:
        assert file["data"].shape == (5, 7, 1)
    row = json.loads((tmp_path / "set/dataset.json").read_text())["splits"]["train"]["dicts"][2]
    assert (row["slice_id"], row["scan_num_slices"], row["subject_id"], row["time_point"]) == (3, 4, 1, 0)
    assert np.allclose(row["scan_spacing"], (0.7, 0.9, 2.5))


def test_register_registers_dicts_and_metadata(series: Path, tmp_path: Path) -> None:
    """With MedSegPy's catalogues in its place; super-classes have tuples for ids."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("medsegpy", layout="2d", collate=("Both=Thing 2,Thing 7",)))
    registered = run_register(tmp_path / "set")
    dicts, metadata = registered["dicts"]["set_train"], registered["metadata"]["set_train"]
    assert Path(dicts[0]["file_name"]).is_file()
    assert Path(dicts[0]["sem_seg_file"]).is_file()
    assert metadata["category_ids"] == [0, 1, 2, (0, 1)]
    assert metadata["categories"][3] == "Both"
    assert metadata["category_id_to_contiguous_id"][0, 1] == 3
    assert metadata["evaluator_type"] == "SemSegEvaluator"


def run_register(folder: Path) -> dict[str, dict[str, object]]:
    """What register.py tells catalogues that keep what they are told."""
    kept: dict[str, dict[str, object]] = {"dicts": {}, "metadata": {}}

    class DatasetCatalog:
        @staticmethod
        def register(name: str, dicts: Callable[[], object]) -> None:
            kept["dicts"][name] = dicts()

    class Metadata:
        def __init__(self, name: str) -> None:
            self.name = name

        def set(self, **values: object) -> None:
            kept["metadata"][self.name] = values

    class MetadataCatalog:
        get = Metadata

    import sys
    from types import ModuleType

    module = ModuleType("medsegpy.data")
    module.DatasetCatalog, module.MetadataCatalog = DatasetCatalog, MetadataCatalog  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "medsegpy", ModuleType("medsegpy"))
        patch.setitem(sys.modules, "medsegpy.data", module)
        file = folder / "register.py"
        exec(compile(file.read_text(), file, "exec"), {"__file__": str(file), "__name__": "register"})
    return kept


@each_format
def test_a_set_does_not_say_who_it_is_of(form: Form, series: Path, tmp_path: Path) -> None:
    """Neither a name nor a UID is in any file; --map, outside, has them."""
    out, map_file = tmp_path / "set", tmp_path / "map.json"
    done = export_dataset(FolderSource(series), out, Export(form[0], layout=form[1]), map_file=map_file)
    (row,) = json.loads(map_file.read_text())
    files = [out] if out.is_file() else [file for file in out.rglob("*") if file.is_file()]
    secrets = [b"SECRET", b"Marker", b"MARKER", *(row[key].encode() for key in ("StudyInstanceUID", "SeriesInstanceUID"))]
    secrets += [uid.encode() for uid in (*row["instances"], *row["segmentations"])]
    for file in files:
        content = file.read_bytes()
        assert not [secret for secret in secrets if secret in content], file
    assert len(row["instances"]) == 4
    assert map_file.stat().st_mode & 0o077 == 0
    assert done.manifest.deidentification


@each_format
def test_images_without_labels_are_taken_where_that_is_asked(form: Form, series: Path, tmp_path: Path) -> None:
    """They are in the set, and nothing comes back of them."""
    write_series(series / "bare", oblique(), (3, 5, 7), seed="2")
    done = export_dataset(FolderSource(series), tmp_path / "set", Export(form[0], layout=form[1], unlabelled=True))
    assert [entry.values is None for entry in done.manifest.entries].count(True) == 1
    made = import_dataset(tmp_path / "set", FolderSource(series), tmp_path / "back", Import(form[0]))
    Back([each.file for each in made]).require_same(series / "seg.dcm")


def test_identities_are_kept_where_that_is_asked(series: Path, tmp_path: Path) -> None:
    """The manifest then says who the images are of."""
    done = export_dataset(FolderSource(series), tmp_path / "set", Export("nifti", keep_identity=True))
    (entry,) = done.manifest.entries
    assert entry.identity is not None
    assert entry.identity["PatientID"] == "SECRET1"
    assert not done.manifest.deidentification


def test_a_set_without_a_manifest_comes_back_on_an_assumed_grid(series: Path, tmp_path: Path) -> None:
    """By a dictionary, in a format that does not say where its voxels lie; without the option it is an error."""
    export_dataset(FolderSource(series), tmp_path / "set.zip", Export("hydrogen-torch"))
    rewritten(tmp_path / "set.zip", lambda contents: contents.pop("manifest.json"))
    names = dictionary_of({2: "Thing 2", 7: "Thing 7", 9: "Thing 9"}, tmp_path / "labels.toml")
    words = (
        "--format",
        "hydrogen-torch",
        tmp_path / "set.zip",
        "--images",
        series,
        "--labels",
        names,
        "--out",
        tmp_path / "made",
    )
    refused = run("import", *words)
    assert refused.exit_code == 1
    assert "--assume-grid" in refused.output
    assert run("import", *words, "--assume-grid").exit_code == 0
    (made,) = (tmp_path / "made").iterdir()
    found = open_segmentation(made)
    assert found.numbers == (2, 7, 9)
    assert np.array_equal(volume(found).array, labels())


def test_a_part_of_the_grid_that_slicer_cut_out_lies_where_it_did(series: Path, tmp_path: Path) -> None:
    """A smaller array with an origin of its own, in right-anterior-superior."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("nrrd"))
    file = str(next((tmp_path / "set").rglob("*.seg.nrrd")))
    array, header = nrrd.read(file)
    header["space origin"] = np.diag([-1, -1, 1]) @ (header["space origin"] + header["space directions"][2])
    header["space directions"] = header["space directions"] @ np.diag([-1, -1, 1])
    header["space"] = "right-anterior-superior"
    nrrd.write(file, array[:, :, 1:], header)
    made = import_dataset(tmp_path / "set", FolderSource(series), tmp_path / "back", Import("nrrd"))
    Back([each.file for each in made]).require_same(series / "seg.dcm")


def test_the_map_does_not_go_into_the_set(series: Path, tmp_path: Path) -> None:
    """It would say who the images are of."""
    with pytest.raises(CannotWrite, match="stays outside"):
        export_dataset(FolderSource(series), tmp_path / "set", Export("nifti"), map_file=tmp_path / "set/map.json")


@each_format
def test_a_repeat_does_nothing(form: Form, series: Path, tmp_path: Path) -> None:
    """Neither an export nor an import of the same writes anything."""
    out, back = tmp_path / "set", tmp_path / "back"
    there_and_back(series, tmp_path, form)
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in (out, *out.rglob("*"), *back.rglob("*"))}
    assert export_dataset(FolderSource(series), out, Export(form[0], layout=form[1])).was_there
    assert all(each.was_there for each in import_dataset(out, FolderSource(series), back, Import(form[0])))
    assert before == {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in before}
    assert not list(tmp_path.glob(".*"))


@each_format
def test_a_repeat_elsewhere_is_the_same_bytes(form: Form, series: Path, tmp_path: Path) -> None:
    """Whoever has the segmentations of an import is sent nothing new by another one of the same set."""
    there_and_back(series, tmp_path, form)
    import_dataset(tmp_path / "set", FolderSource(series), tmp_path / "again", Import(form[0]))
    first, second = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("back", "again"))
    assert first == second


def test_another_set_is_not_overwritten(series: Path, tmp_path: Path) -> None:
    """What is there under its name was made with another seed."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("nifti"))
    with pytest.raises(CannotWrite, match="is there already"):
        export_dataset(FolderSource(series), tmp_path / "set", Export("nifti", split=Split(seed=9)))


def two_series(folder: Path) -> Path:
    """Two patients; the images of the second that is exported are damaged."""
    for number in range(2):
        images = write_series(folder / str(number), oblique(), (4, 5, 7), seed=str(number))
        write_seg(folder / str(number) / "seg.dcm", labels(), images, [described(2), described(7)])
    return folder


class Failing(FolderSource):
    """A folder that cannot be read any more after some series."""

    def __init__(self, folder: Path, after: int) -> None:
        super().__init__(folder)
        object.__setattr__(self, "left", [after])

    def files(self, series):
        """Fail when its time has come."""
        if not series.is_segmentation:
            if not self.left[0]:
                raise BadDataset("the folder is gone")
            self.left[0] -= 1
        return super().files(series)


@each_format
def test_an_export_that_broke_off_goes_on(form: Form, tmp_path: Path) -> None:
    """Nothing is there under its name before it is whole; what was finished is not made again with --resume."""
    folder, out = two_series(tmp_path / "two"), tmp_path / "set"
    asked = Export(form[0], layout=form[1])
    with pytest.raises(BadDataset, match="the folder is gone"):
        export_dataset(Failing(folder, after=1), out, asked)
    assert not out.exists()
    done = export_dataset(Failing(folder, after=1), out, asked, resume=True)
    assert len(done.manifest.entries) == 2
    made = import_dataset(out, FolderSource(folder), tmp_path / "back", Import(form[0]))
    assert len(made) == 2
    assert not list(tmp_path.glob(".*"))


def test_an_export_that_could_not_begin_leaves_nothing(series: Path, tmp_path: Path) -> None:
    """Not even a folder to go on in."""
    with pytest.raises(BadDataset, match="the folder is gone"):
        export_dataset(Failing(series, after=0), tmp_path / "set", Export("nrrd"))
    assert [file.name for file in tmp_path.iterdir()] == ["series"]


def test_splits_are_by_patient_and_repeatable() -> None:
    """As many patients as the fractions say, the same for the same seed."""
    patients = [f"p{number}" for number in range(20)]
    split = split_of_patients(patients, Split((0.8, 0.1, 0.1), seed=4))
    assert sorted(name for name, _ in split.values()).count("train") == 16
    assert split == split_of_patients(reversed(patients), Split((0.8, 0.1, 0.1), seed=4))
    assert split != split_of_patients(patients, Split((0.8, 0.1, 0.1), seed=5))
    assert {fold for _, fold in split_of_patients(patients, Split(folds=5)).values()} == set(range(5))


def test_labels_beside_the_images_are_refused_with_both_affines(series: Path, tmp_path: Path) -> None:
    """A NIfTI that is shifted by half a voxel, and no manifest."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("nifti"))
    file = next((tmp_path / "set").rglob("labels/*.nii.gz"))
    image = nibabel.load(file)
    moved = image.affine.copy()
    moved[:3, 3] += image.affine[:3, 0] / 2
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), moved), tmp_path / "moved.nii.gz")
    (tmp_path / "labels.toml").write_text(dictionary_of({2: "two", 7: "seven"}, tmp_path / "l.toml").read_text())
    words = ("--images", series, "--labels", tmp_path / "labels.toml", "--out", tmp_path / "made")
    result = run("import", "--format", "nifti", tmp_path / "moved.nii.gz", *words)
    assert result.exit_code == 1
    assert result.output.count("0.0000     0.0000     0.0000     1.0000") == 2
    assert not (tmp_path / "made").exists()
    assert run("import", "--format", "nifti", tmp_path / "moved.nii.gz", *words, "--assume-grid").exit_code == 0


def test_a_manifest_does_not_move_labels(series: Path, tmp_path: Path) -> None:
    """An affine that does not fit the images that the manifest names is an error all the same."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("nifti"))
    file = next((tmp_path / "set").rglob("labels/*.nii.gz"))
    image = nibabel.load(file)
    data = np.asarray(image.dataobj).copy()
    nibabel.save(nibabel.Nifti1Image(data, image.affine @ np.diag([1, 1.1, 1, 1])), file)
    with pytest.raises(GridMismatch, match="beside those of the images"):
        import_dataset(tmp_path / "set", FolderSource(series), tmp_path / "back", Import("nifti"))


def test_labels_in_another_orientation_come_back_where_they_were(series: Path, tmp_path: Path) -> None:
    """Axes that are swapped and flipped, as other tools write them, with an affine that says so."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("nifti"))
    file = next((tmp_path / "set").rglob("labels/*.nii.gz"))
    image = nibabel.load(file)
    turned = image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nibabel.save(turned, file)
    made = import_dataset(tmp_path / "set", FolderSource(series), tmp_path / "back", Import("nifti"))
    Back([each.file for each in made]).require_same(series / "seg.dcm")


def test_labels_that_fit_two_series_are_refused(series: Path, tmp_path: Path) -> None:
    """Both are named."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("nifti"))
    write_series(series / "again", oblique(), (4, 5, 7), seed="2")
    (tmp_path / "set/manifest.json").unlink()
    words = ("--images", series, "--labels", dictionary_of({2: "Thing 2", 7: "Thing 7"}, tmp_path / "l.toml"))
    result = run("import", "--format", "nifti", tmp_path / "set", *words, "--out", tmp_path / "made")
    assert result.exit_code == 1
    assert "fits several image series" in result.output


def test_a_value_without_a_name_is_refused(series: Path, tmp_path: Path) -> None:
    """It is named, and so is the file."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("nifti"))
    file = next((tmp_path / "set").rglob("labels/*.nii.gz"))
    image = nibabel.load(file)
    data = np.asarray(image.dataobj).copy()
    data[0, 0, 0] = 5
    nibabel.save(nibabel.Nifti1Image(data, image.affine), file)
    with pytest.raises(LabelError, match=r"0000001_V00.nii.gz: the value 5 has no name"):
        import_dataset(tmp_path / "set", FolderSource(series), tmp_path / "back", Import("nifti"))
    assert not list(tmp_path.glob(".back*"))


@each_format
def test_damaged_files_are_named_and_nothing_is_written(form: Form, series: Path, tmp_path: Path) -> None:
    """A set whose label file, or zip, is cut off."""
    out = tmp_path / "set"
    export_dataset(FolderSource(series), out, Export(form[0], layout=form[1]))
    suffixes = (".seg.nrrd", ".h5", ".seg")
    found = [file for file in out.rglob("*") if file.name.endswith(suffixes) or "labels" in file.parts]
    file = out if out.is_file() else next(file for file in found if file.is_file())
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BadDataset, match=re.escape(file.name)):
        import_dataset(out, FolderSource(series), tmp_path / "back", Import(form[0]))
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob(".back*"))


def rewritten(out: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The zip with other contents."""
    with zipfile.ZipFile(out) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return out


def with_row(contents: dict[str, bytes], **values: object) -> None:
    """Change the row of train.pq."""
    table = pq.read_table(pa.BufferReader(contents["train.pq"]))
    row = {**table.to_pylist()[0], **values}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row]), sink)
    contents["train.pq"] = sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda contents: contents.update({"../evil.npy": b""}), "leads out of it"),
        (lambda contents: contents.update({"/etc/evil": b""}), "leads out of it"),
        (lambda contents: contents.pop("images/0000001_V00.npy"), "row 0 of train.pq .*is not in the set"),
        (lambda contents: contents.update({"images/0000001_V00.npy": b"x"}), "row 0 of train.pq .*no array"),
        (lambda contents: contents.update({"other/0000001_V00.npy": b"x"}), "two images 0000001_V00.npy"),
        (lambda contents: contents.pop("train.pq"), "no Parquet file"),
        (lambda contents: contents.update({"train.pq": b"x"}), "train.pq in .* is no Parquet file"),
        (lambda contents: with_row(contents, class_id=["Thing 2"]), "row 0 .*not lists of one length"),
        (lambda contents: with_row(contents, class_id=["Thing 2", "a", "b"]), "row 0 .*'a' is not in the label dictionary"),
        (lambda contents: with_row(contents, rle_mask=["1 999", "", ""]), "row 0 .*reach beyond the image"),
        (lambda contents: with_row(contents, rle_mask=["1 2 3", "", ""]), "row 0 .*not pairs"),
        (lambda contents: with_row(contents, class_id=["", "a", "b"], rle_mask=["1 2", "", ""]), "row 0 .*no name"),
    ],
)
def test_a_bad_zip_is_refused_with_its_row(
    change: Callable[[dict[str, bytes]], None], said: str, series: Path, tmp_path: Path
) -> None:
    """What is missing, broken or would lead out of a folder."""
    export_dataset(FolderSource(series), tmp_path / "set.zip", Export("hydrogen-torch"))
    rewritten(tmp_path / "set.zip", change)
    with pytest.raises((BadDataset, LabelError), match=said):
        import_dataset(tmp_path / "set.zip", FolderSource(series), tmp_path / "back", Import("hydrogen-torch"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["series", "set.zip"]


def test_a_zip_that_was_cut_off_is_said_to_be_broken(series: Path, tmp_path: Path) -> None:
    """Its manifest is not what is missing."""
    export_dataset(FolderSource(series), tmp_path / "set.zip", Export("hydrogen-torch"))
    whole = (tmp_path / "set.zip").read_bytes()
    (tmp_path / "set.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadDataset, match="set.zip is no zip, or a broken one"):
        import_dataset(tmp_path / "set.zip", FolderSource(series), tmp_path / "back", Import("hydrogen-torch"))


@pytest.mark.parametrize(
    ("format_", "collate"),
    [("medsegpy", "Both=Thing 2,Thing 3"), ("medsegpy", "Thing 2=Thing 7"), ("medsegpy", "Both"), ("nifti", "Both=Thing 2")],
)
def test_super_classes_are_looked_at_before_anything_is_written(
    format_: FormatName, collate: str, series: Path, tmp_path: Path
) -> None:
    """They are made of classes of the set, have a name of their own, and are MedSegPy's alone."""
    with pytest.raises(BadDataset, match="--collate"):
        export_dataset(FolderSource(series), tmp_path / "set", Export(format_, collate=(collate,)), progress=never)
    assert not list(tmp_path.glob("*set*"))


def never(_entries: object) -> Iterator[Entry]:
    """Progress that is not to be made."""
    raise AssertionError("a series was about to be written")


def test_rows_are_read_one_after_the_other(tmp_path: Path) -> None:
    """The labels of one row are imported before the next is read: the second is broken."""
    for number in (1, 2):
        images = write_series(tmp_path / "two" / str(number), oblique(), (4, 5, 7), str(number))
        write_seg(tmp_path / "two" / str(number) / "seg.dcm", labels(), images, [described(2), described(7)])
    export_dataset(FolderSource(tmp_path / "two"), tmp_path / "set.zip", Export("hydrogen-torch"))
    rewritten(tmp_path / "set.zip", lambda contents: contents.update({"images/0000002_V00.npy": b"x"}))
    read: list[str] = []

    def seen(found: Iterable[LabelFile]) -> Iterator[LabelFile]:
        for label in found:
            read.append(label.where)
            yield label

    with pytest.raises(BadDataset, match="row 1 of train.pq"):
        import_dataset(
            tmp_path / "set.zip", FolderSource(tmp_path / "two"), tmp_path / "back", Import("hydrogen-torch"), progress=seen
        )
    assert len(read) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["set.zip", "two"]


def test_a_wrong_number_of_channels_is_refused(series: Path, tmp_path: Path) -> None:
    """The file is named."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("medsegpy"))
    file = next((tmp_path / "set").rglob("*.h5"))
    with h5py.File(file, "a") as opened:
        del opened["seg"]
        opened["seg"] = np.zeros((5, 7, 4, 2), np.uint8)
    with pytest.raises(BadDataset, match=rf"{file.name} has masks of 2 classes"):
        import_dataset(tmp_path / "set", FolderSource(series), tmp_path / "back", Import("medsegpy"))


def test_a_missing_slice_is_named(series: Path, tmp_path: Path) -> None:
    """Of a scan that is in slices."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("medsegpy", layout="2d"))
    (tmp_path / "set/train/0000001_V00-Aug00_002.seg").unlink()
    with pytest.raises(BadDataset, match="0000001_V00 has no masks of slice 2"):
        import_dataset(tmp_path / "set", FolderSource(series), tmp_path / "back", Import("medsegpy"))


def test_copies_that_were_augmented_are_no_labels_of_the_images(series: Path, tmp_path: Path) -> None:
    """Their number is that of another scan."""
    export_dataset(FolderSource(series), tmp_path / "set", Export("medsegpy", layout="2d"))
    for file in list((tmp_path / "set/train").iterdir()):
        shutil.copy(file, file.with_name(file.name.replace("Aug00", "Aug04")))
    assert len(import_dataset(tmp_path / "set", FolderSource(series), tmp_path / "back", Import("medsegpy"))) == 1


def test_a_fractional_needs_a_threshold(sample: Sample, tmp_path: Path) -> None:
    """Which voxels count is not guessed."""
    from pydicom.data import get_testdata_file

    images = [Path(str(get_testdata_file(f"dicomdirtests/77654033/CT2/{n}"))) for n in (17136, 17166, 17196)]
    folder = copied([*images, sample("highdicom/seg_image_ct_true_fractional.dcm")], tmp_path / "sample")
    with pytest.raises(BadDataset, match="--threshold"):
        export_dataset(FolderSource(folder), tmp_path / "set", Export("nifti"))
    assert not list(tmp_path.glob(".set*"))


def test_two_segmentations_of_one_class_are_refused(series: Path, tmp_path: Path) -> None:
    """Which of them is the label of the image is not guessed."""
    from tests.datasets import header_of

    images = [header_of(file) for file in sorted(series.iterdir()) if file.name != "seg.dcm"]
    images.sort(key=lambda image: -image.InstanceNumber)
    write_seg(series / "other.dcm", labels(), images, [described(2), described(7)])
    with pytest.raises(BadDataset, match="has two segmentations with the segment 'Thing 2'"):
        export_dataset(FolderSource(series), tmp_path / "set", Export("nifti"))


def test_the_commands_say_what_was_done(series: Path, tmp_path: Path) -> None:
    """Both ways, with a split, and as JSON."""
    words = ("--format", "nrrd", "--from", series, "--out", tmp_path / "set", "--split", "0.5,0.5,0", "--seed", 3)
    result = run("export", *words)
    assert result.exit_code == 0, result.output
    assert "1 image series" in result.output
    assert "nothing was done" in run("export", *words).output
    result = run("import", "--format", "nrrd", tmp_path / "set", "--images", series, "--out", tmp_path / "back", "--json")
    (row,) = json.loads(result.output)
    assert Path(row["to"]).is_file()
    manifest = manifest_of(tmp_path / "set")
    assert manifest is not None
    assert len(Classes(manifest.classes)) == 3


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    """With the names that there are."""
    result = run("export", "--format", "nrrd", "--from", "nowhere", "--out", tmp_path / "set")
    assert result.exit_code == 2
    assert "no folder, no DICOMweb root and no destination" in result.output


def test_runs_of_a_known_volume() -> None:
    """1 + column x rows x slices + row x slices + slice, by hand."""
    array = np.zeros((2, 3, 4), np.uint8)
    array[1, 2, 3] = array[0, 0, 1] = 5
    assert runs_of(array) == {5: f"{1 + 1 * 6} 1 {1 + 3 * 6 + 2 * 2 + 1} 1"}
    assert np.array_equal(mask_of(runs_of(array)[5], (2, 3, 4)), array == 5)
