"""Senders of CT series as modalities and gateways are: what is not acknowledged is sent again until it is."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import httpx
from pydicom import dcmread

from segnode.config import DimseAddress
from segnode.dimse.scu import send_files
from segnode.errors import DeliveryFailed
from segnode.testing.phantom import Phantom, write_ct

_LONGEST_PAUSE_S: Final = 0.3
_BETWEEN_SERIES_S: Final = 2.0
_AGAIN: Final = 0.1
_GROUP_LENGTH_AT: Final = 140
_META_AT: Final = 144
_TIMEOUT_S: Final = 30.0
_REFERENCED, _INSTANCE_UID = "00081199", "00081155"


@dataclass(frozen=True)
class Image:
    """An image to be sent: its file, its identity, and a digest of its data set."""

    file: Path
    sop_instance_uid: str
    digest: str


@dataclass
class Series:
    """A series that is being sent, or was; `longest_gap_s` is the longest that one image may have come after another."""

    phantom: Phantom
    study_instance_uid: str
    series_instance_uid: str
    images: Sequence[Image]
    longest_gap_s: float = 0.0


@dataclass(frozen=True)
class Ledger:
    """What was sent and acknowledged, and what was answered when it was not; kept by the senders' threads."""

    series: list[Series] = field(default_factory=list)
    acknowledged: dict[str, str] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledge(self, image: Image) -> None:
        """The node has said that it holds an image."""
        with self.lock:
            self.acknowledged[image.sop_instance_uid] = image.digest

    def refuse(self, answer: str) -> None:
        """The node has not taken something; the sender tries again."""
        with self.lock:
            self.answers[answer] += 1


# Sends images, and yields those that are acknowledged; the rest of them was not.
Door = Callable[[Sequence[Image]], Iterator[Image]]


def data_set_digest(part10: bytes) -> str:
    """SHA-256 of what stands behind the file meta information (PS3.10 7.1), which begins with its length."""
    length = int.from_bytes(part10[_GROUP_LENGTH_AT:_META_AT], "little")
    return hashlib.sha256(part10[_META_AT + length :]).hexdigest()


def make_series(folder: Path, seed: int, random: Random) -> Series:
    """Write a small CT series; its UIDs follow from the seed."""
    phantom = write_ct(folder, random.randint(3, 12), random.choice((32, 48, 64)), seed)
    images = []
    for file in sorted(folder.iterdir()):
        dataset = dcmread(file, stop_before_pixels=True)
        images.append(Image(file, str(dataset.SOPInstanceUID), data_set_digest(file.read_bytes())))
    return Series(phantom, str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID), images)


def store_door(address: DimseAddress, ledger: Ledger) -> Door:
    """Sends by C-STORE, in one association."""

    def send(images: Sequence[Image]) -> Iterator[Image]:
        by_file = {image.file: image for image in images}
        try:
            for file, _ in send_files(list(by_file), address, "SENDER"):
                yield by_file[file]
        except DeliveryFailed as failure:
            ledger.refuse(f"C-STORE: {str(failure).removeprefix(f'{address.ae_title}@{address.host}:{address.port} ')}")

    return send


def stow_door(root: str, ledger: Ledger) -> Door:
    """Sends by STOW-RS, in one request."""

    def send(images: Sequence[Image]) -> Iterator[Image]:
        head = b"--part\r\nContent-Type: application/dicom\r\n\r\n"
        body = b"".join(head + image.file.read_bytes() + b"\r\n" for image in images) + b"--part--\r\n"
        headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=part'}
        try:
            response = httpx.post(f"{root}/studies", content=body, headers=headers, timeout=_TIMEOUT_S)
        except httpx.TransportError as error:
            ledger.refuse(f"STOW: {type(error).__name__}")
            return
        if response.status_code != httpx.codes.OK:
            ledger.refuse(f"STOW: HTTP {response.status_code}")
        if response.status_code in (httpx.codes.OK, httpx.codes.ACCEPTED):
            stored = response.json().get(_REFERENCED, {}).get("Value", [])
            uids = {item[_INSTANCE_UID]["Value"][0] for item in stored}
            yield from (image for image in images if image.sop_instance_uid in uids)

    return send


class Sender:
    """Sends one series after another through a door, in a thread, until it is told to begin no more."""

    def __init__(self, name: str, door: Door, ledger: Ledger, next_series: Callable[[Random], Series], seed: str) -> None:
        self.name = name
        self.error: Exception | None = None
        self._door = door
        self._ledger = ledger
        self._next_series = next_series
        self._random = Random(seed)  # noqa: S311  repeatable, guards nothing
        self._no_more = threading.Event()
        self._give_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def begin_no_more(self) -> None:
        """Begin no further series; the one it is at is sent to its end."""
        self._no_more.set()

    def has_ended(self, within: float) -> bool:
        """Wait for its last series, that long at most; whether it is sent."""
        self._thread.join(max(0.0, within))
        self._give_up.set()
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._no_more.wait(self._random.uniform(0, _BETWEEN_SERIES_S)):
                series = self._next_series(self._random)
                with self._ledger.lock:
                    self._ledger.series.append(series)
                self._send(series)
        except Exception as error:  # noqa: BLE001  a sender's border: it is one of the things that are found
            self.error = error

    def _send(self, series: Series) -> None:
        """Send a series in chunks, in no order, each image until it is acknowledged, and some of them twice."""
        left = self._random.sample(series.images, len(series.images))
        first_tried: dict[str, float] = {}
        before: float | None = None
        while left and not self._give_up.is_set():
            chunk = left[: self._random.randint(1, 5)]
            if self._random.random() < _AGAIN:
                chunk += [image for image in series.images if image not in left][:2]
            for image in chunk:
                first_tried.setdefault(image.sop_instance_uid, time.monotonic())
            for image in self._door(chunk):
                self._ledger.acknowledge(image)
                if image not in left:
                    continue
                left.remove(image)
                if before is not None:
                    series.longest_gap_s = max(series.longest_gap_s, time.monotonic() - before)
                before = first_tried[image.sop_instance_uid]
            self._give_up.wait(self._random.uniform(0, _LONGEST_PAUSE_S))
