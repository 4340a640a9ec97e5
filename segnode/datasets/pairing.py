"""Which segmentations belong to which image series: those that refer to it, and none by guess."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segnode.datasets.classes import Classes, ClassesFound
from segnode.datasets.sources import Series, Source
from segnode.errors import BadDataset, SegnodeError
from segnode.seg.arrays import source_images
from segnode.seg.read import open_segmentation
from segnode.seg.segmentation import Segmentation

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Labelled:
    """A segmentation of an image series: where it is, and the value in the set of each of its segment numbers."""

    series: Series
    sop_instance_uid: str
    value_of: Mapping[int, int]


@dataclass(frozen=True)
class Pair:
    """An image series and the segmentations that refer to it; without any, it has no labels."""

    images: Series
    segmentations: tuple[Labelled, ...]


@dataclass(frozen=True)
class Paired:
    """What goes into a set; `left_out` says why which segmentations do not."""

    pairs: tuple[Pair, ...]
    classes: Classes
    left_out: tuple[str, ...]


def pair(source: Source, found: Sequence[Series], *, unlabelled: bool, keep_identity: bool) -> Paired:
    """Pair image series with the segmentations that refer to them (ReferencedSeriesSequence), series by series.

    Raises BadDataset where a segmentation refers to several of them, or two of one series have a class in common.
    """
    images = {series.series_instance_uid: series for series in found if not series.is_segmentation}
    of_images: dict[str, list[Labelled]] = defaultdict(list)
    classes, left_out = ClassesFound(keep_identity=keep_identity), []
    for series in (each for each in found if each.is_segmentation):
        with source.files(series) as files:
            for file in files:
                with reading(file) as segmentation:
                    uid = segmentation.sop_instance_uid
                    referred = {of for _, of, _ in source_images(segmentation)} or _by_source_images(segmentation, images)
                    there = sorted(referred & images.keys())
                    if not there:
                        left_out.append(f"segmentation {uid} refers to no image series that is here")
                        continue
                    if len(there) > 1:
                        raise BadDataset(f"segmentation {uid} refers to several image series that are here: {', '.join(there)}")
                    of_images[there[0]].append(Labelled(series, uid, classes.add(segmentation)))
    for uid, labelled in of_images.items():
        _require_no_class_twice(uid, labelled, classes.classes)
    pairs = tuple(
        Pair(series, tuple(sorted(of_images[uid], key=lambda each: each.sop_instance_uid)))
        for uid, series in images.items()
        if unlabelled or of_images[uid]
    )
    return Paired(pairs, classes.classes, tuple(left_out))


def _by_source_images(segmentation: Segmentation, images: Mapping[str, Series]) -> set[str]:
    """The series of the images that frames were derived from (DerivationImageSequence)."""
    sources = {source.sop_instance_uid for frame in segmentation.table.sources for source in frame}
    return {uid for uid, series in images.items() if sources.intersection(series.sop_instance_uids)}


def _require_no_class_twice(series: str, labelled: Sequence[Labelled], classes: Classes) -> None:
    of_value: dict[int, str] = {}
    for each in labelled:
        for value in each.value_of.values():
            if value in of_value:
                name = classes.of_value(value, series).name
                both = f"{of_value[value]} and {each.sop_instance_uid}"
                raise BadDataset(
                    f"image series {series} has two segmentations with the segment {name!r}: {both}; leave out one"
                )
            of_value[value] = each.sop_instance_uid


@contextmanager
def reading(file: Path) -> "Iterator[Segmentation]":
    """The segmentation in a file; what is wrong with it is said with its name. Raises BadDataset."""
    with ExitStack() as stack:
        stack.enter_context(about(str(file)))
        yield open_segmentation(file)


@contextmanager
def about(where: str) -> "Iterator[None]":
    """Errors name what they are about. Raises BadDataset."""
    try:
        yield
    except BadDataset:
        raise
    except SegnodeError as error:
        raise BadDataset(str(error) if where in str(error) else f"{where}: {error}") from error
