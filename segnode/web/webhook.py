"""Webhooks of other people: a signed POST (the Standard Webhooks specification, 1.0)."""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

import httpx

from segnode.errors import ConfigError, DeliveryDeferred, DeliveryRefused

_PREFIX: Final = "whsec_"
_TIMEOUT_S: Final = 10.0
_GONE: Final = 410


@dataclass(frozen=True)
class HttpWebhook:
    """A URL that is told; what it is told is signed with `key`."""

    url: str
    key: bytes = field(repr=False)

    def tell(self, notice_id: str, body: bytes, now: float) -> str:
        """Post a notice; see the port Webhook. Only 410 says that no more is wanted."""
        headers = {
            "Content-Type": "application/json",
            "webhook-id": notice_id,
            "webhook-timestamp": str(int(now)),
            "webhook-signature": signature(self.key, notice_id, int(now), body),
        }
        try:
            with httpx.stream("POST", self.url, content=body, headers=headers, timeout=_TIMEOUT_S) as response:
                answer = f"HTTP {response.status_code}"
        except httpx.TransportError as error:
            raise DeliveryDeferred(f"{self.url} cannot be reached, or broke off: {type(error).__name__}") from error
        if response.status_code == _GONE:
            raise DeliveryRefused(answer)
        if not response.is_success:
            raise DeliveryDeferred(answer)
        return answer


def signature(key: bytes, notice_id: str, timestamp: int, body: bytes) -> str:
    """The signature of a notice that is told at a time, in seconds since 1970."""
    signed = f"{notice_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def signing_key(secret: str, path: str) -> bytes:
    """The key that a secret stands for: of one that begins with whsec_ the rest as base64, else its text.

    Raises ConfigError with the path of the key.
    """
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise ConfigError(f"{path}: what follows {_PREFIX} is not base64") from error
