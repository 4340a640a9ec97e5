"""The tables of what is held; columns are called as DICOM calls them, those of items by their path."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, cast, text

from segnode.dicom.attributes import INSTANCE_ATTRIBUTES, ITEM_ATTRIBUTES, SERIES_ATTRIBUTES, STUDY_ATTRIBUTES

metadata = MetaData()
# What is searched for among all that is held.
_KEYS: Final = frozenset(
    {
        "PatientID",
        "PatientBirthDate",
        "StudyDate",
        "StudyID",
        "AccessionNumber",
        "Modality",
        "SeriesDate",
        "PerformedProcedureStepStartDate",
        "ScheduledProcedureStepID",
        "RequestedProcedureID",
        "SegmentLabel",
        "SegmentAlgorithmName",
        "SegmentedPropertyTypeCodeSequence.CodeValue",
        "TrackingID",
        "TrackingUID",
    }
)


def _attribute_columns(keywords: Iterable[str]) -> list[Column[Any]]:
    return [Column(keyword, String, nullable=False, default="", index=keyword in _KEYS) for keyword in keywords]


def _held(column: str, **more: Any) -> Column[Any]:
    """A UID whose row goes when what it names goes."""
    table = {"StudyInstanceUID": "study", "SeriesInstanceUID": "series", "SOPInstanceUID": "instance"}[column]
    return Column(column, ForeignKey(f"{table}.{column}", ondelete="CASCADE"), primary_key=True, **more)


study = Table(
    "study",
    metadata,
    Column("StudyInstanceUID", String, primary_key=True),
    *_attribute_columns(STUDY_ATTRIBUTES),
)
series = Table(
    "series",
    metadata,
    Column("SeriesInstanceUID", String, primary_key=True),
    Column("StudyInstanceUID", ForeignKey("study.StudyInstanceUID"), nullable=False, index=True),
    *_attribute_columns(SERIES_ATTRIBUTES),
    Column("last_received_at", Float, nullable=False),
    Column("considered_at", Float, nullable=False),
)
instance = Table(
    "instance",
    metadata,
    Column("SOPInstanceUID", String, primary_key=True),
    Column("SeriesInstanceUID", ForeignKey("series.SeriesInstanceUID"), nullable=False),
    Column("SOPClassUID", String, nullable=False),
    *_attribute_columns(INSTANCE_ATTRIBUTES),
    Column("transfer_syntax_uid", String, nullable=False),
    Column("object_key", String, nullable=False, unique=True),
    Column("size", Integer, nullable=False),
    Column("digest", String, nullable=False),
    Column("origin", String, nullable=False),
    Column("received_at", Float, nullable=False),
    # Whether it took the place of another object of its UID.
    Column("replaced", Boolean, nullable=False, server_default=text("0")),
)
# The component groups of names, and their words, folded.
person_name = Table(
    "person_name",
    metadata,
    Column("keyword", String, primary_key=True),
    Column("is_word", Boolean, primary_key=True),
    Column("text", String, primary_key=True),
    _held("StudyInstanceUID", index=True),
    Column("place", Integer, primary_key=True),
    sqlite_with_rowid=False,
)
segment = Table(
    "segment",
    metadata,
    _held("SOPInstanceUID"),
    Column("place", Integer, primary_key=True),
    *_attribute_columns(ITEM_ATTRIBUTES["SegmentSequence"]),
)
request = Table(
    "request",
    metadata,
    _held("SeriesInstanceUID"),
    Column("place", Integer, primary_key=True),
    *_attribute_columns(ITEM_ATTRIBUTES["RequestAttributesSequence"]),
)
# Objects that were held before their items and names were kept.
unread = Table("unread", metadata, _held("SOPInstanceUID"))
ITEMS_OF: Final[Mapping[str, Table]] = {"SegmentSequence": segment, "RequestAttributesSequence": request}
# In the order of what is answered: what is in a series, and what is of a class, of which there are few.
Index("ix_instance_SeriesInstanceUID", instance.c.SeriesInstanceUID, instance.c.SOPInstanceUID)
Index("instance_SOPClassUID", instance.c.SOPClassUID, instance.c.SOPInstanceUID)
Index("instance_InstanceNumber", cast(instance.c.InstanceNumber, Integer))
