"""Identifiers, matching, DICOM JSON and colours."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from pydicom import Dataset

from segnode.dicom.json import attributes_json, members
from segnode.dicom.json import objects as objects_json
from segnode.dicom.matching import matches
from segnode.dicom.uids import derived_digest, derived_uid, is_uid, root_of, uid_name
from segnode.seg.colour import recommended_cielab, srgb


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        ("1.2.840.10008.1.2", True),
        ("2.25.1", True),
        ("1.02.3", True),
        ("", False),
        ("1.", False),
        (".1", False),
        ("1..2", False),
    ]
    + [("1.2.a", False), ("1.2\n", False), ("/etc", False), ("1" * 64, True), ("1" * 65, False)],
)
def test_uid_is_digits_and_single_dots(value: str, valid: bool) -> None:
    """What PS3.5 9.1 allows is a UID, and leading zeros of components, which devices write."""
    assert is_uid(value) is valid


def test_derived_uid_depends_on_every_part_and_nothing_else() -> None:
    """The same parts give the same UID, in every process; parts that run together do not."""
    assert derived_uid("a", ["b", "c"]) == "2.25.88325408915618336702328268244284028412"
    assert derived_digest("ab", "c") != derived_digest("a", "bc")
    assert derived_digest(["a", "b"]) != derived_digest("a", "b")
    assert is_uid(derived_uid("a"))
    assert derived_uid("a").startswith("2.25.")


@given(st.from_regex(r"[12](\.(0|[1-9][0-9]{0,9})){1,4}", fullmatch=True).filter(lambda root: len(root) <= 35), st.text())
def test_derived_uid_under_a_root_is_one_of_that_root(root: str, part: str) -> None:
    """A valid UID that begins with the root and a dot, the same at every time."""
    uid = derived_uid(part, root=root)
    assert is_uid(uid)
    assert (root_of(uid), uid) == (root, derived_uid(part, root=root))


def test_uid_name_knows_the_label_map_class() -> None:
    """A UID that pydicom has no name for yet is named as PS3.6 does."""
    assert uid_name("1.2.840.10008.5.1.4.1.1.66.7") == "Label Map Segmentation Storage (1.2.840.10008.5.1.4.1.1.66.7)"
    assert uid_name("1.2.840.10008.5.1.4.1.1.2") == "CT Image Storage (1.2.840.10008.5.1.4.1.1.2)"
    assert uid_name("1.2.3") == "1.2.3"


@pytest.mark.parametrize(
    ("pattern", "value", "matched"),
    [("CT", "CT", True), ("CT", "ct", False), ("CT", "CTX", False), ("", "CT", True), ("C*", "CT", True), ("?T", "CT", True)]
    + [("?", "CT", False), ("*", "", True), ("AXIAL", "ORIGINAL\\AXIAL", True), ("a.c", "abc", False), ("[CT]", "C", False)],
)
def test_matching(pattern: str, value: str, matched: bool) -> None:
    """Single value, wildcard and universal matching as PS3.4 C.2.2.2 says; any of several values may match."""
    assert matches(pattern, value) is matched


def test_json_is_what_pydicom_reads() -> None:
    """Attributes kept as text come out as DICOM JSON that pydicom reads back to the same values."""
    document = attributes_json(
        {
            "PatientName": "A^B=山^太",
            "Rows": "512",
            "ImageType": "ORIGINAL\\PRIMARY",
            "SliceThickness": "2.5",
            "StudyDate": "",
            "SeriesNumber": "3",
        }
    )
    dataset = Dataset.from_json(document)
    assert str(dataset.PatientName) == "A^B=山^太"
    assert (dataset.Rows, dataset.ImageType, dataset.SliceThickness) == (512, ["ORIGINAL", "PRIMARY"], 2.5)
    assert (dataset.StudyDate, dataset.SeriesNumber) == ("", 3)
    assert list(document) == sorted(document)


def test_members_of_many_are_those_of_each() -> None:
    """Texts of the attributes of several objects are what each of these has by itself, in the same order."""
    objects = [
        {"SOPInstanceUID": f"1.{number}", "PatientName": name, "ImageType": "A\\B", "InstanceNumber": str(number)}
        for number, name in enumerate(('A"^B', "", "A=山^太"))
    ]
    texts = members({keyword: [each[keyword] for each in objects] for keyword in objects[0]})
    documents = [json.loads(b"{" + b",".join(some) + b"}") for some in texts]
    assert documents == [attributes_json(each) for each in objects]
    assert [json.loads(each) for each in objects_json({k: [each[k] for each in objects] for k in objects[0]})] == documents
    assert list(documents[0]) == sorted(documents[0])


@pytest.mark.parametrize("rgb", [(197, 165, 145), (255, 0, 0), (0, 255, 0), (12, 34, 240), (0, 0, 0), (255, 255, 255)])
def test_cielab_is_the_colour_that_was_given(rgb: tuple[int, int, int]) -> None:
    """The stored colour is read back as it was given, and is what LittleCMS makes of it (8 bits: one step is 1 of 255)."""
    stored = recommended_cielab(rgb)
    assert srgb(stored) == rgb
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    converted = ImageCms.applyTransform(Image.new("RGB", (1, 1), rgb), to_lab)
    lightness, a, b = np.frombuffer(converted.tobytes(), np.uint8)
    signed = np.array([a, b], np.uint8).view(np.int8)
    np.testing.assert_allclose(np.array(stored) / 257, [lightness, *(signed.astype(int) + 128)], atol=1.1)
