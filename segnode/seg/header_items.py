"""What headers of SEGs have in common, written of images or made of other SEGs: codes, references, dates, who had a part."""

from datetime import datetime, tzinfo

from pydicom import Dataset
from pydicom.tag import Tag

from segnode.dicom.codes import Code
from segnode.dicom.uids import MANUFACTURER


def code_item(code: Code) -> Dataset:
    """The item of a code sequence (PS3.3 8.8) whose value is of 16 characters at most."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme
    item.CodeMeaning = code.meaning
    return item


def reference_item(instance: Dataset) -> Dataset:
    """The item that refers to an instance (PS3.3 10.8)."""
    item = Dataset()
    item.ReferencedSOPClassUID = instance.SOPClassUID
    item.ReferencedSOPInstanceUID = instance.SOPInstanceUID
    return item


def contribution_item(purpose: Code, software_version: str, at: datetime) -> Dataset:
    """The item of ContributingEquipmentSequence (PS3.3 C.12.1): segnode had a part, which stays said in an archive."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item(purpose)]
    item.Manufacturer = item.ManufacturerModelName = MANUFACTURER
    item.SoftwareVersions = software_version
    item.ContributionDateTime = at.strftime("%Y%m%d%H%M%S.%f%z")
    return item


def dimension_item(organization_uid: str, keyword: str, group: str, label: str) -> Dataset:
    """The item of DimensionIndexSequence for an attribute of a functional group (PS3.3 C.7.6.17)."""
    item = Dataset()
    item.DimensionOrganizationUID = organization_uid
    item.DimensionIndexPointer = Tag(keyword)
    item.FunctionalGroupPointer = Tag(group)
    item.DimensionDescriptionLabel = label
    return item


def set_creation(header: Dataset, created: datetime, source: Dataset, series_created: datetime | None = None) -> None:
    """Say when instance, content and series, which may be older, were created, in the zone of the source's dates and times."""
    local = created.astimezone(_zone_of(source))
    series = (series_created or created).astimezone(_zone_of(source))
    header.InstanceCreationDate = header.ContentDate = local.strftime("%Y%m%d")
    header.InstanceCreationTime = header.ContentTime = local.strftime("%H%M%S.%f")
    header.SeriesDate, header.SeriesTime = series.strftime("%Y%m%d"), series.strftime("%H%M%S.%f")


def following_series_number(source: Dataset) -> int:
    """A number that sorts behind the source series and tells of it: series 3 gives 301, one without a number 1."""
    try:
        number = int(source.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    return number * 100 + 1 if 0 <= number < 10_000_000 else 1


def _zone_of(source: Dataset) -> tzinfo | None:
    """The zone that a study's dates and times are in; None, which is local time, where it does not say."""
    offset = str(source.get("TimezoneOffsetFromUTC") or "")
    try:
        return datetime.strptime(offset, "%z").tzinfo
    except ValueError:
        return None
