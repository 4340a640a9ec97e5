"""Stored values as what a screen shows, 8 bits a channel: the grayscale pipeline and palettes (PS3.3 C.11, PS3.4 N.2.1)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing
from pydicom.valuerep import DSfloat

from segnode.dicom.dataset_json import little_endian
from segnode.errors import UnreadablePixels

Values = npt.NDArray[np.number[Any]]
Grey = npt.NDArray[np.uint8]
WindowFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

# Of so many values each is looked up once, and not at every pixel.
_MOST_LEVELS: Final = 1 << 16
_SHARED_GROUPS: Final = "SharedFunctionalGroupsSequence"
_PER_FRAME_GROUPS: Final = "PerFrameFunctionalGroupsSequence"
_GROUPS_OF_A_FRAME: Final = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PlanePositionSlideSequence",
)


@dataclass(frozen=True)
class Window:
    """A VOI window in modality units (PS3.3 C.11.2.1.2)."""

    center: float
    width: float
    function: WindowFunction = "LINEAR"

    @property
    def is_one(self) -> bool:
        """Whether it can be applied: a linear one is 1 wide at least, any other wider than 0."""
        least = self.width >= 1 if self.function == "LINEAR" else self.width > 0
        return least and bool(np.isfinite([self.center, self.width]).all())


def of_frame(header: Dataset, index: int) -> Dataset:
    """The attributes that hold for a frame (from 0): those of the data set, and over them those of its functional groups."""
    flat = _encoded_as(header)
    flat.update(header)
    shared, per_frame = header.get(_SHARED_GROUPS) or (), header.get(_PER_FRAME_GROUPS) or ()
    for groups in (*shared[:1], *per_frame[index : index + 1]):
        for name in _GROUPS_OF_A_FRAME:
            for item in (groups.get(name) or ())[:1]:
                flat.update(item)
    return flat


def stored_values(frame: bytes, numbers: Mapping[str, int], high_bit: int | None, *, is_float: bool = False) -> Values:
    """The values of a native grey frame, little endian, as (rows, columns).

    `numbers` are those of the Image Pixel module. Bits above `high_bit`, and below those that are stored, are left out;
    None leaves values as they are. Raises UnreadablePixels.
    """
    bits, shape = numbers["BitsAllocated"], (numbers["Rows"], numbers["Columns"])
    count = shape[0] * shape[1]
    if bits == 1:
        return np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little", count=count).reshape(shape)
    if bits not in ((32, 64) if is_float else (8, 16, 32)):
        raise UnreadablePixels(f"BitsAllocated is {bits}, of which no picture is made")
    if is_float:
        return np.frombuffer(frame, f"<f{bits // 8}", count).reshape(shape)
    signed = numbers.get("PixelRepresentation", 0) == 1
    values = np.frombuffer(frame, f"<{'i' if signed else 'u'}{bits // 8}", count).reshape(shape)
    stored = numbers.get("BitsStored", bits)
    if high_bit is None or not 0 < stored <= high_bit + 1 <= bits or stored == bits:
        return values
    shifted: Values = np.right_shift(np.left_shift(values, bits - 1 - high_bit), bits - stored)
    return shifted


def picture_of(values: Values, attributes: Dataset, window: Window | None = None) -> Grey:
    """What stored values (rows, columns) look like: (rows, columns) of grey, or (rows, columns, 3) where there is a palette.

    A supplemental one has the values from its first on, and the others are grey (PS3.3 C.7.6.19). Raises UnreadablePixels.
    """
    if attributes.get("PhotometricInterpretation") == "PALETTE COLOR":
        return palette_colours(values, attributes)
    shown = grey(values, attributes, window)
    if (
        attributes.get("PixelPresentation") not in ("COLOR", "MIXED")
        or "RedPaletteColorLookupTableDescriptor" not in attributes
    ):
        return shown
    colours = palette_colours(values, attributes)
    is_grey = values < int(attributes.RedPaletteColorLookupTableDescriptor[1])
    return np.where(is_grey[..., np.newaxis], shown[..., np.newaxis], colours)


def grey(values: Values, attributes: Dataset, window: Window | None = None) -> Grey:
    """What stored values (rows, columns) look like: 0 black, 255 white.

    By `window`, else by the first VOI LUT or window of the object; where there is none, from the least to the greatest value
    of the frame. Padding is black. Raises UnreadablePixels where the attributes cannot be applied.
    """
    padded = _is_padding(values, attributes)
    with _applying("modality or VOI LUT"):
        shown = _shown(values, padded, attributes, window)
    if attributes.get("PhotometricInterpretation") == "MONOCHROME1":
        shown = 255 - shown
    if padded is not None:
        shown[padded] = 0
    return shown


def palette_colours(values: Values, attributes: Dataset) -> Grey:
    """The colours (rows, columns, 3) of stored values by the palette of the object (PS3.3 C.7.6.3.1.5).

    Raises UnreadablePixels.
    """
    with _applying("palette"):
        colours = apply_color_lut(values, _wide_palette(attributes))[..., :3]
        entry_bits = int(attributes.RedPaletteColorLookupTableDescriptor[2])
    # Some say 16 and mean 8, and the other way round.
    is_wide = colours.max(initial=0) > 255 or (entry_bits > 8 and not _has_bytes(attributes))
    return np.asarray(colours >> 8 if is_wide else colours).astype(np.uint8)


@contextmanager
def _applying(table: str) -> Iterator[None]:
    """Whatever pydicom raises for attributes that are missing, empty or of another form is one error."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        raise UnreadablePixels(f"its {table} cannot be applied: {error}") from error


def eight_bits(samples: Values, bits_stored: int) -> Grey:
    """Colour samples of so many bits as bytes."""
    if samples.dtype == np.uint8 and bits_stored >= 8:
        return samples.view(np.uint8)
    most = (1 << bits_stored) - 1
    scaled: Grey = np.rint(np.clip(samples, 0, most) * (255 / most)).astype(np.uint8)
    return scaled


def _encoded_as(attributes: Dataset) -> Dataset:
    """An empty data set that is taken to be written in the same way: tables of OW are read by that."""
    empty = Dataset()
    empty.set_original_encoding(*attributes.original_encoding)
    return empty


def _is_padding(values: Values, attributes: Dataset) -> npt.NDArray[np.bool_] | None:
    """Where the values are padding (PS3.3 C.7.5.1.1.2); None where nothing is."""
    first = attributes.get("PixelPaddingValue")
    limit = attributes.get("PixelPaddingRangeLimit")
    last = first if limit is None else limit
    if not isinstance(first, int) or not isinstance(last, int) or values.dtype.kind not in "iu":
        return None
    padded = (values >= min(first, last)) & (values <= max(first, last))
    return padded if padded.any() else None


def _shown(values: Values, padded: npt.NDArray[np.bool_] | None, attributes: Dataset, window: Window | None) -> Grey:
    if values.dtype.kind not in "iu" or int(values.max()) - int(values.min()) >= _MOST_LEVELS:
        counted = np.isfinite(values) if padded is None else ~padded
        return _displayed(values, counted, attributes, window)
    first = int(values.min())
    levels = np.arange(first, int(values.max()) + 1)
    places = values.astype(np.int64 if values.dtype.itemsize > 2 else np.int32) - first
    counted = np.zeros(len(levels), np.bool_)
    counted[places if padded is None else places[~padded]] = True
    return np.asarray(_displayed(levels, counted, attributes, window)[places])


def _displayed(values: Values, counted: npt.NDArray[np.bool_], attributes: Dataset, window: Window | None) -> Grey:
    """The grey of each value; those that are `counted` span the range where nothing is said of it."""
    in_units = apply_modality_lut(values, _applicable(attributes))
    chosen = window or _first_window(attributes)
    if window is None and _voi_lut(attributes) is not None:
        shown = _by_lut(in_units, attributes)
    elif chosen is not None:
        shown = _by_window(in_units, chosen)
    else:
        shown = _by_range(in_units, counted)
    displayed: Grey = np.clip(np.rint(np.nan_to_num(shown, nan=0, posinf=255, neginf=0)), 0, 255).astype(np.uint8)
    return displayed


def _applicable(attributes: Dataset) -> Dataset:
    """Those that a modality transformation is told by: a rescale of which half is missing or empty is none."""
    applicable = _encoded_as(attributes)
    rescale = [attributes[keyword] for keyword in ("RescaleSlope", "RescaleIntercept") if attributes.get(keyword) is not None]
    if tables := attributes.get("ModalityLUTSequence"):
        applicable.ModalityLUTSequence = [_wide_table(tables[0])]
    elif len(rescale) == 2:
        applicable.update({element.tag: element for element in rescale})
    return applicable


def _wide_table(item: Dataset) -> Dataset:
    """A LUT whose entries are numbers, and said to have 16 bits.

    pydicom takes what is said for a type, of which there is none of 12 bits, and keeps places in the table in it; it knows
    neither entries of bytes (PS3.3 C.11.1.1), nor a table that is too long for the length of US, and so of UN (PS3.5 6.2.2).
    """
    table, entries = Dataset(), item.LUTData
    if isinstance(entries, bytes):
        is_big_endian, count = item.original_encoding[1] is False, int(item.LUTDescriptor[0]) or _MOST_LEVELS
        data = little_endian(entries, 2 if is_big_endian else 1)
        entries = np.frombuffer(data, "u1" if len(data) < 2 * count else "<u2")[:count].tolist()
    table.LUTData, table.LUTDescriptor = entries, [*item.LUTDescriptor[:2], 16]
    return table


def _first_window(attributes: Dataset) -> Window | None:
    center, width = (_first(attributes.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return None
    functions: Mapping[object, WindowFunction] = {"SIGMOID": "SIGMOID", "LINEAR_EXACT": "LINEAR_EXACT"}
    window = Window(center, width, functions.get(attributes.get("VOILUTFunction"), "LINEAR"))
    return window if window.is_one else None


def _first(value: object) -> float | None:
    single = next(iter(value), None) if isinstance(value, MultiValue) else value
    try:
        return float(single)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _by_window(values: Values, window: Window) -> Values:
    """0 to 255, as if that were the range of values that pydicom maps a window to."""
    voi = Dataset()
    voi.PhotometricInterpretation, voi.BitsStored, voi.PixelRepresentation = "MONOCHROME2", 8, 0
    voi.WindowCenter, voi.WindowWidth = (DSfloat(number, auto_format=True) for number in (window.center, window.width))
    voi.VOILUTFunction = window.function
    with np.errstate(over="ignore"):
        return apply_windowing(values, voi)


def _by_range(values: Values, counted: npt.NDArray[np.bool_]) -> Values:
    inside = values[counted]
    if not inside.size:
        return np.zeros(values.shape)
    low, high = float(inside.min()), float(inside.max())
    return np.zeros(values.shape) if low == high else (values - low) * (255 / (high - low))


def _voi_lut(attributes: Dataset) -> Dataset | None:
    """The first VOI LUT, if it has all it needs."""
    items = attributes.get("VOILUTSequence") or ()
    found = next((item for item in items if item.get("LUTDescriptor") and item.get("LUTData") is not None), None)
    return found if isinstance(found, Dataset) else None


def _by_lut(values: Values, attributes: Dataset) -> Values:
    item = _voi_lut(attributes)
    assert item is not None  # noqa: S101  asked before
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    wide = _encoded_as(attributes)
    wide.VOILUTSequence = [_wide_table(item)]
    inside = np.clip(np.rint(values), first, first + (count or _MOST_LEVELS) - 1).astype(np.int64)
    return apply_voi(inside, wide) * (255 / ((1 << bits) - 1))


def _has_bytes(attributes: Dataset) -> bool:
    """Whether the entries of its palette are bytes one behind the other."""
    entries = int(attributes.RedPaletteColorLookupTableDescriptor[0]) or _MOST_LEVELS
    data = attributes.get("RedPaletteColorLookupTableData")
    return data is not None and len(data) < 2 * entries


def _wide_palette(attributes: Dataset) -> Dataset:
    """The palette with entries of 16 bits: pydicom keeps places in it in the type of its entries."""
    palette = _encoded_as(attributes)
    for element in attributes.group_dataset(0x0028):
        palette[element.tag] = element
    if "RedPaletteColorLookupTableData" not in palette:
        return palette
    widen: Callable[[bytes], bytes] = _widened if _has_bytes(attributes) else bytes
    word = 2 if attributes.original_encoding[1] is False else 1  # the tables are OW, whatever they hold
    entries = int(palette.RedPaletteColorLookupTableDescriptor[0]) or _MOST_LEVELS
    for colour in ("Red", "Green", "Blue"):
        keyword = f"{colour}PaletteColorLookupTableData"
        setattr(palette, keyword, widen(little_endian(palette[keyword].value, word))[: 2 * entries])
    return palette


def _widened(data: bytes) -> bytes:
    return np.frombuffer(data, np.uint8).astype("<u2").tobytes()
