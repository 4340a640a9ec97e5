"""How something is to be rendered: the query parameters of PS3.18 8.3.5, and what of them is not supported."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from segnode.dicom.display import Window, WindowFunction
from segnode.errors import BadRequest

JPEG: Final = "image/jpeg"
PNG: Final = "image/png"
GIF: Final = "image/gif"
# Of single frames the first is the default, the others are required (PS3.18 table 8.7.4-1).
MEDIA_TYPES: Final = (JPEG, PNG, GIF)
_QUALITY: Final = 90
_THUMBNAIL: Final = 256
_LARGEST_VIEWPORT: Final = 8192
_FUNCTIONS: Final[Mapping[str, WindowFunction]] = {
    "linear": "LINEAR",
    "linear-exact": "LINEAR_EXACT",
    "sigmoid": "SIGMOID",
}
_ANNOTATIONS: Final = ("patient", "technique")
_PROFILES: Final = ("no", "yes", "srgb", "adobergb", "rommrgb")


@dataclass(frozen=True)
class Viewport:
    """The size that a picture fits into, and the region of the source that it shows, in pixels; None is up to the edge.

    `enlarges` says whether a smaller picture is made as large as fits.
    """

    width: int
    height: int
    x: float = 0.0
    y: float = 0.0
    region_width: float | None = None
    region_height: float | None = None
    is_flipped: bool = False
    is_upside_down: bool = False
    enlarges: bool = True


@dataclass(frozen=True)
class Rendering:
    """What a picture is to be like; a quality is from 1 to 100, and that of JPEG.

    `over_source` draws segments over the image that they were drawn on.
    """

    quality: int = _QUALITY
    viewport: Viewport | None = None
    window: Window | None = None
    over_source: bool = False


def parse_rendering(query: Mapping[str, str], *, is_thumbnail: bool = False) -> tuple[Rendering, list[str]]:
    """What a query asks for, and what has to be said of what it asks in vain. Raises BadRequest.

    Parameters that are not known are passed over.
    """
    viewport = _viewport(query["viewport"], is_thumbnail=is_thumbnail) if "viewport" in query else None
    if is_thumbnail and viewport is None:
        viewport = Viewport(_THUMBNAIL, _THUMBNAIL, enlarges=False)
    rendering = Rendering(
        quality=_whole(query.get("quality", str(_QUALITY)), "quality", 100),
        viewport=viewport,
        window=_window(query["window"]) if "window" in query else None,
        over_source=_over_source(query),
    )
    if query.get("iccprofile", "no") != "no":
        raise BadRequest(f"iccprofile is one of {', '.join(_PROFILES)}; of these only no is supported")
    # A thumbnail has no annotations: it identifies nobody (PS3.18 10.4.1.1.4).
    return rendering, [] if is_thumbnail else _annotations(query)


def _annotations(query: Mapping[str, str]) -> list[str]:
    """What is said of annotations that are asked for; none are drawn, so that no picture names a patient."""
    if "annotation" not in query:
        return []
    values = [value.strip() for value in query["annotation"].split(",")]
    if not set(values) <= set(_ANNOTATIONS):
        raise BadRequest(f"annotation is a list of {' and '.join(_ANNOTATIONS)}")
    return [f"The following annotation values are not supported: {', '.join(values)}"]


def _over_source(query: Mapping[str, str]) -> bool:
    if query.get("overlay", "source") != "source":
        raise BadRequest("overlay is source: segments over the image that they were drawn on")
    return "overlay" in query


def _viewport(text: str, *, is_thumbnail: bool) -> Viewport:
    parts = text.split(",")
    if len(parts) < 2 or len(parts) > (2 if is_thumbnail else 6):
        form = "vw,vh" if is_thumbnail else "vw,vh or vw,vh,sx,sy,sw,sh"
        raise BadRequest(f"viewport is {form}, whole numbers and then decimal ones; of sx to sh each may be empty")
    width, height = (_whole(part, "the size of a viewport", _LARGEST_VIEWPORT) for part in parts[:2])
    x, y, region_width, region_height = (_decimal(part, "viewport") if part else None for part in [*parts[2:], *[""] * 4][:4])
    if 0 in (region_width, region_height):
        raise BadRequest("sw and sh of viewport are not 0: nothing would be shown")
    return Viewport(
        width,
        height,
        abs(x or 0.0),
        abs(y or 0.0),
        abs(region_width) if region_width else None,
        abs(region_height) if region_height else None,
        is_flipped=(region_width or 0) < 0,
        is_upside_down=(region_height or 0) < 0,
    )


def _window(text: str) -> Window:
    parts = text.split(",")
    if len(parts) != 3 or parts[2] not in _FUNCTIONS:
        raise BadRequest(f"window is center,width,function, and function is one of {', '.join(_FUNCTIONS)}")
    window = Window(_decimal(parts[0], "window"), _decimal(parts[1], "window"), _FUNCTIONS[parts[2]])
    if not window.is_one:
        raise BadRequest("the width of window is too small: 1 is the least for linear, and all others are above 0")
    return window


def _whole(text: str, what: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= most):
        raise BadRequest(f"{what} is a whole number from 1 to {most}")
    return int(text)


def _decimal(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in text:
        raise BadRequest(f"{what} holds something that is no decimal number")
    return number
