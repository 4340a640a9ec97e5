"""What a LABELMAP SEG says of itself (PS3.3 A.51, C.8.20), beside its labels."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from io import BytesIO

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from segnode.dicom.codes import Code
from segnode.dicom.slices import Slices, order_slices
from segnode.seg.forms import FORMS
from segnode.seg.segments import LabelDictionary, Segment
from segnode.seg.write import Algorithm, Identity, write_labelmap
from segnode.testing.phantom import Phantom

ORGAN, LUNG, LEFT = (
    Code("SCT", "123037004", "Anatomical structure"),
    Code("SCT", "39607008", "Lung"),
    Code("SCT", "7771000", "Left"),
)
SEGMENTS = (
    Segment(7, "Bone", ORGAN, Code("SCT", "272673000", "Bone"), track=True),
    Segment(2, "Lung", ORGAN, LUNG, modifier=LEFT, region=Code("SCT", "51185008", "Thorax"), colour=(10, 200, 30)),
)
CREATED = datetime(2026, 1, 2, 23, 4, 5, tzinfo=UTC)


@pytest.fixture
def slices(phantom: Phantom) -> Slices:
    """The headers of the phantom in slice order."""
    return order_slices([dcmread(file, stop_before_pixels=True) for file in phantom.folder.iterdir()])


def written(slices: Slices, segments: Sequence[Segment] = SEGMENTS, tracking: dict[int, str] | None = None) -> Dataset:
    """A SEG of a few voxels on these slices."""
    labels = np.zeros((len(slices.images), slices.images[0].Rows, slices.images[0].Columns), np.uint8)
    labels[3, 4:9, 5:7] = segments[0].segment_number
    algorithm = Algorithm("net", "2.1", Code("DCM", "123110", "Artificial Intelligence"))
    identity = Identity("2.25.1", "2.25.2", "made by a test", CREATED, "serial", "0.1", tracking or {7: "2.25.77"})
    part10 = write_labelmap(
        labels, slices.affine, slices.images, LabelDictionary(tuple(segments)), algorithm, identity, FORMS["labelmap:rle"]
    )
    return dcmread(BytesIO(part10))


@cache
def standard(name: str) -> dict:
    """A table of the standard, as highdicom carries it."""
    table: dict = json.loads((files("highdicom") / "_standard" / name).read_text())
    return table


def items_at(dataset: Dataset, path: Sequence[str]) -> Iterator[Dataset]:
    """Every item that a path of sequences leads to."""
    if not path:
        yield dataset
        return
    for item in dataset.get(path[0]) or ():
        yield from items_at(item, path[1:])


def test_every_required_attribute_is_there(slices: Slices) -> None:
    """Each type 1 attribute of the mandatory modules has a value, and each type 2 attribute is present (PS3.3 tables)."""
    dataset = written(slices)
    modules = [m["key"] for m in standard("iod_module_map.json")["segmentation"] if m["usage"] == "M"]
    assert len(modules) > 10
    checked, missing = 0, []
    for module in (*modules, "frame-of-reference", "common-instance-reference"):
        for attribute in standard("module_attribute_map.json")[module]:
            if attribute["path"] in GROUPS:
                continue
            for item in items_at(dataset, attribute["path"]):
                empty = not item.get(attribute["keyword"]) and item.get(attribute["keyword"]) != 0
                absent = attribute["keyword"] not in item
                if (attribute["type"] == "1" and empty) or (attribute["type"] == "2" and absent):
                    missing.append((module, *attribute["path"], attribute["keyword"]))
                checked += 1
    assert missing == []
    assert checked > 1000


# A functional group stands in one of these: which, is tested by what the frames say.
GROUPS = (["SharedFunctionalGroupsSequence"], ["PerFrameFunctionalGroupsSequence"])


def test_values_are_those_of_a_label_map(slices: Slices) -> None:
    """What C.8.20.2 fixes for a LABELMAP has that value; what belongs to BINARY and FRACTIONAL is absent."""
    dataset = written(slices)
    assert dataset.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID == "2.25.1"
    assert (dataset.SegmentationType, dataset.SegmentsOverlap, dataset.Modality) == ("LABELMAP", "NO", "SEG")
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation) == (8, 8, 7, 0)
    assert (dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PixelPaddingValue) == ("MONOCHROME2", 1, 0)
    assert dataset.ImageType == ["DERIVED", "PRIMARY"]
    assert "MaximumFractionalValue" not in dataset
    assert not any("SegmentIdentificationSequence" in frame for frame in dataset.PerFrameFunctionalGroupsSequence)
    assert dataset.StudyInstanceUID == slices.images[0].StudyInstanceUID
    assert dataset.SeriesInstanceUID != slices.images[0].SeriesInstanceUID
    assert dataset.LossyImageCompression == "00"


def test_segments_say_what_the_dictionary_says(slices: Slices) -> None:
    """Codes, modifier, region, colour, algorithm and tracking; segments by number, the background described behind them."""
    lung, bone, background = written(slices).SegmentSequence
    assert [int(s.SegmentNumber) for s in (lung, bone, background)] == [2, 7, 0]
    assert background.SegmentedPropertyTypeCodeSequence[0].CodeValue == "125040"
    kind = lung.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodingSchemeDesignator, kind.CodeValue, kind.CodeMeaning) == ("SCT", "39607008", "Lung")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"
    assert lung.AnatomicRegionSequence[0].CodeValue == "51185008"
    assert "RecommendedDisplayCIELabValue" in lung
    assert "RecommendedDisplayCIELabValue" not in bone
    assert (bone.TrackingID, bone.TrackingUID) == ("Bone", "2.25.77")
    assert "TrackingUID" not in lung
    for segment in (lung, bone, background):
        identification = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "net")
        assert (identification.AlgorithmName, identification.AlgorithmVersion) == ("net", "2.1")


def test_each_frame_lies_on_the_image_it_was_made_from(slices: Slices) -> None:
    """Position, index and source of every frame are those of its image; every image is in the instance reference."""
    dataset = written(slices)
    (shared,) = dataset.SharedFunctionalGroupsSequence
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == slices.images[0].ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == slices.images[0].PixelSpacing
    assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == 2.5
    for number, (frame, image) in enumerate(zip(dataset.PerFrameFunctionalGroupsSequence, slices.images, strict=True), 1):
        assert frame.PlanePositionSequence[0].ImagePositionPatient == image.ImagePositionPatient
        assert frame.FrameContentSequence[0].DimensionIndexValues == number
        (derivation,) = frame.DerivationImageSequence
        assert derivation.DerivationCodeSequence[0].CodeValue == "113076"
        (source,) = derivation.SourceImageSequence
        assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID
        assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"


def test_text_beyond_the_source_character_set_makes_it_utf_8(slices: Slices) -> None:
    """The source's character set is kept while it suffices; a label that needs more makes it UTF-8, names unharmed."""
    for image in slices.images:
        image.SpecificCharacterSet, image.PatientName = "ISO_IR 100", "Grün^Ana"
    assert written(slices).SpecificCharacterSet == "ISO_IR 100"
    assert written(slices).PatientName == "Grün^Ana"
    dataset = written(slices, [Segment(1, "Płuco", ORGAN, LUNG)])
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert dataset.PatientName == "Grün^Ana"
    assert dataset.SegmentSequence[0].SegmentLabel == "Płuco"
    assert slices.images[0].PatientName == "Grün^Ana"


def test_lossy_source_stays_lossy(slices: Slices) -> None:
    """When one image was compressed lossily, the SEG says so, with how (PS3.3 C.7.6.1.1.5)."""
    slices.images[3].LossyImageCompression = "01"
    slices.images[3].LossyImageCompressionRatio, slices.images[3].LossyImageCompressionMethod = "10", "ISO_10918_1"
    dataset = written(slices)
    assert (dataset.LossyImageCompression, dataset.LossyImageCompressionRatio) == ("01", 10)
    assert dataset.LossyImageCompressionMethod == "ISO_10918_1"


def test_times_are_in_the_zone_of_the_study(slices: Slices) -> None:
    """Where the study says its offset from UTC, content date and time are in it."""
    for image in slices.images:
        image.TimezoneOffsetFromUTC = "+0200"
    dataset = written(slices)
    assert (dataset.ContentDate, dataset.ContentTime) == ("20260103", "010405.000000")
