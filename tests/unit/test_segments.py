"""Label dictionaries, and labelmaps held to them."""

from pathlib import Path

import numpy as np
import pytest

from segnode.errors import LabelError
from segnode.seg.segments import LabelDictionary, read_label_dictionary, segment_numbers, shipped_label_dictionaries

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
        (LUNG.replace("value = 2", "value = 0"), "value"),
        (LUNG.replace('type = ["SCT", "2", "B"]', 'type = ["SCT", "2"]'), r"segment\[0\].type"),
        (LUNG + "color = [1, 2, 3]", "color"),
        (LUNG + "colour = [1, 2, 300]", r"segment\[0\].colour"),
        (LUNG + LUNG, "value 2 is given twice"),
        (LUNG + LUNG.replace("value = 2", "value = 3\nnumber = 2"), "segment number 2 is given twice"),
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
