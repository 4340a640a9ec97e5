"""Colours of segments: sRGB as people write it, CIELab as DICOM stores it (PS3.3 C.10.7.1.1)."""

from collections.abc import Sequence

import numpy as np

_D50_WHITE = np.array([0.9642, 1.0, 0.8249])
# Linear sRGB to XYZ adapted to D50 (Bradford), the profile connection space of ICC.1.
_TO_XYZ = np.array([[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]])


def recommended_cielab(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """The value of RecommendedDisplayCIELabValue for an sRGB colour (0..255 each)."""
    srgb = np.array(rgb) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    ratio = _TO_XYZ @ linear / _D50_WHITE
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    lab = 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])
    scaled = np.array([lab[0] / 100, (lab[1] + 128) / 255, (lab[2] + 128) / 255]) * 0xFFFF
    lightness, a, b = (int(value) for value in np.clip(np.rint(scaled), 0, 0xFFFF))
    return lightness, a, b


def srgb(cielab: Sequence[int]) -> tuple[int, int, int]:
    """The sRGB colour (0..255 each) of a RecommendedDisplayCIELabValue, clipped to what sRGB can show."""
    lightness, a, b = np.array(cielab) / 0xFFFF * (100, 255, 255) - (0, 128, 128)
    f = np.array([a / 500, 0, -b / 200]) + (lightness + 16) / 116
    ratio = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2)
    linear = np.clip(np.linalg.inv(_TO_XYZ) @ (ratio * _D50_WHITE), 0, 1)
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (int(value) for value in np.rint(encoded * 255))
    return red, green, blue
