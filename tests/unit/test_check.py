"""Checking SEGs: one thing made wrong gives the finding it deserves, and what is legal gives none."""

import json
import time
from collections.abc import Callable
from copy import deepcopy
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, JPEGLSLossless, JPEGLSNearLossless

from segnode.cli import main
from segnode.dicom.codes import Code
from segnode.dicom.volume import Slices, order_slices
from segnode.errors import BadSegmentation, NotASegmentation, NotDicom
from segnode.pipeline.encode import _require_sound
from segnode.seg.check import check, check_attributes, read_to_check
from segnode.seg.check.finding import Finding
from segnode.seg.check.required import REQUIRED
from segnode.seg.forms import FORMS
from segnode.seg.segments import LabelDictionary
from segnode.seg.write import Algorithm, Identity, write_labelmap
from segnode.testing.phantom import write_ct

from .test_write import CREATED, SEGMENTS, standard

FRAMES = "PerFrameFunctionalGroupsSequence"
Change = Callable[[Dataset], object]


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Slices:
    """The headers of a small phantom in slice order."""
    folder = write_ct(tmp_path_factory.mktemp("check") / "ct", slices=5, size=32).folder
    return order_slices([dcmread(file) for file in folder.iterdir()])


def labelmap_of(slices: Slices, form: str = "labelmap:rle", *, above: int = 0) -> bytes:
    """A LABELMAP of ours with segments 2 and 7."""
    labels = np.zeros((5, 32, 32), np.uint16 if above else np.uint8)
    labels[1:4, 4:9, 5:7], labels[2, 20:22] = 7, 2
    algorithm = Algorithm("net", "2.1", Code("DCM", "123110", "Artificial Intelligence"))
    identity = Identity("2.25.1", "2.25.2", "made by a test", CREATED, "serial", "0.1", {7: "2.25.77"})
    dictionary = LabelDictionary(SEGMENTS)
    return write_labelmap(labels, slices.affine, slices.images, dictionary, algorithm, identity, FORMS[form])


def by_highdicom(slices: Slices, kind: str) -> bytes:
    """A BINARY or FRACTIONAL with two segments, written by highdicom."""
    algorithm = AlgorithmIdentificationSequence("net", codes.DCM.ArtificialIntelligence, "2.1")
    described = [SegmentDescription(n, f"segment {n}", codes.SCT.Organ, codes.SCT.Lung, "AUTOMATIC", algorithm) for n in (1, 2)]
    pixels = np.zeros((5, 32, 32, 2), np.uint8 if kind == "BINARY" else np.float32)
    pixels[1:4, 4:9, 5:7, 0] = pixels[2:5, 20:22, :, 1] = 1
    names = {"manufacturer": "m", "manufacturer_model_name": "m", "software_versions": "1", "device_serial_number": "1"}
    segmentation = Segmentation(slices.images, pixels, kind, described, "2.25.3", 1, "2.25.4", 1, content_label="A", **names)
    file = BytesIO()
    segmentation.save_as(file)
    return file.getvalue()


@pytest.fixture(scope="module")
def valid(slices: Slices) -> Callable[[str], bytes]:
    """Gives a file of each type that keeps the rules."""
    made = {kind: by_highdicom(slices, kind) for kind in ("BINARY", "FRACTIONAL")}
    made |= {"LABELMAP": labelmap_of(slices), "NATIVE": labelmap_of(slices, "labelmap:native")}
    return lambda kind: made[kind]


def seen(findings: tuple[Finding, ...]) -> set[tuple[str, str]]:
    """Severity and attribute of each finding."""
    return {(finding.severity, finding.attribute) for finding in findings}


@pytest.mark.parametrize("kind", ["LABELMAP", "NATIVE", "BINARY", "FRACTIONAL"])
def test_what_keeps_the_rules_has_no_findings(valid, kind: str) -> None:
    """Our writer's files and highdicom's have nothing wrong."""
    assert check(dcmread(BytesIO(valid(kind)))) == ()


@pytest.mark.parametrize("form", sorted(form for form in FORMS if form.startswith("labelmap:")))
@pytest.mark.parametrize("bits", [8, 16])
def test_every_form_of_ours_keeps_the_rules(slices: Slices, form: str, bits: int) -> None:
    """What the node emits has nothing wrong, in every form, in 8 and 16 bits."""
    assert check(dcmread(BytesIO(labelmap_of(slices, form, above=bits - 8)))) == ()


def test_a_poor_source_makes_no_poor_segmentation(slices: Slices) -> None:
    """Decimals that are too long for a DS, and a missing frame of reference, do not go over into the SEG."""
    poor = deepcopy(slices)
    for image in poor.images:
        del image.FrameOfReferenceUID
        image["PixelSpacing"] = DataElement(Tag("PixelSpacing"), "DS", ["12.50000000000000001", "12.5"], already_converted=True)
    assert check(dcmread(BytesIO(labelmap_of(poor)))) == ()


def to(**values: object) -> Change:
    """A change that sets attributes."""

    def change(dataset: Dataset) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


def without(keyword: str) -> Change:
    """A change that removes an attribute."""
    return lambda dataset: delattr(dataset, keyword)


def segment(number: int, change: Change) -> Change:
    """A change of one segment."""
    return lambda dataset: change(dataset.SegmentSequence[number])


def frame(number: int, group: str, change: Change) -> Change:
    """A change of a functional group of one frame."""
    return lambda dataset: change(dataset[FRAMES].value[number][group].value[0])


def all_of(*changes: Change) -> Change:
    """Changes one after the other."""
    return lambda dataset: [change(dataset) for change in changes]


def in_syntax(uid: str) -> Change:
    """A change of what the file says its transfer syntax is."""
    return lambda dataset: setattr(dataset.file_meta, "TransferSyntaxUID", uid)


def palette(dataset: Dataset) -> None:
    """Make a LABELMAP one in PALETTE COLOR, with all that this needs."""
    dataset.PhotometricInterpretation, dataset.ICCProfile = "PALETTE COLOR", b"profile!"
    for colour in ("Red", "Green", "Blue"):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 8])
        dataset.add_new(f"{colour}PaletteColorLookupTableData", "OW", bytes(256))
    for item in dataset.SegmentSequence:
        if "RecommendedDisplayCIELabValue" in item:
            del item.RecommendedDisplayCIELabValue


def with_identification(dataset: Dataset) -> None:
    """Give the frames what belongs to a BINARY."""
    for item in dataset[FRAMES].value:
        group = Dataset()
        group.ReferencedSegmentNumber = 7
        item.SegmentIdentificationSequence = [group]


def without_derivation(dataset: Dataset) -> None:
    """Take the source images from the frames."""
    for item in dataset[FRAMES].value:
        del item.DerivationImageSequence


def without_identification(dataset: Dataset) -> None:
    """Take the segment from the frames."""
    for item in dataset[FRAMES].value:
        del item.SegmentIdentificationSequence


def share_content(dataset: Dataset) -> None:
    """Share what is of one frame."""
    dataset.SharedFunctionalGroupsSequence[0].FrameContentSequence = dataset[FRAMES].value[0].FrameContentSequence


def wrong_derivation(dataset: Dataset) -> None:
    """Give a frame the code of another derivation."""
    dataset[FRAMES].value[0].DerivationImageSequence[0].DerivationCodeSequence[0].CodeValue = "113072"


def series_of_the_source(dataset: Dataset) -> None:
    """Put the SEG into the series of its source."""
    dataset.SeriesInstanceUID = dataset.ReferencedSeriesSequence[0].SeriesInstanceUID


def incomplete_reference(dataset: Dataset) -> None:
    """Leave out one of the images that frames refer to."""
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence.pop()


def same_place(dataset: Dataset) -> None:
    """Put a frame where another lies."""
    dataset[FRAMES].value[1].PlanePositionSequence = dataset[FRAMES].value[0].PlanePositionSequence


def of_pixel_data(length: int) -> Change:
    """A change that shortens the pixel data."""
    return lambda dataset: setattr(dataset, "PixelData", dataset.PixelData[:length])


DIMENSION = f"{FRAMES}[0].FrameContentSequence[0].DimensionIndexValues"
L, B, F, N = "LABELMAP", "BINARY", "FRACTIONAL", "NATIVE"

WRONG: list[tuple[str, str, Change, str]] = [
    # The list of mutations of a public validator, LABELMAP.
    ("bits-1", L, to(BitsAllocated=1), "BitsAllocated"),
    ("bits-32", L, to(BitsAllocated=32), "BitsAllocated"),
    ("bits-stored", L, to(BitsStored=7), "BitsStored"),
    ("high-bit", L, to(HighBit=6), "HighBit"),
    ("photometric", L, to(PhotometricInterpretation="MONOCHROME1"), "PhotometricInterpretation"),
    ("padding-range", L, lambda d: d.add_new("PixelPaddingRangeLimit", "US", 3), "PixelPaddingRangeLimit"),
    ("palette-missing-icc", L, all_of(palette, without("ICCProfile")), "ICCProfile"),
    (
        "palette-missing-lut",
        L,
        all_of(palette, without("RedPaletteColorLookupTableData")),
        "RedPaletteColorLookupTableData",
    ),
    (
        "palette-cielab",
        L,
        all_of(palette, segment(0, to(RecommendedDisplayCIELabValue=[1, 2, 3]))),
        "SegmentSequence[0].RecommendedDisplayCIELabValue",
    ),
    ("palette-left-in", L, all_of(palette, to(PhotometricInterpretation="MONOCHROME2")), "ICCProfile"),
    ("overlap-yes", L, to(SegmentsOverlap="YES"), "SegmentsOverlap"),
    ("overlap-undefined", L, to(SegmentsOverlap="UNDEFINED"), "SegmentsOverlap"),
    ("maximum-fractional", L, to(MaximumFractionalValue=255), "MaximumFractionalValue"),
    ("fractional-type", L, to(SegmentationFractionalType="PROBABILITY"), "SegmentationFractionalType"),
    ("segment-identification", L, with_identification, f"{FRAMES}[0].SegmentIdentificationSequence"),
    ("undescribed-value", L, lambda d: d.SegmentSequence.pop(0), "PixelData"),
    ("undescribed-background", L, all_of(lambda d: d.SegmentSequence.pop(2), without("PixelPaddingValue")), "PixelData"),
    # The same list, BINARY and FRACTIONAL.
    ("binary-bits-8", B, to(BitsAllocated=8, BitsStored=8, HighBit=7), "BitsAllocated"),
    ("fractional-missing-maximum", F, without("MaximumFractionalValue"), "MaximumFractionalValue"),
    ("fractional-beyond-maximum", F, to(MaximumFractionalValue=100), "PixelData"),
    ("voi-lut", B, to(WindowCenter=1, WindowWidth=2), "WindowCenter"),
    ("missing-segment-identification", B, without_identification, f"{FRAMES}[0].SegmentIdentificationSequence"),
    (
        "unknown-referenced-segment",
        B,
        frame(0, "SegmentIdentificationSequence", to(ReferencedSegmentNumber=9)),
        f"{FRAMES}[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber",
    ),
    ("segment-numbers-gap", B, segment(1, to(SegmentNumber=3)), "SegmentSequence[1].SegmentNumber"),
    ("segment-numbers-twice", L, segment(1, to(SegmentNumber=2)), "SegmentSequence[1].SegmentNumber"),
    ("image-type-original", B, to(ImageType=["ORIGINAL", "PRIMARY"]), "ImageType"),
    ("pixel-padding", B, lambda d: d.add_new("PixelPaddingValue", "US", 0), "PixelPaddingValue"),
    (
        "no-frame-of-reference-no-derivation",
        B,
        all_of(without("FrameOfReferenceUID"), without_derivation),
        "FrameOfReferenceUID",
    ),
    ("geometry-without-frame-of-reference", B, without("FrameOfReferenceUID"), "FrameOfReferenceUID"),
    ("derivation-without-instance-reference", B, without("ReferencedSeriesSequence"), "ReferencedSeriesSequence"),
    (
        "derivation-wrong-code",
        B,
        wrong_derivation,
        f"{FRAMES}[0].DerivationImageSequence[0].DerivationCodeSequence",
    ),
    ("frame-content-shared", B, share_content, "SharedFunctionalGroupsSequence[0].FrameContentSequence"),
    ("algorithm-name-missing", B, segment(0, without("SegmentAlgorithmName")), "SegmentSequence[0].SegmentAlgorithmName"),
    # What else breaks SEGs in practice.
    ("class-of-binary", L, to(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), "SOPClassUID"),
    ("type-unknown", L, to(SegmentationType="LABELS"), "SegmentationType"),
    ("meta-differs", L, lambda d: setattr(d.file_meta, "MediaStorageSOPInstanceUID", "1.2"), "MediaStorageSOPInstanceUID"),
    ("signed", L, to(PixelRepresentation=1), "PixelRepresentation"),
    ("padding-undescribed", L, lambda d: d.add_new("PixelPaddingValue", "US", 5), "PixelPaddingValue"),
    ("serial-empty", L, to(DeviceSerialNumber=""), "DeviceSerialNumber"),
    ("series-number-missing", L, without("SeriesNumber"), "SeriesNumber"),
    ("content-description-missing", L, without("ContentDescription"), "ContentDescription"),
    ("modality", L, to(Modality="CT"), "Modality"),
    ("content-label", L, lambda d: d.add(DataElement("ContentLabel", "CS", "lower", validation_mode=0)), "ContentLabel"),
    (
        "label-too-long",
        L,
        segment(1, lambda s: s.add(DataElement("SegmentLabel", "LO", "x" * 65, validation_mode=0))),
        "SegmentSequence[1].SegmentLabel",
    ),
    ("tracking-id-alone", L, segment(1, without("TrackingUID")), "SegmentSequence[1].TrackingUID"),
    (
        "code-without-meaning",
        L,
        segment(0, lambda s: delattr(s.SegmentedPropertyTypeCodeSequence[0], "CodeMeaning")),
        "SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning",
    ),
    (
        "no-uid",
        L,
        lambda d: d.add(DataElement("FrameOfReferenceUID", "UI", "1.2.x", validation_mode=0)),
        "FrameOfReferenceUID",
    ),
    (
        "series-of-the-source",
        L,
        lambda d: to(SeriesInstanceUID=d.ReferencedSeriesSequence[0].SeriesInstanceUID)(d),
        "SeriesInstanceUID",
    ),
    (
        "reference-incomplete",
        L,
        lambda d: d.ReferencedSeriesSequence[0].ReferencedInstanceSequence.pop(),
        "ReferencedSeriesSequence",
    ),
    ("group-missing", L, lambda d: d[FRAMES].value.pop(), FRAMES),
    ("same-place", L, same_place, f"{FRAMES}[1].PlanePositionSequence"),
    ("same-index", L, frame(1, "FrameContentSequence", to(DimensionIndexValues=[1])), DIMENSION.replace("[0]", "[1]", 1)),
    ("index-too-many", L, frame(0, "FrameContentSequence", to(DimensionIndexValues=[1, 1])), DIMENSION),
    ("index-zero", L, frame(0, "FrameContentSequence", to(DimensionIndexValues=[0])), DIMENSION),
    (
        "index-stale",
        L,
        lambda d: to(DimensionIndexPointer=0x0062000B, FunctionalGroupPointer=0x0062000A)(d.DimensionIndexSequence[0]),
        "DimensionIndexSequence[0].DimensionIndexPointer",
    ),
    (
        "organization-unknown",
        L,
        lambda d: to(DimensionOrganizationUID="1.2")(d.DimensionIndexSequence[0]),
        "DimensionIndexSequence[0].DimensionOrganizationUID",
    ),
    (
        "spacing-missing",
        L,
        lambda d: delattr(d.SharedFunctionalGroupsSequence[0], "PixelMeasuresSequence"),
        "PixelMeasuresSequence",
    ),
    ("lossy-jpeg-ls", L, in_syntax(JPEGLSNearLossless), "TransferSyntaxUID"),
    ("lossy-jpeg-2000", L, in_syntax(JPEG2000), "TransferSyntaxUID"),
    ("lossy-jpeg", L, in_syntax(JPEGBaseline8Bit), "TransferSyntaxUID"),
    ("lossy-htj2k", L, in_syntax("1.2.840.10008.1.2.4.203"), "TransferSyntaxUID"),
    ("lossy-jpeg-xl", L, in_syntax("1.2.840.10008.1.2.4.112"), "TransferSyntaxUID"),
    ("binary-jpeg-ls", B, in_syntax(JPEGLSLossless), "TransferSyntaxUID"),
    ("lossy-unsaid", L, without("LossyImageCompression"), "LossyImageCompression"),
    ("pixels-short", N, of_pixel_data(-2), "PixelData"),
    ("pixels-missing", N, without("PixelData"), "PixelData"),
    ("frames-missing", L, to(NumberOfFrames=6), "PixelData"),
    ("frames-broken", L, lambda d: setattr(d, "PixelData", d.PixelData[:-200] + bytes(192) + d.PixelData[-8:]), "PixelData"),
]


@pytest.mark.parametrize(("kind", "change", "attribute"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_what_is_made_wrong_is_found(valid, kind: str, change: Change, attribute: str) -> None:
    """Each thing made wrong in a valid file is an error of that attribute."""
    dataset = dcmread(BytesIO(valid(kind)))
    change(dataset)
    findings = check(dataset)
    assert ("error", attribute) in seen(findings)
    assert all(finding.message and finding.clause.startswith("PS3.") for finding in findings)


def lossy_without_ratio(dataset: Dataset) -> None:
    """Say that a source was compressed lossily, and not by how much."""
    dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"


WARNED: list[tuple[str, str, Change, str]] = [
    ("lossy-without-ratio", L, lossy_without_ratio, "LossyImageCompressionRatio"),
    ("patient-sex", L, to(PatientSex="X"), "PatientSex"),
    ("tracked-twice", L, segment(0, to(TrackingID="Lung", TrackingUID="2.25.77")), "SegmentSequence[1].TrackingUID"),
    ("character-set", L, to(SpecificCharacterSet="LATIN1"), "SpecificCharacterSet"),
    ("rescale", L, to(RescaleSlope=2), "RescaleSlope"),
    ("fractional-lossy", F, in_syntax(JPEG2000), "TransferSyntaxUID"),
]


@pytest.mark.parametrize(("kind", "change", "attribute"), [case[1:] for case in WARNED], ids=[case[0] for case in WARNED])
def test_what_is_doubtful_is_a_warning(valid, kind: str, change: Change, attribute: str) -> None:
    """What came with the source, or may be meant, is no error."""
    dataset = dcmread(BytesIO(valid(kind)))
    change(dataset)
    assert seen(check_attributes(dataset)) == {("warning", attribute)}


LEGAL: list[tuple[str, str, Change]] = [
    ("overlap-missing", L, without("SegmentsOverlap")),
    ("no-padding", L, without("PixelPaddingValue")),
    ("palette", L, palette),
    ("segments-in-any-order", L, lambda d: d.SegmentSequence.reverse()),
    (
        "manual-without-name",
        L,
        segment(0, lambda s: [to(SegmentAlgorithmType="MANUAL")(s), without("SegmentAlgorithmName")(s)]),
    ),
    ("binary-overlap-yes", B, to(SegmentsOverlap="YES")),
    ("occupancy", F, to(SegmentationFractionalType="OCCUPANCY")),
    ("empty-patient", L, to(PatientName="", PatientID="", PatientSex="")),
]


@pytest.mark.parametrize(("kind", "change"), [case[1:] for case in LEGAL], ids=[case[0] for case in LEGAL])
def test_what_is_legal_has_no_findings(valid, kind: str, change: Change) -> None:
    """What the standard allows is let pass."""
    dataset = dcmread(BytesIO(valid(kind)))
    change(dataset)
    assert check(dataset) == ()


def test_what_is_wrong_with_many_frames_is_told_once(valid) -> None:
    """One finding, of the first frame, with the number of the others."""
    dataset = dcmread(BytesIO(valid("LABELMAP")))
    with_identification(dataset)
    (found,) = [f for f in check(dataset) if "SegmentIdentification" in f.attribute]
    assert found.attribute == f"{FRAMES}[0].SegmentIdentificationSequence"
    assert found.message.endswith("(and 4 more like it)")


def test_the_table_of_what_is_required_is_that_of_the_standard() -> None:
    """Type 1 and 2 attributes of the mandatory modules, outside sequences, as highdicom's tables of PS3.3 have them."""
    modules = [m["key"] for m in standard("iod_module_map.json")["segmentation"] if m["usage"] == "M"]
    table = standard("module_attribute_map.json")
    attributes = [a for module in modules for a in table[module] if not a["path"]]
    filled = {a["keyword"] for a in attributes if a["type"] == "1"}
    present = {a["keyword"] for a in attributes if a["type"] == "2"} - filled
    ours = [required for required in REQUIRED if not required.path]
    assert {keyword for required in ours for keyword in required.filled} == filled
    assert {keyword for required in ours for keyword in required.present} - {"ContentCreatorName"} == present - {
        "ContentCreatorName"
    }


PUBLISHED = {
    "dcmqi/24x38x3/seg/label.seg": set(),
    "dcmqi/liver.dcm": set(),
    # Positions are numbered anew for each segment, so that an index value stands for several positions.
    "dcmqi/partial_overlaps.dcm": {("warning", f"{FRAMES}[2].FrameContentSequence[0].DimensionIndexValues")},
    # The background value 5 has no item in SegmentSequence.
    "dcmqi/sparse-labelmap-ppv5.dcm": {("error", "PixelPaddingValue")},
    "highdicom/seg_image_ct_binary.dcm": set(),
    "highdicom/seg_image_ct_binary_overlap.dcm": set(),
    "highdicom/seg_image_ct_true_fractional.dcm": set(),
    "highdicom/seg_image_sm_control.dcm": set(),
    "highdicom/seg_image_sm_control_labelmap.dcm": set(),
    "highdicom/seg_image_sm_dots_tiled_full.dcm": set(),
    "pydicom-data/liver.dcm": set(),
    "pydicom-data/liver_deflate.dcm": set(),
    "pydicom-data/liver_expb.dcm": set(),
    "pydicom-data/liver_j2k.dcm": set(),
    "pydicom-data/liver_nonbyte_aligned.dcm": set(),
    "pydicom-data/liver_rle.dcm": set(),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_have_the_findings_they_deserve(sample, name: str) -> None:
    """Real files of other writers, with what is wrong in each."""
    assert seen(check(read_to_check(sample(name)))) == PUBLISHED[name]


VALUES = st.sampled_from(["", "text", "-1", "1.2.3", "99999999999", None, b"", b"\xff", 0, 65535, [], [0.5, 1e300], "a\\b"])
VRS = st.sampled_from(["SQ", "LO", "US", "DS", "IS", "UI", "CS", "OB", "FD", "AT", "PN"])


def places(item: Dataset) -> list[tuple[Dataset, int]]:
    """Every element of a data set and of its items."""
    found = []
    for element in item:
        found.append((item, element.tag))
        if element.VR == "SQ":
            found.extend(place for below in element.value[:2] for place in places(below))
    return found


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["LABELMAP", "NATIVE", "BINARY", "FRACTIONAL"]))
def test_hostile_files_give_findings_and_no_exception(valid, data: st.DataObject, kind: str) -> None:
    """Elements removed, emptied or replaced by what they must not be, anywhere: check answers, and soon."""
    dataset = dcmread(BytesIO(valid(kind)))
    for _ in range(data.draw(st.integers(1, 4))):
        item, tag = data.draw(st.sampled_from(places(dataset)))
        if tag not in item:
            continue
        what = data.draw(st.sampled_from(["remove", "empty", "value", "vr", "sequence"]))
        if what == "remove":
            del item[tag]
        elif what == "empty":
            item[tag] = DataElement(tag, item[tag].VR, Sequence() if item[tag].VR == "SQ" else None)
        elif what == "sequence":
            item[tag] = DataElement(tag, "SQ", Sequence([Dataset(), Dataset()]))
        else:
            vr = dictionary_VR(tag) if what == "value" else data.draw(VRS)
            try:
                item[tag] = DataElement(tag, vr[:2], data.draw(VALUES), validation_mode=0)
            except (TypeError, ValueError, OverflowError, AttributeError):
                continue  # pydicom holds no such element
    began = time.monotonic()
    assert isinstance(check(dataset), tuple)
    assert time.monotonic() - began < 5


PLACES = st.floats(0, 1)


@settings(max_examples=60)
@given(kind=st.sampled_from([L, B]), bad=st.lists(st.tuples(PLACES, st.integers(0, 255)), min_size=1, max_size=6), end=PLACES)
def test_damaged_bytes_give_findings_or_a_refusal(valid, tmp_path_factory, kind: str, bad, end: float) -> None:
    """Bytes overwritten or cut off: the file is refused with a reason, or checked."""
    damaged = bytearray(valid(kind))
    for place, byte in bad:
        damaged[132 + int(place * (len(damaged) - 133))] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.dcm"
    path.write_bytes(damaged[: 140 + int(end * len(damaged))])
    try:
        findings = check(read_to_check(path))
    except (NotDicom, NotASegmentation):
        return
    assert isinstance(findings, tuple)


def test_a_segmentation_that_breaks_a_rule_does_not_leave_the_node(valid) -> None:
    """The encoder refuses it, with attribute and clause; a valid one passes."""
    _require_sound(valid("LABELMAP"))
    dataset = dcmread(BytesIO(valid("LABELMAP")))
    dataset.SegmentsOverlap = "YES"
    file = BytesIO()
    dataset.save_as(file)
    with pytest.raises(BadSegmentation, match=r"SegmentsOverlap is 'YES'; it is NO \(PS3.3 C.8.20.2\)"):
        _require_sound(file.getvalue())


@pytest.fixture
def folder(valid, tmp_path: Path) -> Path:
    """A folder with a good SEG, a bad one, and a file that is no DICOM."""
    (tmp_path / "good.dcm").write_bytes(valid("LABELMAP"))
    dataset = dcmread(BytesIO(valid("BINARY")))
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.save_as(tmp_path / "bad.dcm")
    (tmp_path / "notes.txt").write_text("no DICOM")
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and output of `segnode seg check`."""
    result = CliRunner().invoke(main, ["seg", "check", *arguments])
    return result.exit_code, result.output


def test_command_tells_findings_and_exit_code(folder: Path) -> None:
    """0 without errors, 1 with one; the table names attribute, clause and what to do."""
    assert run(str(folder / "good.dcm")) == (0, f"{folder / 'good.dcm'}: no findings\n")
    code, output = run(str(folder))
    assert code == 1
    assert "no findings" in output
    assert "error    ImageType" in output
    assert "PS3.3 C.8.20.2.1" in output


def test_command_writes_json(folder: Path) -> None:
    """One object a finding, with its file."""
    code, output = run(str(folder), "--json")
    assert code == 1
    (found,) = json.loads(output)
    assert (found["severity"], found["attribute"], found["file"]) == ("error", "ImageType", str(folder / "bad.dcm"))
    assert run(str(folder / "good.dcm"), "--json") == (0, "[]\n")


def test_command_says_what_is_no_segmentation(folder: Path, slices: Slices) -> None:
    """No DICOM, no SEG, no SEG in a folder: a message and 1; no such file: 2."""
    assert run(str(folder / "notes.txt"))[0] == 1
    slices.images[0].save_as(folder / "ct.dcm", enforce_file_format=True)
    code, output = run(str(folder / "ct.dcm"))
    assert code == 1
    assert "no SEG" in output
    (folder / "empty").mkdir()
    assert run(str(folder / "empty"))[0] == 1
    assert run(str(folder / "absent.dcm"))[0] == 2
    assert run()[0] == 2
