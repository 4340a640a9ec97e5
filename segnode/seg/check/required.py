"""The attributes that the mandatory modules of the Segmentation IOD require (PS3.3 Table A.51-1 and the modules it names).

Taken from highdicom 0.28's tables of PS3.3 (`_standard/module_attribute_map.json`): types 1 and 2 of the modules with usage M;
a test compares what is outside sequences with them again. What is required on a condition (1C, 2C) is in the rules of
`check`, what frames need in those of `check_frames`.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Required:
    """Attributes of one module, in the items that `path` leads to: `filled` are type 1, `present` type 2."""

    clause: str
    path: tuple[str, ...]
    filled: tuple[str, ...]
    present: tuple[str, ...] = ()


_REFERENCE: Final = ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")
_SERIES: Final = "ReferencedSeriesSequence"
_OTHER_STUDIES: Final = "StudiesContainingOtherReferencedInstancesSequence"
_INSTANCES: Final = "ReferencedInstanceSequence"

REQUIRED: Final = (
    Required("PS3.3 C.7.1.1", (), (), ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")),
    Required(
        "PS3.3 C.7.2.1",
        (),
        ("StudyInstanceUID",),
        ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
    ),
    Required("PS3.3 C.7.3.1", (), ("SeriesInstanceUID",)),
    Required("PS3.3 C.8.20.1", (), ("Modality", "SeriesNumber")),
    Required("PS3.3 C.7.5.2", (), ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions")),
    Required(
        "PS3.3 C.7.6.3",
        (),
        (
            "SamplesPerPixel",
            "PhotometricInterpretation",
            "Rows",
            "Columns",
            "BitsAllocated",
            "BitsStored",
            "HighBit",
            "PixelRepresentation",
        ),
    ),
    Required(
        "PS3.3 C.8.20.2",
        (),
        ("ImageType", "InstanceNumber", "LossyImageCompression", "SegmentationType", "SegmentSequence", "ContentLabel"),
        ("ContentDescription",),
    ),
    Required(
        "PS3.3 Table C.8.20-4",
        ("SegmentSequence",),
        (
            "SegmentNumber",
            "SegmentLabel",
            "SegmentAlgorithmType",
            "SegmentedPropertyCategoryCodeSequence",
            "SegmentedPropertyTypeCodeSequence",
        ),
    ),
    Required(
        "PS3.3 10.16",
        ("SegmentSequence", "SegmentationAlgorithmIdentificationSequence"),
        ("AlgorithmFamilyCodeSequence", "AlgorithmName", "AlgorithmVersion"),
    ),
    Required("PS3.3 Table C.8.20-4", ("SegmentSequence", "DefinitionSourceSequence"), _REFERENCE),
    Required("PS3.3 C.7.6.16", (), ("ContentDate", "ContentTime", "NumberOfFrames", "SharedFunctionalGroupsSequence")),
    Required("PS3.3 C.7.6.17", (), ("DimensionOrganizationSequence",)),
    Required("PS3.3 C.7.6.17", ("DimensionOrganizationSequence",), ("DimensionOrganizationUID",)),
    Required("PS3.3 C.7.6.17", ("DimensionIndexSequence",), ("DimensionOrganizationUID", "DimensionIndexPointer")),
    Required("PS3.3 C.12.2", (_SERIES,), ("SeriesInstanceUID", _INSTANCES)),
    Required("PS3.3 C.12.2", (_SERIES, _INSTANCES), _REFERENCE),
    Required("PS3.3 C.12.2", (_OTHER_STUDIES,), ("StudyInstanceUID", _SERIES)),
    Required("PS3.3 C.12.2", (_OTHER_STUDIES, _SERIES), ("SeriesInstanceUID", _INSTANCES)),
    Required("PS3.3 C.12.2", (_OTHER_STUDIES, _SERIES, _INSTANCES), _REFERENCE),
    Required("PS3.3 C.12.1", (), ("SOPClassUID", "SOPInstanceUID")),
)
