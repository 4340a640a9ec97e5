"""Export: image series and their segmentations become a training set, one series at a time."""

import fcntl
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Final

import msgspec

from segnode.datasets.formats import LAYOUTS, Format, FormatName, Item, format_of
from segnode.datasets.images import read_images
from segnode.datasets.layers import joined, layers_of
from segnode.datasets.manifest import MANIFEST_FILE, Entry, Manifest, encoded, file_digest, manifest_of, pseudonym, software
from segnode.datasets.pairing import Pair, Paired, about, pair, reading
from segnode.datasets.sources import Source, Wanted
from segnode.datasets.splits import Split, split_of_patients
from segnode.dicom.deidentify import BASIC_PROFILE, replaced_uid
from segnode.errors import BadDataset, CannotWrite, NotAVolume, SegnodeError
from segnode.store.filesystem import synchronise

_DONE_FILE: Final = ".done"
_PLAN_FILE: Final = ".plan.json"
_AT_ONCE: Final = 1 << 20


@dataclass(frozen=True)
class Export:
    """What is to be exported, as what, and how."""

    format: FormatName
    wanted: Wanted = field(default_factory=lambda: Wanted({}, {}))
    split: Split = field(default_factory=Split)
    threshold: float | None = None
    layout: str = ""
    collate: tuple[str, ...] = ()
    unlabelled: bool = False
    keep_identity: bool = False


@dataclass(frozen=True)
class Exported:
    """What came of it; `was_there` says that the set was made before, of the same. `left_out` says of what nothing came."""

    manifest: Manifest
    was_there: bool
    left_out: tuple[str, ...]


def export_dataset(
    source: Source,
    out: Path,
    asked: Export,
    *,
    map_file: Path | None = None,
    resume: bool = False,
    progress: Callable[[Sequence[Entry]], Iterator[Entry]] = iter,
) -> Exported:
    """Write a training set to `out`, a folder or a zip file, which is there whole or not at all.

    A set that was made of the same before is left as it is. Raises BadDataset, GridMismatch, LabelError, CannotWrite,
    UnreadablePixels, FindFailed.
    """
    _require_outside(map_file, out)
    format_, work = format_of(asked.format), out.parent / f".{out.name}.part"
    paired = pair(source, source.series(asked.wanted), unlabelled=asked.unlabelled, keep_identity=asked.keep_identity)
    if not paired.pairs:
        raise BadDataset("there is no image series with a segmentation that refers to it" + _said(paired.left_out))
    before = manifest_of(out)
    if out.exists():
        plan = _plan(asked, paired, before.key) if before is not None else None
        if plan is None or before is None or not before.asks_the_same(plan):
            raise CannotWrite(f"{out} is there already, and was made of something else: take another name")
        _write_map(map_file, paired, plan, {})
        return Exported(before, was_there=True, left_out=paired.left_out)
    with _working_in(work, resume=resume):
        earlier = _earlier_plan(work)
        plan = _plan(asked, paired, earlier.key if earlier else token_hex(16))
        if earlier is not None and not earlier.asks_the_same(plan):
            raise CannotWrite(f"what was begun in {work} is something else: go on without --resume, which deletes it")
        (work / _PLAN_FILE).write_bytes(encoded(plan))
        made, left_out = _write_all(source, work, format_, plan, paired, progress)
        manifest = msgspec.structs.replace(plan, entries=tuple(made))
        if not manifest.entries:
            raise BadDataset("none of the image series is a volume" + _said(left_out))
        _finish(format_, manifest, work)
        _write_map(map_file, paired, manifest, _read_orders(work))
        _into_place(work, out, format_)
    return Exported(manifest, was_there=False, left_out=(*paired.left_out, *left_out))


def _said(left_out: Sequence[str]) -> str:
    return "".join(f"\n  {reason}" for reason in left_out)


def _require_outside(map_file: Path | None, out: Path) -> None:
    if map_file is not None and map_file.resolve().is_relative_to(out.resolve()):
        raise CannotWrite(f"--map {map_file} would lie in the set itself: who the images are of stays outside")


def _plan(asked: Export, paired: Paired, key: str) -> Manifest:
    """The manifest as it is known before anything was written: patients and their series are numbered by pseudonym."""
    named = sorted(((_pseudonym(key, pair), pair) for pair in paired.pairs), key=lambda each: each[0])
    splits = split_of_patients((pair.images.patient for pair in paired.pairs), asked.split)
    patients = {patient: n for n, patient in enumerate(dict.fromkeys(pair.images.patient for _, pair in named), 1)}
    by_time = sorted(named, key=lambda each: (each[1].images.said.get("StudyDate", ""), each[0]))
    scans: Counter[int] = Counter()
    entries = []
    for name, each in by_time:
        patient = patients[each.images.patient]
        scan, (split, fold) = scans[patient], splits[each.images.patient]
        scans[patient] += 1
        values = sorted({value for labelled in each.segmentations for value in labelled.value_of.values()})
        entries.append(
            Entry(
                id=f"{patient:07d}_V{scan:02d}",
                patient=patient,
                scan=scan,
                series=name,
                segmentations=tuple(pseudonym(key, labelled.sop_instance_uid) for labelled in each.segmentations),
                split=split,
                fold=fold,
                values=tuple(values) if each.segmentations else None,
                identity=_identity(each) if asked.keep_identity else None,
                written_as=_written_as(key, each) if asked.format == "mathworks" and not asked.keep_identity else "",
            )
        )
    options = {
        "seed": str(asked.split.seed),
        "split": ",".join(f"{fraction:g}" for fraction in asked.split.fractions),
        "folds": str(asked.split.folds),
        "layout": _layout(asked),
        "collate": ";".join(_super_classes(asked, [each.name for each in paired.classes.all])),
        "threshold": "" if asked.threshold is None else f"{asked.threshold:g}",
    }
    done = () if asked.keep_identity else deidentification(asked.format)
    entries.sort(key=lambda entry: entry.id)
    return Manifest(asked.format, key, paired.classes.all, tuple(entries), options, done, dict(software()))


def _layout(asked: Export) -> str:
    known = LAYOUTS.get(asked.format, ("",))
    if asked.layout and asked.layout not in known:
        raise BadDataset(f"{asked.format} has no layout {asked.layout}; allowed: {', '.join(filter(None, known)) or 'none'}")
    return asked.layout or known[0]


def _super_classes(asked: Export, names: Sequence[str]) -> Sequence[str]:
    """Those asked for, as NAME=A,B. Raises BadDataset unless they are made of classes of the set."""
    if asked.collate and asked.format != "medsegpy":
        raise BadDataset(f"{asked.format} has no super-classes (--collate): medsegpy has")
    taken = {*names}
    for each in asked.collate:
        name, _, of = each.partition("=")
        if name in taken or not {*of.split(",")} <= {*names}:
            raise BadDataset(f"--collate {each}: it has a new name, and is made of classes of the set: {', '.join(names)}")
        taken.add(name)
    return asked.collate


def deidentification(format_: FormatName) -> tuple[str, ...]:
    """What is done to a set, so that it does not say who its images are of."""
    numbers = "patients and series have numbers of the set"
    if format_ != "mathworks":
        return numbers, "no attribute of DICOM but geometry, values and segments is in it"
    return (
        numbers,
        f"DICOM files: PS3.15 E, {BASIC_PROFILE.meaning} ({BASIC_PROFILE.scheme} {BASIC_PROFILE.value})",
        "options of the profile: none",
        "beyond the profile: no text, date or binary value that it does not list, but what pixels and codes are read by",
        "beyond the profile: pixels are written in native encoding, without what is beside them in a codestream",
        "of other files no attribute of DICOM but geometry, values and segments is in the set",
    )


def _identity(pair: Pair) -> dict[str, str]:
    series = pair.images
    return {**series.said, "StudyInstanceUID": series.study_instance_uid, "SeriesInstanceUID": series.series_instance_uid}


def _written_as(key: str, pair: Pair) -> str:
    return str(replaced_uid(pair.images.series_instance_uid, key))


def _pseudonym(key: str, pair: Pair) -> str:
    return pseudonym(key, pair.images.series_instance_uid, pair.images.sop_instance_uids)


def _write_all(
    source: Source,
    work: Path,
    format_: Format,
    plan: Manifest,
    paired: Paired,
    progress: Callable[[Sequence[Entry]], Iterator[Entry]],
) -> tuple[list[Entry], list[str]]:
    """Write every series that is not written yet; the entries of all, and why some are left out."""
    done = {entry.id: entry for entry in _done(work)}
    pairs = {_pseudonym(plan.key, pair): pair for pair in paired.pairs}
    left_out: list[str] = []
    for entry in progress(plan.entries):
        if entry.id in done:
            continue
        try:
            done[entry.id] = _write_one(source, work, format_, plan, entry, pairs[entry.series])
        except NotAVolume as reason:
            if entry.values is not None:
                raise BadDataset(f"image series {pairs[entry.series].images.series_instance_uid}: {reason}") from reason
            left_out.append(f"image series {pairs[entry.series].images.series_instance_uid}: {reason}")
    return [done[entry.id] for entry in plan.entries if entry.id in done], left_out


def _write_one(source: Source, work: Path, format_: Format, plan: Manifest, entry: Entry, pair: Pair) -> Entry:
    with ExitStack() as stack:
        images = read_images(stack.enter_context(source.files(pair.images)))
        if not images.grid.placed and not format_.takes_unplaced:
            raise NotAVolume("it has no place in the patient (ImagePositionPatient), and the format has nothing else")
        layers = []
        for labelled in pair.segmentations:
            with source.files(labelled.series) as files:
                for file in files:
                    with reading(file) as segmentation:
                        if segmentation.sop_instance_uid == labelled.sop_instance_uid:
                            threshold = float(plan.options["threshold"]) if plan.options["threshold"] else None
                            layers.append(layers_of(segmentation, labelled.value_of, images.grid, threshold))
        labels = None if entry.values is None else layers[0] if len(layers) == 1 else joined(layers, images.grid)
        classes = tuple(each for each in plan.classes if each.value in (entry.values or ()))
        item = Item(entry, images, labels, classes, plan.classes, plan.options["layout"], plan.key)
        # The digest of a file is taken while the next is made: it needs a core of its own, and no other memory.
        digests = stack.enter_context(ThreadPoolExecutor(1, "digests"))
        with about(f"image series {pair.images.series_instance_uid}"):
            taken = {str(file.relative_to(work)): digests.submit(file_digest, file) for file in format_.write(item, work)}
        digested = {name: digest.result() for name, digest in taken.items()}
    made = msgspec.structs.replace(
        entry,
        shape=images.grid.shape,
        affine=tuple(tuple(map(float, row)) for row in images.grid.affine) if images.grid.placed else (),
        files=digested,
    )
    order = [*dict.fromkeys(str(header.SOPInstanceUID) for header in images.headers)]
    with (work / _DONE_FILE).open("ab") as done:
        done.write(msgspec.json.encode(_Done(made, order)) + b"\n")
        done.flush()
        os.fsync(done.fileno())
    return made


class _Done(msgspec.Struct):
    """A line of what is done: an entry, and the SOP instance UIDs of its slices."""

    entry: Entry
    order: list[str]


def _lines(work: Path) -> Iterator[_Done]:
    with suppress(FileNotFoundError):
        for line in (work / _DONE_FILE).read_bytes().splitlines():
            with suppress(msgspec.MsgspecError):  # one that was being written
                yield msgspec.json.decode(line, type=_Done)


def _done(work: Path) -> list[Entry]:
    """What an earlier run wrote, where all of it is there as it was."""
    return [
        line.entry
        for line in _lines(work)
        if all((work / name).is_file() and file_digest(work / name) == digest for name, digest in line.entry.files.items())
    ]


def _read_orders(work: Path) -> Mapping[str, list[str]]:
    return {line.entry.id: line.order for line in _lines(work)}


def _earlier_plan(work: Path) -> Manifest | None:
    try:
        return msgspec.json.decode((work / _PLAN_FILE).read_bytes(), type=Manifest)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _finish(format_: Format, manifest: Manifest, work: Path) -> None:
    format_.finish(manifest, work)
    entries = []
    for entry in manifest.entries:
        files = {name: digest for name, digest in entry.files.items() if (work / name).exists()}
        entries.append(msgspec.structs.replace(entry, files=files))
    (work / MANIFEST_FILE).write_bytes(encoded(msgspec.structs.replace(manifest, entries=tuple(entries))))


@contextmanager
def _working_in(work: Path, *, resume: bool) -> Iterator[None]:
    """A folder for what is being written; after a failure it stays for --resume where a series is finished, else it goes."""
    try:
        if work.exists() and not resume:
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise CannotWrite(f"{work} cannot be made: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CannotWrite(f"another program is writing to {work}") from error
        yield
    except BaseException as error:
        kept = any(True for _ in _lines(work))
        if not kept:
            shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError):
            raise CannotWrite(f"{work} cannot be written: {error.strerror or error}") from error
        if kept and isinstance(error, SegnodeError):
            error.add_note(f"What was finished is kept in {work}; --resume goes on there.")
        raise
    finally:
        os.close(lock)


def _into_place(work: Path, out: Path, format_: Format) -> None:
    for name in (_DONE_FILE, _PLAN_FILE):
        (work / name).unlink(missing_ok=True)
    if format_.zipped:
        beside = work.with_name(f"{work.name}.zip")
        _zip(work, beside)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.rename(out)
        shutil.rmtree(work)
    else:
        work.rename(out)
    synchronise(out.parent)


def _zip(folder: Path, out: Path) -> None:
    """A zip of the files of a folder as they are: arrays are read faster so, and are copied here once."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo.from_file(file, file.relative_to(folder))
            with file.open("rb") as whole, archive.open(info, "w") as entry:
                shutil.copyfileobj(whole, entry, _AT_ONCE)


def _write_map(map_file: Path | None, paired: Paired, manifest: Manifest, orders: Mapping[str, list[str]]) -> None:
    """Who is who: the one file with real UIDs, which only its owner may read."""
    if map_file is None:
        return
    pairs = {_pseudonym(manifest.key, pair): pair for pair in paired.pairs}
    rows = [
        {
            "id": entry.id,
            **_identity(pairs[entry.series]),
            "segmentations": [each.sop_instance_uid for each in pairs[entry.series].segmentations],
            "instances": orders.get(entry.id) or pairs[entry.series].images.sop_instance_uids,
        }
        for entry in manifest.entries
    ]
    map_file.parent.mkdir(parents=True, exist_ok=True)
    beside = map_file.with_name(f".{map_file.name}.{token_hex(4)}.part")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(rows), indent=1))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(map_file)
