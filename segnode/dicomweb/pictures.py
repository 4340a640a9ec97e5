"""The pictures of what is held: what can be pictured, which stands for several, and each as a decoding process makes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

from segnode.dicom.transfer_syntaxes import VIDEO
from segnode.dicom.uids import SEGMENTATION_CLASSES, uid_name
from segnode.dicomweb.decoding import Decoders
from segnode.dicomweb.frames import frames_of
from segnode.dicomweb.metadata import location
from segnode.dicomweb.rendering import Rendering
from segnode.errors import BadRequest, NotAcceptable, NotFound, TooLarge, UnreadablePixels
from segnode.store.index import Image, Index, Instance
from segnode.store.objects import ObjectStore

_MOST_PICTURES: Final = 1000
_MOST_SOURCES: Final = 2000


@dataclass(frozen=True)
class Picture:
    """One that can be made of an object: of a frame, from 1 on, or of that which stands for all of them."""

    instance: Instance
    frame: int | None

    def location(self, root: str) -> str:
        """Where it can be had by itself."""
        frame = "" if self.frame is None else f"/frames/{self.frame}"
        return f"{location(self.instance, root)}{frame}/rendered"


@dataclass(frozen=True)
class Pictures:
    """The pictures of what is held."""

    index: Index
    objects: ObjectStore
    decoders: Decoders

    def images(self, study: str, series: str | None = None, instance: str | None = None) -> list[Image]:
        """What has pictures of a study, of a series of it, or the one. Raises NotFound."""
        images = self.index.images_by_number(study, series, instance)
        if not images:
            is_held = self.index.instances(study, series, instance)
            raise NotFound("what is held under that URL has no pixel data" if is_held else "nothing is held under that URL")
        return images

    def listed(self, instance: Instance, numbers: str) -> list[Picture]:
        """Those of the frames that a URL lists. Raises BadRequest, NotFound, NotAcceptable, TooLarge."""
        frames = frames_of(instance, self.objects.path(instance.object_key), self.decoders)
        listed = frames.numbers(numbers)
        _require_few(len(listed))
        return [Picture(instance, number) for number in listed]

    def make(self, picture: Picture, how: Rendering, media_type: str) -> bytes:
        """A picture in a media type. Raises BadRequest, NotFound, NotAcceptable."""
        instance, frame = picture.instance, None if picture.frame is None else picture.frame - 1
        is_segmentation = instance.sop_class_uid in SEGMENTATION_CLASSES
        if how.over_source and not is_segmentation:
            raise BadRequest(f"overlay is for segmentations, which SOP instance {instance.sop_instance_uid} is not")
        if instance.transfer_syntax_uid in VIDEO:
            raise _not_rendered(instance, "video is not rendered")
        path, over = self.objects.path(instance.object_key), None
        if not path.exists():
            raise NotFound("the object has been deleted")
        try:
            if how.over_source:
                frame, over = self._sources(instance, frame)
            return self.decoders.picture(path, how, media_type, frame, is_segmentation=is_segmentation, over=over)
        except NotFound as error:
            raise NotFound(f"SOP instance {instance.sop_instance_uid}: {error}") from error
        except UnreadablePixels as error:
            raise _not_rendered(instance, str(error)) from error

    def _sources(self, instance: Instance, frame: int | None) -> tuple[int, list[tuple[Path, Sequence[int]]]]:
        """The frame (from 0) that is to be rendered, and the files one of which it was drawn on, with frames from 1.

        They are those that the frame refers to; where it refers to none, the images of the series that the object refers to,
        or of its study. Raises NotFound, which names an image that is not held; UnreadablePixels.
        """
        found = self.decoders.sources(self.objects.path(instance.object_key), frame)
        index, named = int(found["frame"]), [source for source in found["references"] if source[0] not in SEGMENTATION_CLASSES]
        if named:
            held = [(self.index.find(uid), numbers) for _, uid, numbers in named]
            over = [(self.objects.path(source.object_key), numbers) for source, numbers in held if source is not None]
            if not over:
                raise NotFound(
                    f"its frame {index + 1} was drawn on SOP instance {named[0][1]}, which is not held: send that,"
                    " or ask without overlay"
                )
            return index, over
        study = instance.study_instance_uid
        series = found["series"] or [None]
        images = [image.instance for uid in series for image in self.index.images_by_number(study, uid)]
        nearby = [image for image in images if image.sop_class_uid not in SEGMENTATION_CLASSES]
        if not nearby:
            where = f"series {', '.join(found['series'])}" if found["series"] else "its study"
            raise NotFound(f"no image of {where} is held that it could have been drawn on: send these, or ask without overlay")
        return index, [(self.objects.path(image.object_key), ()) for image in nearby[:_MOST_SOURCES]]


def pictures_of(images: Sequence[Image]) -> list[Picture]:
    """One of each frame. Raises TooLarge."""
    _require_few(sum(image.frames for image in images))
    return [Picture(image.instance, number) for image in images for number in range(1, image.frames + 1)]


def _require_few(count: int) -> None:
    if count > _MOST_PICTURES:
        raise TooLarge(
            f"that is {count} pictures, and {_MOST_PICTURES} at most are rendered at once: ask for instances, or frames of them"
        )


def middle_image(images: Sequence[Image]) -> Image:
    """The image that stands for some: the middle one of the series that has most, of segmentations only if all are."""
    series = [list(group) for _, group in groupby(images, lambda image: image.instance.series_instance_uid)]
    chosen = max(series, key=lambda group: (group[0].instance.sop_class_uid not in SEGMENTATION_CLASSES, len(group)))
    return chosen[len(chosen) // 2]


def _not_rendered(instance: Instance, reason: str) -> NotAcceptable:
    return NotAcceptable(
        f"SOP instance {instance.sop_instance_uid} is held in {uid_name(instance.transfer_syntax_uid)}, and cannot be rendered"
        f" ({reason}): ask for its frames, or for the instance, with transfer-syntax=*"
    )
