"""Training sets of MathWorks: what its lists, its label images and its script hold, and DICOM files that say of nobody."""

import gzip
import json
import re
import subprocess
import zlib
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from scipy.io import loadmat, savemat

from segnode.datasets.exporting import Export, Exported, export_dataset
from segnode.datasets.importing import Import, import_dataset
from segnode.datasets.manifest import manifest_of
from segnode.datasets.sources import FolderSource
from segnode.errors import BadDataset, GridMismatch, LabelError
from segnode.seg.arrays import source_images, volume
from segnode.seg.read import open_segmentation
from segnode.seg.write import Identity, StoredAs, write_segmentation
from segnode.seg.write.placement import on_frames, on_images
from tests.conftest import installed
from tests.datasets import Back, described, oblique, write_seg, write_series

STUBS = Path(__file__).parents[1] / "peers" / "octave"


def labels(shape: tuple[int, int, int] = (4, 5, 7)) -> np.ndarray:
    """Labels in which no two sides are alike."""
    array = np.zeros(shape, np.uint8)
    array[:2, 1:4, 2:6] = 2
    array[-1, 4, 6] = 7
    return array


def with_series(folder: Path, slices: int, seed: str, *, labelled: bool = True) -> Path:
    """Add a series of so many slices, with a segmentation, to a folder."""
    images = write_series(folder / seed, oblique(), (slices, 5, 7), seed=seed)
    if labelled:
        write_seg(folder / seed / "seg.dcm", labels((slices, 5, 7)), images, [described(2), described(7)])
    return folder


def exported(folder: Path, out: Path, **asked: object) -> Exported:
    """Export a folder as `mathworks`."""
    return export_dataset(FolderSource(folder), out, Export("mathworks", **asked))  # type: ignore[arg-type]


def lists_of(out: Path) -> dict[str, list[str]]:
    """The texts of the lists, as scipy reads them."""
    found = loadmat(out / "ground_truth.mat", squeeze_me=False)
    return {
        key: [str(each[0][0]) if each[0].size else "" for each in found[key]]
        for key in ("Split", "DataSource", "LabelData", "Name")
    }


@pytest.mark.parametrize(
    ("layout", "source"),
    [
        ("dicom", "train/images/0000001_V00"),
        ("nifti", "train/images/0000001_V00.nii.gz"),
        ("nrrd", "train/images/0000001_V00.nrrd"),
    ],
)
def test_a_volume_has_a_label_of_its_size_in_matlab(layout: str, source: str, tmp_path: Path) -> None:
    """Rows, columns and slices beside DICOM; columns, rows and slices beside a file that is read as it is."""
    exported(with_series(tmp_path / "in", 4, "1"), tmp_path / "set", layout=layout)
    lists = lists_of(tmp_path / "set")
    assert (lists["DataSource"], lists["LabelData"]) == ([source], ["train/labels/0000001_V00.nii.gz"])
    label = nibabel.load(tmp_path / "set" / lists["LabelData"][0])
    axes = (1, 2, 0) if layout == "dicom" else (2, 1, 0)
    assert np.array_equal(np.asarray(label.dataobj), labels().transpose(axes))
    lps = np.diag([-1.0, -1, 1, 1]) @ label.affine
    assert np.allclose(lps, oblique()[:, [*axes, 3]], atol=1e-4)


def test_an_image_has_its_labels_in_a_mat_file(tmp_path: Path) -> None:
    """Rows and columns; NRRD is no source of 2-D images, so that the set has DICOM beside NRRD."""
    folder = with_series(with_series(tmp_path / "in", 1, "1"), 4, "2")
    exported(folder, tmp_path / "set", layout="nrrd")
    lists = lists_of(tmp_path / "set")
    assert sorted(Path(name).suffix for name in lists["DataSource"]) == [".dcm", ".nrrd"]
    (mat,) = [name for name in lists["LabelData"] if name.endswith(".mat")]
    found = loadmat(tmp_path / "set" / mat)["labels"]
    assert np.array_equal(found, labels((1, 5, 7))[0])
    assert sorted(loadmat(tmp_path / "set/ground_truth.mat")["Dimensions"].reshape(-1)) == [2, 3]


def test_a_source_without_labels_has_an_empty_text(tmp_path: Path) -> None:
    """In its place in the list of labels."""
    folder = with_series(with_series(tmp_path / "in", 4, "1"), 3, "2", labelled=False)
    exported(folder, tmp_path / "set", unlabelled=True)
    assert min(lists_of(tmp_path / "set")["LabelData"]) == ""
    assert len(import_dataset(tmp_path / "set", FolderSource(folder), tmp_path / "back", Import("mathworks"))) == 1


def test_labels_that_overlap_are_rows_with_one_source(tmp_path: Path) -> None:
    """A label image has one label a voxel."""
    images = write_series(tmp_path / "in", oblique(), (4, 5, 7))
    stack = np.zeros((4, 5, 7, 2), np.uint8)
    stack[1:3, 1:4, 1:5, 0] = stack[2:4, 2:5, 3:7, 1] = 1
    write_seg(tmp_path / "in/seg.dcm", stack, images, [described(1), described(2)])
    exported(tmp_path / "in", tmp_path / "set")
    lists = lists_of(tmp_path / "set")
    assert lists["DataSource"] == ["train/images/0000001_V00"] * 2
    assert lists["LabelData"] == ["train/labels/0000001_V00.nii.gz", "train/labels/0000001_V00-2.nii.gz"]


def octave(out: Path, call: str) -> dict[str, list[str]]:
    """What load_ground_truth.m makes, in Octave, of classes that check what they are given."""
    program = installed("octave-cli", "octave")
    script = "\n".join(
        (
            f"addpath('{STUBS}'); addpath('{out}'); g = {call}; s = g.DataSource.Source; d = g.LabelDefinitions;",
            "if iscell(s{1}), s = vertcat(s{:}); end",
            "made = struct('sources', {s}, 'labels', {g.LabelData}, 'names', {d.Name}, 'ids', double(d.PixelLabelID));",
            "made.of = class(g.DataSource); disp(jsonencode(made))",
        )
    )
    done = subprocess.run([program, "--norc", "--no-history", "--eval", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_script_makes_the_object_of_volumes(tmp_path: Path) -> None:
    """In Octave: folders become the names of their files, in order; what has no label has an empty text."""
    folder = with_series(with_series(tmp_path / "in", 4, "1"), 3, "2", labelled=False)
    exported(folder, tmp_path / "set", unlabelled=True)
    made = octave(tmp_path / "set", "load_ground_truth()")
    assert made["of"] == "medical.labeler.loading.VolumeSource"
    assert len(made["sources"]) == 7
    assert made["sources"][:3] == sorted(made["sources"][:3])
    assert "" in made["labels"]
    assert (made["names"], made["ids"]) == (["Thing 2", "Thing 7"], [2, 7])


def test_the_script_makes_the_object_of_images(tmp_path: Path) -> None:
    """In Octave: of a split that has both, the images when these are asked for."""
    folder = with_series(with_series(tmp_path / "in", 4, "1"), 1, "2")
    exported(folder, tmp_path / "set")
    made = octave(tmp_path / "set", "load_ground_truth('train', 2)")
    assert made["of"] == "medical.labeler.loading.ImageSource"
    assert str(made["labels"]).count(".mat") == 1


def changed(out: Path, **values: object) -> Path:
    """The lists with other values."""
    kept = {key: value for key, value in loadmat(out / "ground_truth.mat").items() if not key.startswith("__")}
    savemat(out / "ground_truth.mat", {**kept, **values})
    return out


def column(*texts: str) -> np.ndarray:
    """A cell array."""
    out = np.empty((len(texts), 1), object)
    out[:, 0] = texts
    return out


def mat_of_matlab(name: str) -> bytes:
    """A file that MATLAB wrote and SciPy ships with its tests."""
    import scipy.io.matlab

    file = Path(str(scipy.io.matlab.__file__)).parent / "tests/data" / name
    if not file.exists():
        pytest.skip(f"SciPy comes without its {name}")
    return file.read_bytes()


def imported(out: Path, folder: Path) -> list[Path]:
    """Import it again; the files that it became."""
    return [each.file for each in import_dataset(out, FolderSource(folder), out.parent / "back", Import("mathworks"))]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("testobject_7.4_GLNX86.mat", "testobject is a MATLAB object"),
        ("parabola.mat", "parabola is a MATLAB object"),
        ("teststruct_7.4_GLNX86.mat", "teststruct is a MATLAB object or struct"),
        ("testhdf5_7.4_GLNX86.mat", "version 7.3: save it with -v7"),
        ("testdouble_7.4_GLNX86.mat", "has no variable"),
    ],
)
@pytest.mark.parametrize("replaced", ["ground_truth.mat", "train/labels/0000001_V00.mat"])
def test_what_is_no_array_is_refused_by_name(name: str, said: str, replaced: str, tmp_path: Path) -> None:
    """Lists or labels that are an object, a struct, of another version, of another name, or damaged."""
    folder = with_series(tmp_path / "in", 1, "1")
    exported(folder, tmp_path / "set")
    (tmp_path / "set" / replaced).write_bytes(mat_of_matlab(name))
    with pytest.raises(BadDataset, match=f"{Path(replaced).name}.*{said}"):
        imported(tmp_path / "set", folder)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"LabelData": column("train/labels/no.nii.gz")},
            "row 1 of .*ground_truth.mat: the label train/labels/no.nii.gz is not",
        ),
        ({"LabelData": column("../labels.nii.gz")}, "row 1 of .*leads out of the set"),
        ({"LabelData": column("/etc/labels.nii.gz")}, "row 1 of .*leads out of the set"),
        ({"LabelData": column("a", "b")}, "lists of one length"),
        ({"LabelData": np.zeros((1, 1))}, "LabelData of .* no cell array of texts"),
        ({"Name": column("Thing 2", "")}, "has a Name"),
        ({"PixelLabelID": np.array([[2], [2]], np.uint8)}, "each PixelLabelID is there once"),
        ({"PixelLabelID": np.array([[2.5], [3]])}, "whole numbers are needed"),
        (
            {"DataSource": column("a", "b"), "LabelData": column(*["train/labels/0000001_V00.nii.gz"] * 2)},
            "row 2 of .* is the label of two data sources, a and b",
        ),
    ],
)
def test_bad_lists_are_refused_with_their_row(values: dict[str, object], said: str, tmp_path: Path) -> None:
    """What is missing, leads out of the set, has no name or is there twice."""
    folder = with_series(tmp_path / "in", 4, "1")
    exported(folder, tmp_path / "set")
    with pytest.raises(BadDataset, match=said):
        imported(changed(tmp_path / "set", **values), folder)
    assert not (tmp_path / "back").exists()


def test_a_value_without_a_definition_is_refused(tmp_path: Path) -> None:
    """It is named, with the file."""
    folder = with_series(tmp_path / "in", 1, "1")
    exported(folder, tmp_path / "set")
    savemat(tmp_path / "set/train/labels/0000001_V00.mat", {"labels": np.full((5, 7), 9, np.uint8)})
    with pytest.raises(LabelError, match="0000001_V00.mat: the value 9 has no name"):
        imported(tmp_path / "set", folder)


def test_labels_of_another_shape_are_refused(tmp_path: Path) -> None:
    """An image is not cut to its labels."""
    folder = with_series(tmp_path / "in", 1, "1")
    exported(folder, tmp_path / "set")
    savemat(tmp_path / "set/train/labels/0000001_V00.mat", {"labels": np.zeros((7, 9), np.uint8)})
    with pytest.raises(GridMismatch, match="0000001_V00.mat"):
        imported(tmp_path / "set", folder)


def test_label_images_as_matlab_writes_them_come_back(tmp_path: Path) -> None:
    """Doubles without a table of names; the lists have the names of values."""
    folder = with_series(with_series(tmp_path / "in", 1, "1"), 4, "2")
    exported(folder, tmp_path / "set")
    for file in (tmp_path / "set/train/labels").iterdir():
        if file.suffix == ".mat":
            savemat(file, {"labels": loadmat(file)["labels"].astype(np.float64)})
        else:
            image = nibabel.load(file)
            nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj).astype(np.float64), image.affine), file)
    made = imported(tmp_path / "set", folder)
    of = {dcmread(file, stop_before_pixels=True).StudyInstanceUID: file for file in made}
    for seed in "12":
        seg = folder / seed / "seg.dcm"
        Back([of[dcmread(seg, stop_before_pixels=True).StudyInstanceUID]]).require_same(seg)


@pytest.mark.parametrize("slices", [1, 4])
def test_labels_find_the_images_that_were_written(slices: int, tmp_path: Path) -> None:
    """Images that say of nobody: what was exported is enough to import, also where another series lies in the same place."""
    folder = with_series(with_series(tmp_path / "in", slices, "1"), slices, "2", labelled=False)
    exported(folder, tmp_path / "set", unlabelled=True)
    (made,) = imported(tmp_path / "set", tmp_path / "set")
    assert np.array_equal(volume(open_segmentation(made)).array, labels((slices, 5, 7)))
    (entry,) = [entry for entry in manifest_of(tmp_path / "set").entries if entry.values is not None]  # type: ignore[union-attr]
    written = next((tmp_path / "set/train/images").rglob(f"{entry.id}/*.dcm" if slices > 1 else f"{entry.id}.dcm"))
    assert source_images(open_segmentation(made))[0][1] == dcmread(written).SeriesInstanceUID


def secretive(folder: Path) -> list[bytes]:
    """Write a series whose files tell all that they can, and give what they tell."""
    images = write_series(folder, oblique(), (3, 5, 7))
    write_seg(folder / "seg.dcm", labels((3, 5, 7)), images, [described(2), described(7)])
    referred = images[0].SOPInstanceUID
    for file in folder.iterdir():
        if file.name == "seg.dcm":
            continue
        image = dcmread(file)
        image.InstitutionName, image.StationName, image.DeviceSerialNumber = "SecretPlace", "SecretRoom", "SecretSerial"
        image.SeriesDescription, image.ImageComments = "SecretDescription", "SecretComment"
        image.AcquisitionDateTime, image.ContentDate, image.PatientAge = "20310203040506", "20310203", "087Y"
        image.TextComments = "SecretUnlisted"
        image.DeviceUID = "1.2.3.999.1"
        image.add_new(0x00091001, "LO", "SecretPrivate")
        image.add_new(0x00090010, "LO", "SecretCreator")
        image.add_new(0x60000022, "LO", "SecretOverlay")
        image.add_new(0x60003000, "OW", b"SecretBitmap")
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, referred
        item.PatientName = "Secret^Nested"
        image.ReferencedImageSequence = [item]
        request = Dataset()
        request.RequestedProcedureDescription, request.ScheduledProcedureStepID = "SecretRequest", "SecretStep"
        image.RequestAttributesSequence = [request]
        image.file_meta.SourceApplicationEntityTitle = "SECRETAE"
        image.preamble = b"SecretPreamble".ljust(128, b"\0")
        image.save_as(file)
    values = [b"Secret", b"SECRET", b"Marker", b"MARKER", b"20310203", b"087Y", b"20260102", b"19700101", b"1.2.3.999.1"]
    uids = [
        value for i in images for value in (i.StudyInstanceUID, i.SeriesInstanceUID, i.SOPInstanceUID, i.FrameOfReferenceUID)
    ]
    return values + [str(uid).encode() for uid in uids]


def contents(folder: Path) -> list[tuple[Path, bytes]]:
    """The bytes of all files, and what is compressed in them."""
    found = []
    for file in (file for file in folder.rglob("*") if file.is_file()):
        content = file.read_bytes()
        found.append((file, content))
        if file.suffix == ".gz":
            found.append((file, gzip.decompress(content)))
        if file.suffix == ".mat":
            found += [
                (file, zlib.decompressobj().decompress(content[each.start() :])) for each in re.finditer(b"x\x9c", content)
            ]
    return found


def frames_of(images: list[Dataset], *, placed: bool) -> Dataset:
    """A multi-frame image of single-frame ones, from the last to the first, or without a place for any."""
    image = deepcopy(images[0])
    image.file_meta = images[0].file_meta
    image.NumberOfFrames, image.SOPInstanceUID = len(images), "1.2.3.77"
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(image, keyword)
    image.PixelData = b"".join(each.PixelData for each in reversed(images))
    if not placed:
        return image
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        delattr(image, keyword)
    image.PerFrameFunctionalGroupsSequence, image.SharedFunctionalGroupsSequence = [], [Dataset()]
    for each in reversed(images):
        position, item = Dataset(), Dataset()
        position.ImagePositionPatient = each.ImagePositionPatient
        item.PlanePositionSequence = [position]
        image.PerFrameFunctionalGroupsSequence.append(item)
    (shared,), first = image.SharedFunctionalGroupsSequence, images[0]
    for sequence, keywords in (
        ("PlaneOrientationSequence", ("ImageOrientationPatient",)),
        ("PixelMeasuresSequence", ("PixelSpacing", "SliceThickness")),
        ("PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept")),
    ):
        item = Dataset()
        for keyword in keywords:
            setattr(item, keyword, first[keyword].value)
        setattr(shared, sequence, [item])
    return image


def alone(folder: Path, image: Dataset, array: np.ndarray) -> Path:
    """A folder of one image and its segmentation."""
    folder.mkdir()
    image.save_as(folder / "image.dcm", enforce_file_format=True)
    placement = on_frames(image) if "NumberOfFrames" in image else on_images([image])
    identity = Identity("1.2.3.78", "1.2.3.79", "", datetime.now(UTC), "1", "1")
    stored_as = StoredAs("LABELMAP", omit_empty_frames=False)
    (folder / "seg.dcm").write_bytes(write_segmentation(array, placement, [described(2), described(7)], stored_as, identity))
    return folder


@pytest.mark.parametrize("layout", ["dicom", "nifti", "nrrd"])
@pytest.mark.parametrize("kind", ["radiograph", "clip", "enhanced"])
def test_single_files_come_back(kind: str, layout: str, tmp_path: Path) -> None:
    """A radiograph and a clip, which have no place in the patient, have MAT-files; the frames of a volume a NIfTI."""
    images = write_series(tmp_path / "series", oblique(), (4, 5, 7))
    array = labels()[::-1].copy()  # frame by frame
    if kind == "radiograph":
        image, array = images[0], array[-1:]
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient"):
            delattr(image, keyword)
    else:
        image = frames_of(images, placed=kind == "enhanced")
    folder = alone(tmp_path / "in", image, array)
    exported(folder, tmp_path / "set", layout=layout)
    (source,), (label,) = (lists_of(tmp_path / "set")[key] for key in ("DataSource", "LabelData"))
    flat = kind != "enhanced"
    suffixes = {"dicom": ".dcm", "nifti": ".nii.gz", "nrrd": ".dcm" if flat else ".nrrd"}
    assert source.endswith(suffixes[layout])
    if flat:
        assert np.array_equal(loadmat(tmp_path / "set" / label)["labels"].reshape(5, 7, -1), array.transpose(1, 2, 0))
    else:
        axes = (1, 2, 0) if layout == "dicom" else (2, 1, 0)
        assert np.array_equal(np.asarray(nibabel.load(tmp_path / "set" / label).dataobj), labels().transpose(axes))
    if source.endswith(".nii.gz"):
        read = np.asarray(nibabel.load(tmp_path / "set" / source).dataobj)
        expected = np.stack([np.arange(35).reshape(5, 7) + place - 1024 for place in range(4)])
        expected = {"radiograph": expected[:1], "clip": expected[::-1], "enhanced": expected}[kind]
        assert np.array_equal(read, expected.transpose((1, 2, 0) if flat else (2, 1, 0)))
    (made,) = imported(tmp_path / "set", folder)
    Back([made]).require_same(folder / "seg.dcm")


def test_images_without_a_place_are_no_volume_in_other_formats(tmp_path: Path) -> None:
    """NIfTI would say where they lie."""
    image = frames_of(write_series(tmp_path / "series", oblique(), (4, 5, 7)), placed=False)
    folder = alone(tmp_path / "in", image, labels())
    with pytest.raises(BadDataset, match="no place in the patient"):
        export_dataset(FolderSource(folder), tmp_path / "set", Export("nifti"))


@pytest.mark.parametrize("layout", ["dicom", "nifti", "nrrd"])
def test_nothing_of_the_patient_is_left(layout: str, tmp_path: Path) -> None:
    """No byte of a name, date, text, place or UID, also where it is nested, private or not in the profile's table."""
    secrets = secretive(tmp_path / "in")
    exported(tmp_path / "in", tmp_path / "set", layout=layout)
    for file, content in contents(tmp_path / "set"):
        assert not [secret for secret in secrets if secret in content], file
    assert not [file for file in (tmp_path / "set").rglob("*") if "SECRET" in file.name]


def test_a_de_identified_series_is_whole(tmp_path: Path) -> None:
    """UIDs are replaced by the same where they are the same, geometry and pixels stay, and what was done is said."""
    secretive(tmp_path / "in")
    done = exported(tmp_path / "in", tmp_path / "set")
    images = [dcmread(file) for file in sorted((tmp_path / "set/train/images").rglob("*.dcm"))]
    before = {tuple(i.ImagePositionPatient): i for i in map(dcmread, (tmp_path / "in").iterdir()) if i.Modality == "CT"}
    assert len({image.SeriesInstanceUID for image in images}) == len({image.StudyInstanceUID for image in images}) == 1
    assert len({image.SOPInstanceUID for image in images}) == 3
    for image in images:
        assert image.ReferencedImageSequence[0].ReferencedSOPInstanceUID == images[0].SOPInstanceUID
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert np.array_equal(image.pixel_array, before[tuple(image.ImagePositionPatient)].pixel_array)
        assert (image.PatientID, image.PatientIdentityRemoved, image.StudyDate) == ("0000001", "YES", "")
        assert image.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert image.RescaleIntercept == -1024
    assert any("113100" in told for told in done.manifest.deidentification)
    assert "options of the profile: none" in done.manifest.deidentification


def test_identities_stay_where_that_is_asked(tmp_path: Path) -> None:
    """Files of DICOM are as they were, byte for byte."""
    secretive(tmp_path / "in")
    exported(tmp_path / "in", tmp_path / "set", keep_identity=True)
    before = {file.read_bytes() for file in (tmp_path / "in").iterdir()}
    files = list((tmp_path / "set/train/images").rglob("*.dcm"))
    assert len(files) == 3
    assert all(file.read_bytes() in before for file in files)


def test_images_in_a_codestream_are_written_natively(sample: Callable[[str], Path], sample_ct: Path, tmp_path: Path) -> None:
    """What stood beside the pixels in a codestream is not carried along, and MATLAB reads them."""
    from tests.datasets import copied

    folder = copied([*sample_ct.iterdir()], tmp_path / "in")
    exported(folder, tmp_path / "set", unlabelled=True)
    images = [dcmread(file) for file in (tmp_path / "set/train/images").rglob("*.dcm")]
    assert {image.file_meta.TransferSyntaxUID for image in images} == {"1.2.840.10008.1.2.1"}
    assert len(images) == 20
