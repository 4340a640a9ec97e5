"""The attributes that the index keeps of an object, by level; rules and queries match on these."""

from collections.abc import Mapping, Sequence
from typing import Final

STUDY_ATTRIBUTES: Final = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
    "StudyID",
)
SERIES_ATTRIBUTES: Final = (
    "Modality",
    "SeriesNumber",
    "SeriesDescription",
    "SeriesDate",
    "SeriesTime",
    "BodyPartExamined",
    "ProtocolName",
    "Manufacturer",
    "ManufacturerModelName",
    "StationName",
    "InstitutionName",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
)
INSTANCE_ATTRIBUTES: Final = (
    "InstanceNumber",
    "ImageType",
    "Rows",
    "Columns",
    "BitsAllocated",
    "NumberOfFrames",
    "ContentDate",
    "ContentTime",
)
# Those of STUDY_ATTRIBUTES, and of what it does not keep, that are of the patient (PS3.3 C.7.1.1).
PATIENT_ATTRIBUTES: Final = STUDY_ATTRIBUTES[:5]
FURTHER_PATIENT_ATTRIBUTES: Final = (
    "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthTime",
    "OtherPatientIDs",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "EthnicGroup",
    "PatientSpeciesDescription",
    "PatientBreedDescription",
    "PatientComments",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)
# What the index does not keep of patient, study and series, and objects may say of them (PS3.4 C.6.1.1, PS3.3 C.7.1-C.7.3).
FURTHER_STUDY_ATTRIBUTES: Final = (
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
    *FURTHER_PATIENT_ATTRIBUTES,
    "ConsultingPhysicianName",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "RequestingService",
    "ReferencedStudySequence",
    "ProcedureCodeSequence",
    "ReasonForPerformedProcedureCodeSequence",
    "IssuerOfAccessionNumberSequence",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "Occupation",
    "AdditionalPatientHistory",
    "PregnancyStatus",
    "SmokingStatus",
    "MedicalAlerts",
    "Allergies",
    "AdmissionID",
    "PatientState",
)
FURTHER_SERIES_ATTRIBUTES: Final = (
    "Laterality",
    "PerformingPhysicianName",
    "OperatorsName",
    "ReferencedPerformedProcedureStepSequence",
    "RelatedSeriesSequence",
    "SeriesDescriptionCodeSequence",
    "AnatomicalOrientationType",
    "PatientPosition",
    "RequestAttributesSequence",
    "PerformedProcedureStepEndDate",
    "PerformedProcedureStepEndTime",
    "PerformedProcedureStepID",
    "PerformedProcedureStepDescription",
    "PerformedProtocolCodeSequence",
    "CommentsOnThePerformedProcedureStep",
    "TreatmentSessionUID",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "DeviceUID",
    "SpatialResolution",
    "DateOfLastCalibration",
    "TimeOfLastCalibration",
)
# Of the items of these sequences, by path.
ITEM_ATTRIBUTES: Final[Mapping[str, Sequence[str]]] = {
    "RequestAttributesSequence": ("ScheduledProcedureStepID", "RequestedProcedureID"),
    "SegmentSequence": (
        "SegmentNumber",
        "SegmentLabel",
        "SegmentDescription",
        "SegmentAlgorithmType",
        "SegmentAlgorithmName",
        "TrackingID",
        "TrackingUID",
        *(
            f"{sequence}.{keyword}"
            for sequence in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence")
            for keyword in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
        ),
    ),
}
PERSON_NAMES: Final = ("PatientName", "ReferringPhysicianName")
# Of patient and study in what is made of images, in whatever form it is made: copied from them, where they have it,
COPIED_ATTRIBUTES: Final = (
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
    *STUDY_ATTRIBUTES,
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyInstanceUID",
)
# and of type 2, so written empty where the source lacks it (PS3.3 C.7.1.1, C.7.2.1).
TYPE_2_ATTRIBUTES: Final = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
# What says whether an object is as its SOP class has it; it is looked at when that comes, and not indexed.
CLASS_ATTRIBUTES: Final = ("SegmentationType",)
UID_ATTRIBUTES: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")

# Of patient, study and series: one value for all images of a series, which the index keeps.
RULE_ATTRIBUTES: Final = (*STUDY_ATTRIBUTES, *SERIES_ATTRIBUTES)
# What a rule may ask of the sender of a series; these are no keywords of attributes.
SENDER_KEYS: Final = ("calling_ae", "called_ae", "host")
