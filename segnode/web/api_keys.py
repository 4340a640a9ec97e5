"""API keys: shown to whoever makes one, and kept as hashes."""

import hashlib
import secrets
from typing import Final

PREFIX: Final = "segnode_"  # tells a key from a token of an issuer, and finds one that was put where all can read it
_RANDOM_BYTES: Final = 32


def new_key() -> str:
    """A key that nobody has had."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def key_hash(key: str) -> str:
    """What the configuration has of a key.

    A fast hash is enough: slow ones are for what people think of, and 256 random bits are found by no trying. It is made for
    every request.
    """
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
