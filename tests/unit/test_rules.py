"""What a rule's `when` asks, of what it is asked, and what `segnode rules test` says of it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from segnode.cli import main
from segnode.config import parse_config
from segnode.dicom.matching import Condition, When, satisfied
from segnode.errors import LabelError
from segnode.pipeline.rules import ForwardRule, Rule, forward_rule_of, resolve_rules, rule_of, series_values
from segnode.store.index import Sender
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom

MODEL = '[[models]]\nname = "m"\nrun = "python:m"\nlabels = "threshold"\nversion = "1"\n'


def rule(when: str) -> Rule:
    """A rule with that `when`."""
    (found,) = resolve_rules(parse_config(f'{MODEL}[[rules]]\nwhen = {when}\nmodel = "m"\n', Path()))
    return found


@pytest.mark.parametrize(
    ("when", "value", "expected"),
    [
        ("C?", "CT", True),
        ("C?", "CTA", False),
        ("AXIAL", "ORIGINAL\\PRIMARY\\AXIAL", True),
        (("CT", "P*"), "PT", True),
        (("CT", "P*"), "MR", False),
        (Condition(min=1), "1", True),
        (Condition(min=1), "0.5", False),
        (Condition(max=3), "3.0 ", True),
        (Condition(min=1, max=3), "5\\2", True),
        (Condition(min=1, max=3), "", False),
        (Condition(min=1, max=3), "two", False),
        (Condition(min=18), "018Y", True),
        (Condition(max=1), "011M", True),
        (Condition(max=1), "014M", False),
        (Condition(present=True), "x", True),
        (Condition(present=True), "", False),
        (Condition(present=False), "", True),
        (Condition(excluded="LOCALIZER"), "DERIVED\\LOCALIZER", False),
        (Condition(excluded="LOCALIZER"), "", True),
        (Condition(excluded=("a", "b")), "c", True),
        (Condition(excluded=Condition(min=2)), "3", False),
    ],
)
def test_conditions(when: When, value: str, expected: bool) -> None:
    """A pattern, one of several, a range of numbers or ages, whether there is a value, and the opposite of each."""
    assert satisfied(when, [value]) is expected


@given(st.lists(st.text("AB*", max_size=3)), st.text("AB*?", min_size=1, max_size=3))
def test_any_image_suffices_and_its_opposite_too(values: list[str], pattern: str) -> None:
    """A condition holds for a series if it holds for one of its images; `not` is asked of each image as well."""
    assert satisfied(pattern, values) == any(satisfied(pattern, [value]) for value in values)
    assert satisfied(Condition(excluded=pattern), values) == any(not satisfied(pattern, [value]) for value in values)


@pytest.mark.parametrize(
    "when",
    [
        '{ Modality = "CT" }',
        '{ Modality = ["CT", "PT"], Rows = { min = 64, max = 4096 } }',
        '{ ImageType = { not = { not = "AXIAL" } }, StudyID = { present = false } }',
    ],
)
def test_rule_is_the_same_after_it_was_kept(when: str) -> None:
    """What decided a job is read back from its document with the same digest, and another condition is another rule."""
    assert rule_of(rule(when).document) == rule(when)
    assert rule_of(rule(when).document).digest == rule(when).digest
    assert rule(when).digest != rule('{ Modality = "C?" }').digest


def test_who_sent_a_series_can_be_asked() -> None:
    """By AE titles and host, of which one of those that sent it suffices; text cannot be mistaken for an attribute."""
    asking = rule('{ calling_ae = "SCANNER*", called_ae = "LIVER", host = ["10.0.0.1", "10.0.0.2"] }')
    scanner, web = Sender("SCANNER1", "LIVER", "10.0.0.2"), Sender(host="10.0.0.1")
    assert asking.unsatisfied(series_values({}, [scanner])) == []
    assert asking.unsatisfied(series_values({}, [web, scanner])) == []
    assert asking.unsatisfied(series_values({}, [web])) == ["calling_ae", "called_ae"]
    assert asking.unsatisfied(series_values({}, [])) == ["calling_ae", "called_ae", "host"]


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A configuration with a destination and two rules, one of which is for thick slices from a scanner."""
    file = tmp_path / "segnode.toml"
    archive = '[[destinations]]\nname = "archive"\nto = "A@localhost:104"\nseg = ["labelmap:native"]\n'
    thin = '[[rules]]\nwhen = { Modality = "CT", SliceThickness = { max = 3 } }\nmodel = "m"\nsend_to = ["archive"]\n'
    thick = '[[rules]]\nwhen = { SliceThickness = { min = 5 }, calling_ae = "SCANNER" }\nmodel = "m"\nquiet = 5.0\n'
    file.write_text(MODEL + archive + thin + thick)
    return file


def run(configured: Path, *words: object) -> tuple[int, str, str]:
    """Exit code, output and error output of `segnode rules test`."""
    result = CliRunner().invoke(main, ["rules", "test", "--config", str(configured), *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def test_trial_says_what_would_happen(configured: Path, phantom: Phantom) -> None:
    """Which rule acts, with its model, where to and in which forms; of the others, what they lack; nothing is written."""
    before = sorted(configured.parent.iterdir())
    code, said, _ = run(configured, phantom.folder)
    assert code == 0
    assert f"{len(list(phantom.folder.iterdir()))} slices" in said
    assert "rules[0] acts: m 1, 60 s after the last image; sent to archive as labelmap:native" in said
    assert "rules[1] does not act: SliceThickness is '2.5', and it asks for {\"min\":5.0}" in said
    assert "calling_ae is empty" in said
    _, said, _ = run(configured, phantom.folder, "--calling-ae", "SCANNER", "--json")
    (series,) = json.loads(said)["series"]
    assert [(r["selects"], [u["key"] for u in r["unsatisfied"]]) for r in series["rules"]] == [
        (True, []),
        (False, ["SliceThickness"]),
    ]
    assert sorted(configured.parent.iterdir()) == before


def test_trial_looks_at_every_image(configured: Path, phantom: Phantom, tmp_path: Path) -> None:
    """One thick slice is enough for a rule that asks for it."""
    thick: Dataset = dcmread(min(phantom.folder.iterdir()))
    thick.SliceThickness, thick.SOPInstanceUID = 5, "1.2.3.4"
    thick.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    thick.save_as(tmp_path / "thick.dcm")
    code, said, _ = run(configured, phantom.folder, tmp_path / "thick.dcm", "--calling-ae", "SCANNER")
    assert (code, said.count(" acts: ")) == (0, 2)


def test_trial_fails_where_no_rule_acts(configured: Path, tmp_path: Path) -> None:
    """Exit code 1; files that would not be received are told with the reason."""
    other = Dataset()
    other.SOPClassUID, other.SOPInstanceUID, other.Modality = "1.2.840.10008.5.1.4.1.1.4", "1.1", "MR"
    other.StudyInstanceUID, other.SeriesInstanceUID = "1.2", "1.3"
    (tmp_path / "mr.dcm").write_bytes(encode_part10(other, ExplicitVRLittleEndian))
    code, said, trouble = run(configured, tmp_path / "mr.dcm", configured)
    assert (code, said.count("does not act")) == (1, 4)
    assert "1 file(s) would not be received: not a DICOM file" in trouble


def test_trial_of_rules_that_only_forward(configured: Path, phantom: Phantom) -> None:
    """They act without a model: what is sent is what came, and a SEG in the forms of the destination where the rule says so."""
    forwards = '[[rules]]\nwhen = {}\nsend_to = ["archive"]\nquiet = 3\n'
    configured.write_text(configured.read_text() + forwards + forwards + "reencode = true\n")
    code, said, _ = run(configured, phantom.folder)
    assert code == 0
    assert "rules[2] acts: forwards, 3 s after the last image; sent to archive as it came\n" in said
    assert "rules[3] acts: forwards, 3 s after the last image; sent to archive, SEGs as labelmap:native\n" in said
    (series,) = json.loads(run(configured, phantom.folder, "--json")[1])["series"]
    assert [(r["model"], r["send_to"]) for r in series["rules"][2:]] == [
        ("", {"archive": []}),
        ("", {"archive": ["labelmap:native"]}),
    ]


def test_rule_that_forwards_is_kept_and_named(tmp_path: Path) -> None:
    """It is read back from its document, and is another rule with another selection, destination or treatment of SEGs."""
    archives = "".join(f'[[destinations]]\nname = "{name}"\nto = "A@{name}:104"\n' for name in "ab")

    def forwarding(keys: str, when: str = "{}") -> ForwardRule:
        (found,) = resolve_rules(parse_config(f"{archives}[[rules]]\nwhen = {when}\n{keys}\n", tmp_path))
        assert isinstance(found, ForwardRule)
        return found

    plain = forwarding('send_to = ["a"]')
    assert forward_rule_of(plain.document) == plain
    assert forwarding('send_to = ["a"]\nquiet = 5').digest == plain.digest
    others = [
        forwarding('send_to = ["b"]'),
        forwarding('send_to = ["a"]\nreencode = true'),
        forwarding('send_to = ["a"]', '{ Modality = "CT" }'),
    ]
    assert len({plain.digest, *(other.digest for other in others)}) == 4
    with pytest.raises(LabelError):
        rule_of(plain.document)
