"""Real Segmentations are read as others read them: dcmqi's NRRDs voxel for voxel in the patient's space, and highdicom."""

import gzip
from pathlib import Path

import highdicom
import numpy as np
import pytest

from segnode.errors import NotAVolume, OverlappingSegments
from segnode.seg import arrays
from segnode.seg.read import open_segmentation

LIVERS = ["liver_rle", "liver_deflate", "liver_j2k", "liver_expb", "liver_nonbyte_aligned"]


def read_nrrd(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The array (slices, rows, columns) of an NRRD file, and (slice, row, column) to LPS mm."""
    header, _, data = path.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines() if ": " in line)
    assert (fields["type"], fields["encoding"], fields["space"]) == ("short", "gzip", "left-posterior-superior")
    vectors = [np.array(vector.strip("()").split(","), float) for vector in fields["space directions"].split()]
    sizes = [int(size) for size in fields["sizes"].split()]
    affine = np.eye(4)
    affine[:3, :3] = np.stack(vectors[::-1], axis=1)
    affine[:3, 3] = np.array(fields["space origin"].strip("()").split(","), float)
    return np.frombuffer(gzip.decompress(data), "<i2").reshape(sizes[::-1]), affine


def places(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Where every voxel that is not 0 lies, in mm and with its value, in one order; of (slices, rows, columns)."""
    indices = np.argwhere(array)
    mm = np.concatenate([indices, np.ones((len(indices), 1))], axis=1) @ affine.T
    table = np.concatenate([np.round(mm[:, :3], 3), array[array != 0][:, np.newaxis]], axis=1)
    return table[np.lexsort(np.round(table, 1).T)]


def assert_same_places(array: np.ndarray, affine: np.ndarray, other: np.ndarray, other_affine: np.ndarray) -> None:
    """The same values at the same points of the patient, whichever way the arrays run."""
    np.testing.assert_allclose(places(array, affine), places(other, other_affine), atol=2e-3)


@pytest.mark.parametrize(("name", "nrrd"), [("liver.dcm", "liver_seg"), ("24x38x3/seg/label.seg", "24x38x3/nrrd/label")])
def test_volume_is_dcmqis(name: str, nrrd: str, sample) -> None:
    """A BINARY file of dcmqi has every voxel where the labels that it was made from have it."""
    found = arrays.volume(open_segmentation(sample(f"dcmqi/{name}")))
    assert_same_places(found.array, found.affine, *read_nrrd(sample(f"dcmqi/{nrrd}.nrrd")))


def test_overlapping_segments_are_dcmqis(sample) -> None:
    """Three NRRDs hold segments that overlap in one file: each is read on its own, and a labelmap of all is refused."""
    segmentation = open_segmentation(sample("dcmqi/partial_overlaps.dcm"))
    found = arrays.stacked_volume(segmentation)
    seen = []
    for nrrd in (1, 2, 3):
        labels, affine = read_nrrd(sample(f"dcmqi/partial_overlaps-{nrrd}.nrrd"))
        for value in np.unique(labels[labels > 0]):
            mask = labels == value
            same = [n for n in range(5) if found.array[..., n].sum() == mask.sum()]
            assert len(same) == 1
            assert_same_places(found.array[..., same[0]], found.affine, mask.astype(np.uint8), affine)
            seen += same
    assert sorted(seen) == [0, 1, 2, 3, 4]
    with pytest.raises(OverlappingSegments, match="1 and 2 in 3017 voxels, 1 and 3 in 95 voxels, 2 and 3 in 50 voxels"):
        arrays.labelmap(segmentation)
    apart = arrays.volume(segmentation, arrays.select(segmentation, [1, 4, 5])).array
    for number in (1, 4, 5):
        np.testing.assert_array_equal(apart == number, found.array[..., number - 1])


def test_omitted_frame_is_the_padding_value(sample) -> None:
    """Where a LABELMAP has no frame, its Pixel Padding Value stands, as in the NRRD."""
    found = arrays.volume(open_segmentation(sample("dcmqi/sparse-labelmap-ppv5.dcm")))
    labels, affine = read_nrrd(sample("dcmqi/sparse_labelmap_ppv5_seg.nrrd"))
    assert (found.array[1] == 5).all()
    assert_same_places(found.array, found.affine, labels, affine)


@pytest.mark.parametrize("name", LIVERS)
def test_every_liver_is_the_same(name: str, sample) -> None:
    """RLE, deflated frames, JPEG 2000, big endian and frames across bytes: one labelmap in one place."""
    found = arrays.volume(open_segmentation(sample(f"pydicom-data/{name}.dcm")))
    expected = arrays.volume(open_segmentation(sample("pydicom-data/liver.dcm")))
    rows, columns = found.array.shape[1:]
    np.testing.assert_array_equal(found.array, expected.array[:, :rows, :columns])
    np.testing.assert_array_equal(found.affine, expected.affine)


@pytest.mark.parametrize(
    "name", ["highdicom/seg_image_ct_binary", "highdicom/seg_image_ct_binary_overlap", "dcmqi/liver", "dcmqi/partial_overlaps"]
)
def test_segments_are_where_highdicom_has_them(name: str, sample) -> None:
    """Stacked volumes of BINARY files, gaps between their slices among them."""
    path = sample(f"{name}.dcm")
    ours, theirs = arrays.stacked_volume(open_segmentation(path)), highdicom.seg.segread(path).get_volume()
    for number in range(ours.array.shape[-1]):
        assert_same_places(ours.array[..., number], ours.affine, theirs.array[..., number], theirs.affine)
    assert ours.array.shape == theirs.array.shape


@pytest.mark.parametrize("rescale", [True, False])
def test_fractional_values_are_highdicoms(rescale: bool, sample) -> None:
    """Rescaled to 0 to 1, or as they are stored; a labelmap of them is refused."""
    path = sample("highdicom/seg_image_ct_true_fractional.dcm")
    segmentation = open_segmentation(path)
    ours = arrays.stacked_volume(segmentation, rescale=rescale)
    theirs = highdicom.seg.segread(path).get_volume(rescale_fractional=rescale)
    assert ours.array.dtype == theirs.array.dtype
    assert_same_places(ours.array[..., 0], ours.affine, theirs.array[..., 0], theirs.affine)
    with pytest.raises(NotAVolume, match="FRACTIONAL"):
        arrays.labelmap(segmentation)


@pytest.mark.parametrize("name", ["sm_control", "sm_control_labelmap", "sm_dots_tiled_full"])
def test_total_pixel_matrix_is_highdicoms(name: str, sample) -> None:
    """Sparse tiles of BINARY and LABELMAP, and full ones: joined, cut out, stacked, and as a volume on the slide."""
    path = sample(f"highdicom/seg_image_{name}.dcm")
    ours, theirs = open_segmentation(path), highdicom.seg.segread(path)
    np.testing.assert_array_equal(arrays.total_pixel_matrix(ours), theirs.get_total_pixel_matrix(combine_segments=True))
    np.testing.assert_array_equal(arrays.stacked_total_pixel_matrix(ours), theirs.get_total_pixel_matrix())
    for rows, columns in (((20, 40), (10, 20)), ((21, None), (-30, -25)), ((None, 2), (-1, None))):
        np.testing.assert_array_equal(
            arrays.total_pixel_matrix(ours, rows=rows, columns=columns),
            theirs.get_total_pixel_matrix(
                row_start=rows[0], row_end=rows[1], column_start=columns[0], column_end=columns[1], combine_segments=True
            ),
        )
    volume = arrays.volume(ours)
    np.testing.assert_array_equal(volume.array, theirs.get_volume(combine_segments=True).array)
    np.testing.assert_allclose(volume.affine[:3, 1:], theirs.get_volume(combine_segments=True).affine[:3, 1:])
