"""Coded concepts (PS3.3 8.8)."""

from typing import Annotated

import msgspec


class Code(msgspec.Struct, frozen=True, array_like=True):
    """A coded concept, written [scheme, value, meaning]."""

    scheme: Annotated[str, msgspec.Meta(min_length=1, max_length=16)]
    value: Annotated[str, msgspec.Meta(min_length=1, max_length=16)]
    meaning: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
