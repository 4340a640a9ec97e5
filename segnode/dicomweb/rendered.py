"""Rendered resources and thumbnails (PS3.18 10.4.1.1.3, 10.4.1.1.4): which pictures a request is for, and its answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from segnode.dicomweb.accept import Representation, require
from segnode.dicomweb.answers import Answers
from segnode.dicomweb.left_out import LeftOut
from segnode.dicomweb.metadata import entity_tag, matches
from segnode.dicomweb.multipart import Part
from segnode.dicomweb.pictures import Picture, Pictures, middle_image, pictures_of
from segnode.dicomweb.rendering import MEDIA_TYPES, Rendering, parse_rendering
from segnode.dicomweb.request import accepted, root_of, uids_of
from segnode.store.index import Image

_STUDY, _SERIES = "/studies/{study}", "/studies/{study}/series/{series}"
_INSTANCE: Final = f"{_SERIES}/instances/{{instance}}"
_FRAMES: Final = f"{_INSTANCE}/frames/{{frames}}"


@dataclass(frozen=True)
class Rendered:
    """The pictures of what is held, as resources under the DICOMweb root."""

    pictures: Pictures
    answers: Answers
    version: str = field(default_factory=lambda: version("segnode"))

    def routes(self) -> list[Route]:
        """What is to be mounted."""
        return [
            Route(f"{path}/{name}", self.answers.endpoint(answer))
            for path in (_STUDY, _SERIES, _INSTANCE, _FRAMES)
            for name, answer in (("rendered", self._rendered), ("thumbnail", self._thumbnail))
        ]

    def _rendered(self, request: Request) -> Response:
        """The pictures of all frames; of one object with several also that which stands for them, by itself."""
        how, told = parse_rendering(request.query_params)
        images = self.pictures.images(**uids_of(request))
        listed = self._listed(request, images)
        alone = _alone(images, listed, is_instance="instance" in request.path_params)
        form = require(accepted(request), [*_offers(single=alone is not None, multipart=True)], "the rendering")
        if not form.multipart and alone is not None:
            response = self._picture(request, alone, how, form.media_type)
        else:
            response = self._pictures(listed or pictures_of(images), how, form.media_type, root_of(request))
        for text in told:
            response.headers.append("Warning", f"299 {root_of(request)}: {text}")
        return response

    def _thumbnail(self, request: Request) -> Response:
        how, _ = parse_rendering(request.query_params, is_thumbnail=True)
        images = self.pictures.images(**uids_of(request))
        form = require(accepted(request), [*_offers(single=True, multipart=False)], "a thumbnail")
        listed = self._listed(request, images)
        picture = listed[0] if listed else Picture(middle_image(images).instance, None)
        return self._picture(request, picture, how, form.media_type)

    def _picture(self, request: Request, picture: Picture, how: Rendering, media_type: str) -> Response:
        """One, by itself, unless the client has it."""
        headers = {"Vary": "Accept"}
        if not how.over_source:  # what that lies on may come, and go
            headers["ETag"] = entity_tag([picture.instance], "", f"{self.version} {media_type} {picture.frame} {how}")
            if matches(request.headers.get("if-none-match", ""), headers["ETag"]):
                return Response(status_code=304, headers=headers)
        response = self.answers.gathered(iter([self.pictures.make(picture, how, media_type)]), media_type)
        response.headers.update(headers)
        return response

    def _pictures(self, pictures: Sequence[Picture], how: Rendering, media_type: str, root: str) -> Response:
        """Those that can be made."""
        left_out = LeftOut()

        def part(picture: Picture) -> Part:
            made = self.pictures.make(picture, how, media_type)
            return Part(media_type, picture.location(root), len(made), (made,))

        parts = left_out.each(pictures, part, lambda picture: picture.instance.sop_instance_uid)
        response = left_out.begin(self.answers.multipart(media_type, parts), root)
        response.headers["Vary"] = "Accept"
        return response

    def _listed(self, request: Request, images: Sequence[Image]) -> list[Picture]:
        """Pictures of the frames that the path lists; none where it lists none."""
        frames = request.path_params.get("frames")
        return [] if frames is None else self.pictures.listed(images[0].instance, frames)


def _alone(images: Sequence[Image], listed: Sequence[Picture], *, is_instance: bool) -> Picture | None:
    """The picture that can be given by itself, where there is one."""
    if listed:
        return listed[0] if len(listed) == 1 else None
    if sum(image.frames for image in images) == 1:
        return Picture(images[0].instance, 1)
    return Picture(images[0].instance, None) if is_instance else None


def _offers(*, single: bool, multipart: bool) -> Iterator[Representation]:
    """What pictures can be had as: one by itself, and any number in a multipart message."""
    for is_multipart in (False, True):
        if multipart if is_multipart else single:
            yield from (Representation(media_type, multipart=is_multipart) for media_type in MEDIA_TYPES)
