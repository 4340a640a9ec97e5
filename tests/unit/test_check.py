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
from segnode.dicom.slices import Slices, order_slices
from segnode.errors import BadSegmentation, NotASegmentation, NotDicom
from segnode.pipeline.encode import _require_sound
from segnode.seg.check import check, check_attributes, read_to_check
from segnode.seg.check.finding import Finding
from segnode.seg.check.required import REQUIRED
from segnode.seg.codecs import CODECS
from segnode.seg.forms import FORMS
from segnode.seg.recode import recode
from segnode.seg.segmentation import DescribedSegment
from segnode.seg.segments import LabelDictionary
from segnode.seg.write import Algorithm, Identity, StoredAs, write_labelmap, write_segmentation
from segnode.seg.write.placement import at_positions, on_slide
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


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", ["LABELMAP", "WIDE", "BINARY", "FRACTIONAL"])
def test_every_codec_keeps_the_rules(slices: Slices, valid, codec: str, kind: str) -> None:
    """What is encoded anew has nothing wrong, in every codec that has frames of its bits."""
    bits = {"BINARY": 1, "WIDE": 16}.get(kind, 8)
    if bits in CODECS[codec].bits:
        data = labelmap_of(slices, "labelmap:native", above=1) if kind == "WIDE" else valid(kind)
        assert check(dcmread(BytesIO(recode(data, CODECS[codec])))) == ()


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
    dataset.PhotometricInterpretation, dataset.ICCProfile = "PALETTE COLOR", bytes(12) + b"scnrRGB XYZ " + bytes(104)
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

WRONG: list[tuple[str, str, Change, str, str]] = [
    # The list of mutations of a public validator, LABELMAP.
    ("bits-1", L, to(BitsAllocated=1), "BitsAllocated", "PS3.3 C.8.20.2"),
    ("bits-32", L, to(BitsAllocated=32), "BitsAllocated", "PS3.3 C.8.20.2"),
    ("bits-stored", L, to(BitsStored=7), "BitsStored", "PS3.3 C.8.20.2"),
    ("high-bit", L, to(HighBit=6), "HighBit", "PS3.3 C.8.20.2"),
    ("photometric", L, to(PhotometricInterpretation="MONOCHROME1"), "PhotometricInterpretation", "PS3.3 C.8.20.2"),
    ("padding-range", L, lambda d: d.add_new("PixelPaddingRangeLimit", "US", 3), "PixelPaddingRangeLimit", "PS3.3 A.51.4"),
    ("palette-missing-icc", L, all_of(palette, without("ICCProfile")), "ICCProfile", "PS3.3 A.51.3"),
    (
        "palette-missing-lut",
        L,
        all_of(palette, without("RedPaletteColorLookupTableData")),
        "RedPaletteColorLookupTableData",
        "PS3.3 C.7.9",
    ),
    (
        "palette-cielab",
        L,
        all_of(palette, segment(0, to(RecommendedDisplayCIELabValue=[1, 2, 3]))),
        "SegmentSequence[0].RecommendedDisplayCIELabValue",
        "PS3.3 Table C.8.20-4",
    ),
    (
        "palette-icc-of-a-monitor",
        L,
        all_of(palette, to(ICCProfile=bytes(12) + b"mntrRGB XYZ " + bytes(104))),
        "ICCProfile",
        "PS3.3 C.11.15.1.1",
    ),
    ("palette-left-in", L, all_of(palette, to(PhotometricInterpretation="MONOCHROME2")), "ICCProfile", "PS3.3 A.51.3"),
    ("overlap-yes", L, to(SegmentsOverlap="YES"), "SegmentsOverlap", "PS3.3 C.8.20.2"),
    ("overlap-undefined", L, to(SegmentsOverlap="UNDEFINED"), "SegmentsOverlap", "PS3.3 C.8.20.2"),
    ("maximum-fractional", L, to(MaximumFractionalValue=255), "MaximumFractionalValue", "PS3.3 C.8.20.2"),
    ("fractional-type", L, to(SegmentationFractionalType="PROBABILITY"), "SegmentationFractionalType", "PS3.3 C.8.20.2"),
    ("segment-identification", L, with_identification, f"{FRAMES}[0].SegmentIdentificationSequence", "PS3.3 A.51.5"),
    ("undescribed-value", L, lambda d: d.SegmentSequence.pop(0), "PixelData", "PS3.3 C.8.20.2.3"),
    (
        "undescribed-background",
        L,
        all_of(lambda d: d.SegmentSequence.pop(2), without("PixelPaddingValue")),
        "PixelData",
        "PS3.3 C.8.20.2.3",
    ),
    # The same list, BINARY and FRACTIONAL.
    ("binary-bits-8", B, to(BitsAllocated=8, BitsStored=8, HighBit=7), "BitsAllocated", "PS3.3 C.8.20.2"),
    ("fractional-missing-maximum", F, without("MaximumFractionalValue"), "MaximumFractionalValue", "PS3.3 C.8.20.2"),
    ("fractional-beyond-maximum", F, to(MaximumFractionalValue=100), "PixelData", "PS3.3 C.8.20.2"),
    ("voi-lut", B, to(WindowCenter=1, WindowWidth=2), "WindowCenter", "PS3.3 A.51.4"),
    ("missing-segment-identification", B, without_identification, f"{FRAMES}[0].SegmentIdentificationSequence", "PS3.3 A.51.5"),
    (
        "unknown-referenced-segment",
        B,
        frame(0, "SegmentIdentificationSequence", to(ReferencedSegmentNumber=9)),
        f"{FRAMES}[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber",
        "PS3.3 C.8.20.3.1",
    ),
    ("segment-numbers-gap", B, segment(1, to(SegmentNumber=3)), "SegmentSequence[1].SegmentNumber", "PS3.3 C.8.20.2.4"),
    ("segment-numbers-twice", L, segment(1, to(SegmentNumber=2)), "SegmentSequence[1].SegmentNumber", "PS3.3 C.8.20.2.4"),
    ("image-type-original", B, to(ImageType=["ORIGINAL", "PRIMARY"]), "ImageType", "PS3.3 C.8.20.2"),
    ("pixel-padding", B, lambda d: d.add_new("PixelPaddingValue", "US", 0), "PixelPaddingValue", "PS3.3 A.51.4"),
    (
        "no-frame-of-reference-no-derivation",
        B,
        all_of(without("FrameOfReferenceUID"), without_derivation),
        "FrameOfReferenceUID",
        "PS3.3 A.51.3",
    ),
    ("geometry-without-frame-of-reference", B, without("FrameOfReferenceUID"), "FrameOfReferenceUID", "PS3.3 A.51.3"),
    (
        "derivation-without-instance-reference",
        B,
        without("ReferencedSeriesSequence"),
        "ReferencedSeriesSequence",
        "PS3.3 C.12.2",
    ),
    (
        "derivation-wrong-code",
        B,
        wrong_derivation,
        f"{FRAMES}[0].DerivationImageSequence[0].DerivationCodeSequence",
        "PS3.3 A.51.5.1",
    ),
    ("frame-content-shared", B, share_content, "SharedFunctionalGroupsSequence[0].FrameContentSequence", "PS3.3 A.51.5"),
    (
        "algorithm-name-missing",
        B,
        segment(0, without("SegmentAlgorithmName")),
        "SegmentSequence[0].SegmentAlgorithmName",
        "PS3.3 Table C.8.20-4",
    ),
    # What else breaks SEGs in practice.
    ("class-of-binary", L, to(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), "SOPClassUID", "PS3.3 C.8.20.2.3"),
    ("type-unknown", L, to(SegmentationType="LABELS"), "SegmentationType", "PS3.3 C.8.20.2.3"),
    (
        "meta-differs",
        L,
        lambda d: setattr(d.file_meta, "MediaStorageSOPInstanceUID", "1.2"),
        "MediaStorageSOPInstanceUID",
        "PS3.10 7.1",
    ),
    ("signed", L, to(PixelRepresentation=1), "PixelRepresentation", "PS3.3 C.8.20.2"),
    ("padding-undescribed", L, lambda d: d.add_new("PixelPaddingValue", "US", 5), "PixelPaddingValue", "PS3.3 A.51.4"),
    ("serial-empty", L, to(DeviceSerialNumber=""), "DeviceSerialNumber", "PS3.3 C.7.5.2"),
    ("series-number-missing", L, without("SeriesNumber"), "SeriesNumber", "PS3.3 C.8.20.1"),
    ("content-description-missing", L, without("ContentDescription"), "ContentDescription", "PS3.3 C.8.20.2"),
    ("modality", L, to(Modality="CT"), "Modality", "PS3.3 C.8.20.1"),
    (
        "content-label",
        L,
        lambda d: d.add(DataElement("ContentLabel", "CS", "lower", validation_mode=0)),
        "ContentLabel",
        "PS3.5 6.2",
    ),
    (
        "label-too-long",
        L,
        segment(1, lambda s: s.add(DataElement("SegmentLabel", "LO", "x" * 65, validation_mode=0))),
        "SegmentSequence[1].SegmentLabel",
        "PS3.5 6.2",
    ),
    ("tracking-id-alone", L, segment(1, without("TrackingUID")), "SegmentSequence[1].TrackingUID", "PS3.3 Table C.8.20-4"),
    (
        "code-without-meaning",
        L,
        segment(0, lambda s: delattr(s.SegmentedPropertyTypeCodeSequence[0], "CodeMeaning")),
        "SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning",
        "PS3.3 8.8",
    ),
    (
        "no-uid",
        L,
        lambda d: d.add(DataElement("FrameOfReferenceUID", "UI", "1.2.x", validation_mode=0)),
        "FrameOfReferenceUID",
        "PS3.5 9.1",
    ),
    (
        "series-of-the-source",
        L,
        lambda d: to(SeriesInstanceUID=d.ReferencedSeriesSequence[0].SeriesInstanceUID)(d),
        "SeriesInstanceUID",
        "PS3.3 C.7.3.1",
    ),
    (
        "reference-incomplete",
        L,
        lambda d: d.ReferencedSeriesSequence[0].ReferencedInstanceSequence.pop(),
        "ReferencedSeriesSequence",
        "PS3.3 C.12.2",
    ),
    ("group-missing", L, lambda d: d[FRAMES].value.pop(), FRAMES, "PS3.3 C.7.6.16"),
    ("same-place", L, same_place, f"{FRAMES}[1].PlanePositionSequence", "PS3.3 C.8.20.2.3"),
    ("index-too-many", L, frame(0, "FrameContentSequence", to(DimensionIndexValues=[1, 1])), DIMENSION, "PS3.3 C.7.6.16.2.2"),
    ("index-zero", L, frame(0, "FrameContentSequence", to(DimensionIndexValues=[0])), DIMENSION, "PS3.3 C.7.6.17.1"),
    (
        "index-stale",
        L,
        lambda d: to(DimensionIndexPointer=0x0062000B, FunctionalGroupPointer=0x0062000A)(d.DimensionIndexSequence[0]),
        "DimensionIndexSequence[0].DimensionIndexPointer",
        "PS3.3 C.7.6.17",
    ),
    (
        "organization-unknown",
        L,
        lambda d: to(DimensionOrganizationUID="1.2")(d.DimensionIndexSequence[0]),
        "DimensionIndexSequence[0].DimensionOrganizationUID",
        "PS3.3 C.7.6.17",
    ),
    (
        "spacing-missing",
        L,
        lambda d: delattr(d.SharedFunctionalGroupsSequence[0], "PixelMeasuresSequence"),
        "PixelMeasuresSequence",
        "PS3.3 A.51.5.1",
    ),
    ("lossy-jpeg-ls", L, in_syntax(JPEGLSNearLossless), "TransferSyntaxUID", "PS3.5 8.2"),
    ("lossy-jpeg-2000", L, in_syntax(JPEG2000), "TransferSyntaxUID", "PS3.5 8.2"),
    ("lossy-jpeg", L, in_syntax(JPEGBaseline8Bit), "TransferSyntaxUID", "PS3.5 8.2"),
    ("lossy-htj2k", L, in_syntax("1.2.840.10008.1.2.4.203"), "TransferSyntaxUID", "PS3.5 8.2"),
    ("lossy-jpeg-xl", L, in_syntax("1.2.840.10008.1.2.4.112"), "TransferSyntaxUID", "PS3.5 8.2"),
    ("binary-jpeg-ls", B, in_syntax(JPEGLSLossless), "TransferSyntaxUID", "PS3.5 8.2"),
    ("lossy-denied", F, in_syntax(JPEGBaseline8Bit), "LossyImageCompression", "PS3.3 C.8.20.2.2"),
    ("lossy-unsaid", L, without("LossyImageCompression"), "LossyImageCompression", "PS3.3 C.8.20.2"),
    ("label-of-two-values", L, segment(0, to(SegmentLabel="a\\b")), "SegmentSequence[0].SegmentLabel", "PS3.5 6.2"),
    ("pixels-short", N, of_pixel_data(-2), "PixelData", "PS3.5 8.2"),
    ("pixels-missing", N, without("PixelData"), "PixelData", "PS3.3 C.7.6.3"),
    ("frames-missing", L, to(NumberOfFrames=6), "PixelData", "PS3.5 A.4"),
    (
        "frames-broken",
        L,
        lambda d: setattr(d, "PixelData", d.PixelData[:-200] + bytes(192) + d.PixelData[-8:]),
        "PixelData",
        "PS3.5 8",
    ),
]


@pytest.mark.parametrize(
    ("kind", "change", "attribute", "clause"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_what_is_made_wrong_is_found(valid, kind: str, change: Change, attribute: str, clause: str) -> None:
    """Each thing made wrong in a valid file is an error of that attribute, under the rule that it breaks."""
    dataset = dcmread(BytesIO(valid(kind)))
    change(dataset)
    findings = check(dataset)
    assert ("error", attribute, clause) in {(finding.severity, finding.attribute, finding.clause) for finding in findings}
    assert all(finding.message and finding.clause.startswith("PS3.") for finding in findings)


def lossy_without_ratio(dataset: Dataset) -> None:
    """Say that a source was compressed lossily, and not by how much."""
    dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"


WARNED: list[tuple[str, str, Change, str, str]] = [
    ("lossy-without-ratio", L, lossy_without_ratio, "LossyImageCompressionRatio", "PS3.3 C.7.6.1.1.5"),
    ("patient-sex", L, to(PatientSex="X"), "PatientSex", "PS3.3 C.7.1.1"),
    (
        "tracked-twice",
        L,
        segment(0, to(TrackingID="Lung", TrackingUID="2.25.77")),
        "SegmentSequence[1].TrackingUID",
        "PS3.3 Table C.8.20-4",
    ),
    ("character-set", L, to(SpecificCharacterSet="LATIN1"), "SpecificCharacterSet", "PS3.3 C.12.1.1.2"),
    ("rescale", L, to(RescaleSlope=2), "RescaleSlope", "PS3.3 A.51.3"),
    ("fractional-lossy", F, in_syntax(JPEG2000), "TransferSyntaxUID", "PS3.5 8.2"),
]


@pytest.mark.parametrize(
    ("kind", "change", "attribute", "clause"), [case[1:] for case in WARNED], ids=[case[0] for case in WARNED]
)
def test_what_is_doubtful_is_a_warning(valid, kind: str, change: Change, attribute: str, clause: str) -> None:
    """What came with the source, or may be meant, is no error."""
    dataset = dcmread(BytesIO(valid(kind)))
    change(dataset)
    (found,) = check_attributes(dataset)
    assert (found.severity, found.attribute, found.clause) == ("warning", attribute, clause)


def test_frames_of_one_index_are_doubtful(valid) -> None:
    """Nothing tells their order, and one value stands for two positions: likely to do harm, but not forbidden."""
    dataset = dcmread(BytesIO(valid("LABELMAP")))
    frame(1, "FrameContentSequence", to(DimensionIndexValues=[1]))(dataset)
    found = check(dataset)
    assert seen(found) == {("warning", DIMENSION.replace("[0]", "[1]", 1))}
    assert {finding.clause for finding in found} == {"PS3.3 C.7.6.17", "PS3.3 C.7.6.17.1"}


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


def in_same_pixels(dataset: Dataset) -> None:
    """Give both segments of a BINARY, which share two planes, the same pixels."""
    frames = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little").reshape(6, 32, 32)
    frames[:] = frames[0]
    dataset.PixelData = np.packbits(frames, bitorder="little").tobytes()


@pytest.mark.parametrize("form", ["native", "rle", "deflate-frames"])
def test_an_overlap_that_is_denied_is_found(valid, form: str) -> None:
    """In every encoding, with the segments and how many voxels they share; said or left open, it is no finding."""
    dataset = dcmread(BytesIO(valid("BINARY")))
    in_same_pixels(dataset)
    file = BytesIO()
    dataset.save_as(file)
    dataset = dcmread(BytesIO(recode(file.getvalue(), CODECS[form])))
    (found,) = check(dataset)
    assert (found.severity, found.attribute, found.clause) == ("error", "SegmentsOverlap", "PS3.3 C.8.20.2")
    assert "1 and 2 in 20 voxels" in found.message
    for said in ("YES", "UNDEFINED"):
        dataset.SegmentsOverlap = said
        assert check(dataset) == ()


def test_segments_of_two_times_do_not_overlap(valid) -> None:
    """Frames in one place that differ in another dimension are not in one plane."""
    dataset = dcmread(BytesIO(valid("BINARY")))
    in_same_pixels(dataset)
    time_index = deepcopy(dataset.DimensionIndexSequence[0])
    time_index.DimensionIndexPointer, time_index.FunctionalGroupPointer = 0x00209128, 0x00209111
    dataset.DimensionIndexSequence.append(time_index)
    for item in dataset[FRAMES].value:
        content, number = item.FrameContentSequence[0], item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        content.TemporalPositionIndex = number
        content.DimensionIndexValues = [*content.DimensionIndexValues, number]
    assert check(dataset) == ()


def of_tissues(slices: Slices, pixels: np.ndarray) -> Dataset:
    """A BINARY of as many segments as are stacked, on one plane, that says that none overlap."""
    code = Code("SCT", "85756007", "Tissue")
    numbers = range(1, pixels.shape[-1] + 1)
    segments = [DescribedSegment(n, f"tissue {n}", code, code, algorithm_type="MANUAL") for n in numbers]
    identity = Identity("2.25.15", "2.25.16", "made by a test", CREATED, "serial", "0.1")
    placement = at_positions(slices.images, [(0, 0, 0)])
    dataset = dcmread(BytesIO(write_segmentation(pixels, placement, segments, StoredAs("BINARY"), identity)))
    dataset.SegmentsOverlap = "NO"
    return dataset


def test_more_pairs_than_can_be_compared_are_told(slices: Slices) -> None:
    """What was compared is an error, of which there may be more; and it is soon said."""
    dataset = of_tissues(slices, np.ones((1, 2, 2, 1500), np.uint8))
    began = time.process_time()
    (finding,) = check(dataset)
    assert (finding.severity, finding.attribute) == ("error", "SegmentsOverlap")
    assert "overlap: at least 1 and 2 in 4 voxels" in finding.message
    assert time.process_time() - began < 5


def test_what_was_not_compared_is_no_promise(slices: Slices) -> None:
    """Where segments overlap only behind those that can be compared, there is a note."""
    pixels = np.eye(1600, dtype=np.uint8)[:, :1500].reshape(1, 40, 40, 1500)
    pixels[0, 0, 0, -1] = 0
    pixels[..., -1] = pixels[..., -2]
    assert seen(check(of_tissues(slices, pixels))) == {("note", "SegmentsOverlap")}


def slide_of(kind: str, *, full: bool) -> Dataset:
    """A segmentation of ours of two segments on a slide of 20 by 30 pixels, in tiles of 8 by 16."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.6", "2.25.11"
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "2.25.12", "2.25.13", "2.25.14"
    image.Rows, image.Columns, image.TotalPixelMatrixRows, image.TotalPixelMatrixColumns = 8, 16, 20, 30
    image.NumberOfFrames, image.ImageOrientationSlide = 6, [0, -1, 0, -1, 0, 0]
    origin, shared, measures = Dataset(), Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = "20.5", "40"
    measures.PixelSpacing, measures.SliceThickness = ["0.0005", "0.0005"], "0.001"
    image.TotalPixelMatrixOriginSequence, shared.PixelMeasuresSequence = [origin], [measures]
    image.SharedFunctionalGroupsSequence, image.DimensionOrganizationType = [shared], "TILED_FULL"
    code = Code("SCT", "85756007", "Tissue")
    segments = [DescribedSegment(n, f"tissue {n}", code, code, algorithm_type="MANUAL") for n in (1, 2)]
    labels = np.arange(600, dtype=np.uint8).reshape(20, 30) % 3
    identity = Identity("2.25.15", "2.25.16", "made by a test", CREATED, "serial", "0.1")
    part10 = write_segmentation(labels, on_slide(image, full=full), segments, StoredAs(kind), identity)
    return dcmread(BytesIO(part10))


def explicit(dataset: Dataset) -> None:
    """Give the frames of a TILED_FULL the groups that it can do without."""
    groups = []
    for index in range(dataset.NumberOfFrames):
        tile, group, place, segment_group = index % 6, Dataset(), Dataset(), Dataset()
        row, column = tile // 2 * 8, tile % 2 * 16
        place.RowPositionInTotalImagePixelMatrix, place.ColumnPositionInTotalImagePixelMatrix = row + 1, column + 1
        place.XOffsetInSlideCoordinateSystem = f"{20.5 - row * 0.0005:.6f}"
        place.YOffsetInSlideCoordinateSystem = f"{40 - column * 0.0005:.6f}"
        place.ZOffsetInSlideCoordinateSystem = "0"
        segment_group.ReferencedSegmentNumber = index // 6 + 1
        group.PlanePositionSlideSequence, group.SegmentIdentificationSequence = [place], [segment_group]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups


PLACE = "PlanePositionSlideSequence[0]"


def place_of(number: int, **values: object) -> Change:
    """A change of where a tile lies."""
    return frame(number, "PlanePositionSlideSequence", to(**values))


TILES: list[tuple[str, bool, Change, str, str, str]] = [
    ("frames-too-few", True, to(NumberOfFrames=11), "error", "NumberOfFrames", "PS3.3 C.7.6.17.3"),
    ("matrix-larger", True, to(TotalPixelMatrixColumns=33), "error", "NumberOfFrames", "PS3.3 C.7.6.17.3"),
    ("focal-planes", True, to(TotalPixelMatrixFocalPlanes=2), "error", "NumberOfFrames", "PS3.3 C.7.6.17.3"),
    ("focal-missing", True, without("TotalPixelMatrixFocalPlanes"), "error", "TotalPixelMatrixFocalPlanes", "PS3.3 C.8.12.14"),
    ("matrix-missing", True, without("TotalPixelMatrixRows"), "error", "TotalPixelMatrixRows", "PS3.3 C.8.12.14"),
    ("origin", False, without("TotalPixelMatrixOriginSequence"), "error", "TotalPixelMatrixOriginSequence", "PS3.3 C.8.12.14"),
    ("orientation", True, without("ImageOrientationSlide"), "error", "ImageOrientationSlide", "PS3.3 C.8.12.14"),
    (
        "beyond",
        False,
        place_of(5, RowPositionInTotalImagePixelMatrix=21),
        "error",
        f"{FRAMES}[5].{PLACE}.RowPositionInTotalImagePixelMatrix",
        "PS3.3 C.8.12.6.1",
    ),
    (
        "before",
        False,
        place_of(0, ColumnPositionInTotalImagePixelMatrix=0),
        "error",
        f"{FRAMES}[0].{PLACE}.ColumnPositionInTotalImagePixelMatrix",
        "PS3.3 C.8.12.6.1",
    ),
    (
        "elsewhere",
        False,
        place_of(2, XOffsetInSlideCoordinateSystem="20.4"),
        "warning",
        f"{FRAMES}[2].PlanePositionSlideSequence",
        "PS3.3 C.8.12.6.1",
    ),
    (
        "no-place",
        False,
        lambda d: delattr(d[FRAMES].value[3], "PlanePositionSlideSequence"),
        "error",
        "PlanePositionSlideSequence",
        "PS3.3 A.51.5.1",
    ),
    (
        "full-out-of-order",
        True,
        all_of(explicit, lambda d: d[FRAMES].value.insert(0, d[FRAMES].value.pop(1))),
        "error",
        f"{FRAMES}[0].PlanePositionSlideSequence",
        "PS3.3 C.7.6.17.3",
    ),
    (
        "full-of-another-segment",
        True,
        all_of(explicit, frame(0, "SegmentIdentificationSequence", to(ReferencedSegmentNumber=2))),
        "error",
        f"{FRAMES}[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber",
        "PS3.3 C.7.6.17.3",
    ),
]


@pytest.mark.parametrize(
    ("full", "change", "severity", "attribute", "clause"), [case[1:] for case in TILES], ids=[case[0] for case in TILES]
)
def test_tiles_that_are_made_wrong_are_found(full: bool, change: Change, severity: str, attribute: str, clause: str) -> None:
    """Tiles are as many as the total pixel matrix has, and lie in it, where they say."""
    dataset = slide_of("BINARY", full=full)
    change(dataset)
    found = {(finding.severity, finding.attribute, finding.clause) for finding in check(dataset)}
    assert (severity, attribute, clause) in found


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("full", [True, False])
def test_tiles_that_keep_the_rules_have_no_findings(kind: str, full: bool) -> None:
    """TILED_FULL, without the groups that it need not have, and TILED_SPARSE."""
    dataset = slide_of(kind, full=full)
    assert (FRAMES in dataset) == (not full)
    assert check(dataset) == ()


def test_full_tiles_of_a_concatenation_are_in_several_files() -> None:
    """How many there are in one of them is not for the total pixel matrix to say."""
    dataset = slide_of("BINARY", full=True)
    dataset.ConcatenationUID, dataset.NumberOfFrames = "2.25.17", 7
    assert check_attributes(dataset) == ()


def test_full_tiles_may_say_where_they_lie() -> None:
    """What TILED_FULL implies can be said again."""
    dataset = slide_of("BINARY", full=True)
    explicit(dataset)
    assert check(dataset) == ()


def test_an_overlap_of_full_tiles_is_found() -> None:
    """Where the order of frames alone says which tile and segment they are of."""
    dataset = slide_of("BINARY", full=True)
    half = len(dataset.PixelData) // 2
    dataset.PixelData = dataset.PixelData[:half] * 2
    assert seen(check(dataset)) == {("error", "SegmentsOverlap")}


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
    # An old highdicom, which took rows for columns.
    "highdicom/seg_image_sm_control.dcm": {("warning", f"{FRAMES}[1].PlanePositionSlideSequence")},
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
@given(data=st.data(), kind=st.sampled_from(["LABELMAP", "NATIVE", "BINARY", "FRACTIONAL", "SLIDE"]))
def test_hostile_files_give_findings_and_no_exception(valid, data: st.DataObject, kind: str) -> None:
    """Elements removed, emptied or replaced by what they must not be, anywhere: check answers, and soon."""
    dataset = slide_of("BINARY", full=data.draw(st.booleans())) if kind == "SLIDE" else dcmread(BytesIO(valid(kind)))
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
    dataset = dcmread(BytesIO(valid("LABELMAP")))
    _require_sound(dataset)
    dataset.SegmentsOverlap = "YES"
    with pytest.raises(BadSegmentation, match=r"SegmentsOverlap is 'YES'; it is NO \(PS3.3 C.8.20.2\)"):
        _require_sound(dataset)


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
    assert "PS3.3 C.8.20.2" in output


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
