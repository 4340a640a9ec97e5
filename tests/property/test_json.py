"""DICOM JSON of many objects at once: what each would be by itself."""

import json

from hypothesis import given
from hypothesis import strategies as st

from segnode.dicom.json import attributes_json, members, objects

_KEYWORDS = ("SOPInstanceUID", "ImageType", "PatientName", "StudyDescription", "InstanceNumber", "Rows", "PatientWeight")
_TEXTS = (
    st.text('aü1.0-"%{}\\=^\x7f\n ', max_size=4) | st.integers(-9, 10**14).map(str) | st.sampled_from(["", "007", "1.5", "²"])
)


@given(st.lists(st.lists(_TEXTS, min_size=len(_KEYWORDS), max_size=len(_KEYWORDS)), min_size=1, max_size=4))
def test_objects_together_are_what_each_is(rows: list[list[str]]) -> None:
    """Whatever is alike in them, empty, or to be escaped; members too."""
    columns = {keyword: [row[place] for row in rows] for place, keyword in enumerate(_KEYWORDS)}
    alone = [attributes_json(dict(zip(_KEYWORDS, row, strict=True))) for row in rows]
    assert [json.loads(each) for each in objects(columns)] == alone
    assert [json.loads(b"{" + b",".join(each) + b"}") for each in members(columns)] == alone
    assert [[*json.loads(each)] for each in objects(columns)] == [sorted(each) for each in alone]
