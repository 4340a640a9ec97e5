"""Label dictionaries, and labelmaps held to them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import segnode.models
from segnode.errors import LabelError
from segnode.seg.segments import (
    LabelDictionary,
    found_in,
    read_label_dictionary,
    segment_numbers,
    shipped_label_dictionaries,
)

SHIPPED = Path(segnode.models.__file__).parent / "labels"
KIDNEY = """# the first line
[[segment]]
value = 1
label = '''Kidney
[[segment]]
'''
category = ["SCT", "123037004"]
type = [
  "SCT",  # [[segment]]
  CODE
]
"""
LUNG = '[[segment]]\nvalue = 2\nlabel = "Lung"\ncategory = ["SCT", "1", "A"]\ntype = ["SCT", "2", "B"]\n'


def dictionary(tmp_path: Path, text: str) -> LabelDictionary:
    """A dictionary from a file beside the configuration."""
    (tmp_path / "labels.toml").write_text(text)
    return read_label_dictionary("labels.toml", tmp_path)


def test_every_shipped_dictionary_is_read() -> None:
    """What comes with segnode is valid, also the example in conf/."""
    assert "threshold" in shipped_label_dictionaries()
    for name in shipped_label_dictionaries():
        assert read_label_dictionary(name, Path()).segment
    example = read_label_dictionary("labels/example.toml", Path(__file__).parents[2] / "conf").segment[0]
    assert (example.segment_number, example.track, example.region is not None) == (1, True, True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LUNG.replace("value = 2", "value = 0"), r"line 2: segment\[0\].value"),
        (LUNG.replace('type = ["SCT", "2", "B"]', 'type = ["SCT", "2"]'), r"line 5: segment\[0\].type: .*write its meaning"),
        (LUNG.replace('type = ["SCT", "2", "B"]', 'type = ["SCT"]'), r"line 5: segment\[0\].type"),
        (LUNG.replace('type = ["SCT", "2", "B"]', "type = 2"), r"line 5: segment\[0\].type"),
        (LUNG + "color = [1, 2, 3]", "line 1: .*color"),
        (LUNG + "colour = [1, 2, 300]", r"line 6: segment\[0\].colour"),
        (LUNG + LUNG, r"line 6: segment\[1\]: value 2 is given twice"),
        (LUNG + LUNG.replace("value = 2", "value = 3\nnumber = 2"), "segment number 2 is given twice"),
        (LUNG + LUNG.replace("2", "3").replace('"B"', '"B\\\\C"'), r"line 10: segment\[1\].type: .* code meaning"),
        (LUNG.replace('"2", "B"', f'"2", "{65 * "B"}"'), "code meaning"),
        (LUNG.replace('"2", "B"', '"2", " B"'), "code meaning"),
        (LUNG.replace('"2", "B"', f'"{17 * "2"}", "B"'), "code value"),
        (LUNG.replace('"2", "B"', '"T-28000", "B"'), "no code of SNOMED CT"),
        (LUNG.replace('["SCT", "2"', '["99 SCT", "2"'), "coding scheme designator"),
        ("segment = [\n{value = 1, label = 'A', category = ['X', '1', 'A'], type = ['SCT', '1']}]", "line 1: .*type"),
        ("[[segment", "not TOML"),
        ("", "segment"),
    ],
)
def test_wrong_dictionary_is_named_with_its_fault(tmp_path: Path, text: str, reason: str) -> None:
    """A fault stops the start, with the file and the place in it."""
    with pytest.raises(LabelError, match=reason) as error:
        dictionary(tmp_path, text)
    assert "labels.toml" in str(error.value)


def test_absent_dictionary_says_which_are_shipped(tmp_path: Path) -> None:
    """A name that is neither shipped nor a file is an error that lists the shipped ones."""
    with pytest.raises(LabelError, match="shipped ones: .*threshold"):
        read_label_dictionary("tresh", tmp_path)


def kidney(code: str) -> str:
    """A dictionary with a code on its lines 8 to 11."""
    return KIDNEY.replace("CODE", code)


@pytest.mark.parametrize("meaning", ["Kidney", "kidneys", "KIDNEY STRUCTURE", "Structure of the kidney", "Endo-renal"])
def test_known_code_may_be_called_by_any_of_its_names(tmp_path: Path, meaning: str) -> None:
    """Case, plural, order and words that say little differ from table to table; the meaning is written as it is given."""
    (segment,) = dictionary(tmp_path, kidney(f'"64033007", "{meaning}"')).segment
    assert segment.type.meaning == meaning


@pytest.mark.parametrize("meaning", ["Liver", "Left kidney", "Kidney and ureter", "Cyst of kidney", "Renal"])
def test_known_code_with_another_meaning_is_named_with_its_line(tmp_path: Path, meaning: str) -> None:
    """The line is the one where the statement begins, whatever stands around it; the error says what the code means."""
    with pytest.raises(LabelError, match=r"labels.toml, line 8: segment\[0\].type: SCT 64033007 means .*'Kidney'"):
        dictionary(tmp_path, kidney(f'"64033007", "{meaning}"'))


@pytest.mark.parametrize(
    ("value", "meaning"), [("32849002", "Oesophagus"), ("87878005", "Left ventricle of heart"), ("51185008", "Thorax")]
)
def test_spelling_and_context_groups_are_known(tmp_path: Path, value: str, meaning: str) -> None:
    """As a hospital in Britain spells it, as others call it, and as context groups have it that pydicom lacks."""
    assert dictionary(tmp_path, kidney(f'"{value}", "{meaning}"')).segment[0].type.meaning == meaning


def test_known_code_may_be_without_its_meaning(tmp_path: Path) -> None:
    """It has then the one that most context groups have."""
    (segment,) = dictionary(tmp_path, kidney('"64033007"')).segment
    assert (segment.category.meaning, segment.type.meaning) == ("Anatomical Structure", "Kidney")


@given(before=st.integers(0, 3), after=st.integers(0, 3), gap=st.sampled_from(["", "\n", "# [[segment]]\n", "\r\n"]))
def test_line_is_that_of_the_fault(before: int, after: int, gap: str) -> None:
    """Among tables, comments and line ends of any number."""
    import tempfile

    good = [LUNG.replace("value = 2", f"value = {n}") + gap for n in range(1, before + after + 1)]
    bad = LUNG.replace("value = 2", "value = 100").replace('"2", "B"', '"64033007", "Liver"')
    text = "".join((*good[:before], bad, *good[before:]))
    line = next(number for number, line in enumerate(text.split("\n"), 1) if "64033007" in line)
    with tempfile.TemporaryDirectory() as folder, pytest.raises(LabelError, match=rf"line {line}: segment\[{before}\]"):
        dictionary(Path(folder), text)


@pytest.mark.parametrize("name", shipped_label_dictionaries())
def test_codes_of_shipped_dictionaries_are_sound(tmp_path: Path, name: str) -> None:
    """What is shipped is not looked at when it is read: here it is, as anybody's file."""
    text = (SHIPPED / f"{name}.toml").read_text()
    assert dictionary(tmp_path, text) == read_label_dictionary(name, tmp_path)


def test_totalsegmentator_has_every_class() -> None:
    """Its 117 values, each with a colour and a label of its own; what has two sides says which."""
    segments = read_label_dictionary("totalsegmentator", Path()).segment
    assert [segment.value for segment in segments] == [*range(1, 118)]
    assert len({segment.label for segment in segments}) == 117
    assert all(segment.colour for segment in segments)
    for segment in segments:
        side = next((side for side in ("left", "right") if f" {side}" in segment.label), None)
        if side and "lobe" not in segment.label:
            assert segment.modifier is not None
            assert segment.modifier.meaning.lower() == side
    assert len({(segment.type, segment.modifier, segment.region) for segment in segments}) == 117


def test_totalsegmentator_codes_all_of_its_published_example(sample: Callable[[str], Path]) -> None:
    """Its 31 structures have category and type, and a side where they have one."""
    nibabel = pytest.importorskip("nibabel")
    labels = np.asarray(nibabel.load(sample("totalsegmentator/example_seg_dicom.nii.gz")).dataobj).astype(np.uint8)
    found = {segment.value: segment for segment in read_label_dictionary("totalsegmentator", Path()).segment}
    there = [found[value] for value in np.unique(labels) if value]
    assert len(there) == 31
    assert segment_numbers(labels, read_label_dictionary("totalsegmentator", Path())) is not None
    assert sum(segment.modifier is not None for segment in there) == 19
    assert {segment.category.value for segment in there} == {"123037004"}


def test_values_become_segment_numbers(tmp_path: Path) -> None:
    """`number` renumbers; without it a value keeps its number; 0 stays background."""
    found = dictionary(tmp_path, LUNG + "number = 7\n" + LUNG.replace("value = 2", "value = 5"))
    numbers = segment_numbers(np.array([[[0, 2, 5]]], np.int64), found)
    assert numbers.dtype == np.uint8
    assert numbers.tolist() == [[[0, 7, 5]]]


def test_large_numbers_take_sixteen_bits(tmp_path: Path) -> None:
    """Eight bits whenever the numbers allow it: viewers read 16 bits modulo 256."""
    assert segment_numbers(np.array([2]), dictionary(tmp_path, LUNG + "number = 255")).dtype == np.uint8
    numbers = segment_numbers(np.array([2]), dictionary(tmp_path, LUNG + "number = 256"))
    assert (numbers.dtype, numbers.tolist()) == (np.uint16, [256])


@pytest.mark.parametrize("value", [1, -1, 300])
def test_value_without_an_entry_is_named(tmp_path: Path, value: int) -> None:
    """A label that the dictionary does not have is an error, never written and never dropped."""
    with pytest.raises(LabelError, match=rf"\[{value}\]"):
        segment_numbers(np.array([0, 2, value]), dictionary(tmp_path, LUNG))


def test_value_in_a_gap_of_the_dictionary_is_named(tmp_path: Path) -> None:
    """Also between values that it has, in the only voxel of a labelmap of the smallest type."""
    labelmap = np.zeros((2, 3, 4), np.uint8)
    labelmap[1, 2, 3] = 3
    known = dictionary(tmp_path, LUNG + LUNG.replace("value = 2", "value = 5"))
    assert segment_numbers(np.full((1, 1, 1), 5, np.uint8), known).tolist() == [[[5]]]
    with pytest.raises(LabelError, match=r"\[3\]"):
        segment_numbers(labelmap, known)


@pytest.mark.parametrize(("found", "expected"), [([3, 1], [1, 3]), ([0], [1, 2, 3]), ([1, 2, 3], [1, 2, 3])])
def test_segments_are_those_that_were_found(found: list[int], expected: list[int]) -> None:
    """A dictionary of a hundred is not a SEG of a hundred empty segments; where nothing was found all are named."""
    whole = read_label_dictionary("threshold", Path())
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[-len(found) :, 2, 2] = found
    assert [segment.segment_number for segment in found_in(labels, whole).segment] == expected
