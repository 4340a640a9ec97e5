"""A trial of the rules: which of them would act on images that lie in files, and what would come of it."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from pydicom import dcmread

from segnode.config import Config, FormName
from segnode.dicom.header import Header, read_header
from segnode.dicom.planar import planar_slices
from segnode.dicom.slices import order_slices
from segnode.errors import NotAVolume, Refusal
from segnode.pipeline.assemble import values_in_files
from segnode.pipeline.job_document import model_name
from segnode.pipeline.rules import AnyRule, SeriesValues, asked, series_values
from segnode.store.index import Sender


class Unsatisfied(msgspec.Struct, frozen=True):
    """A condition of a rule that the images do not satisfy."""

    key: str
    asked: Annotated[str, Meta(description="What the rule asks for.")]
    found: Annotated[list[str], Meta(description="What the images have; empty where they have nothing.")]


class RuleTrial(msgspec.Struct, frozen=True):
    """What a rule would do with a series."""

    place: Annotated[int, Meta(description="Of the rule in the configuration, from 0.")]
    selects: bool
    unsatisfied: list[Unsatisfied]
    model: Annotated[str, Meta(description="Name and version of the model; empty where the rule only forwards.")]
    quiet: Annotated[float, Meta(description="Seconds without a new image that it would wait for.")]
    send_to: Annotated[
        dict[str, tuple[FormName, ...]],
        Meta(description="The forms that each destination is offered a SEG in, best first; none where all is sent as it came."),
    ]


class SeriesTrial(msgspec.Struct, frozen=True):
    """A series, and what the rules would do with it."""

    series: str
    images: int
    volume: Annotated[str, Meta(description="What a model would be given, or why there would be no volume.")]
    rules: list[RuleTrial]


class RefusedFile(msgspec.Struct, frozen=True):
    """A file that would not be received."""

    path: str
    reason: str


class Trial(msgspec.Struct, frozen=True):
    """The series in some files, and the files that would not be received."""

    series: list[SeriesTrial]
    refused: list[RefusedFile]


@dataclass(frozen=True)
class _Series:
    """Files of a series with their headers."""

    paths: list[Path]
    headers: list[Header]


def try_rules(config: Config, rules: Sequence[AnyRule], paths: Iterable[Path], sender: Sender) -> Trial:
    """What rules would do with the images in files if `sender` sent them."""
    found: dict[str, _Series] = {}
    refused = []
    for path in paths:
        try:
            with path.open("rb") as file:
                header = read_header(file)
        except Refusal as refusal:
            refused.append(RefusedFile(str(path), str(refusal)))
            continue
        series = found.setdefault(header.series_instance_uid, _Series([], []))
        series.paths.append(path)
        series.headers.append(header)
    keywords = frozenset().union(*(rule.image_keywords for rule in rules))
    tried = [_try_series(config, rules, uid, series, keywords, sender) for uid, series in sorted(found.items())]
    return Trial(tried, refused)


def _try_series(
    config: Config, rules: Sequence[AnyRule], uid: str, series: _Series, keywords: frozenset[str], sender: Sender
) -> SeriesTrial:
    values = {**series_values(series.headers[0].attributes, [sender]), **values_in_files(series.paths, keywords)}
    tried = [_try_rule(config, place, rule, values) for place, rule in enumerate(rules)]
    return SeriesTrial(uid, len(series.paths), _volume(series.paths), tried)


def _try_rule(config: Config, place: int, rule: AnyRule, values: SeriesValues) -> RuleTrial:
    as_it_came = rule.config.model is None and not rule.config.reencode
    forms = {destination.name: () if as_it_came else destination.seg for destination in config.destinations}
    keys = rule.unsatisfied(values)
    return RuleTrial(
        place,
        not keys,
        [Unsatisfied(key, asked(rule.config.when[key]), sorted(filter(None, values[key]))) for key in keys],
        model_name(*rule.made_by),
        rule.config.quiet,
        {name: forms[name] for name in rule.config.send_to},
    )


def _volume(paths: Iterable[Path]) -> str:
    images = [dcmread(path, stop_before_pixels=True) for path in paths]
    try:
        slices = order_slices(images)
    except NotAVolume as reason:
        with suppress(NotAVolume):
            return f"none; {len(planar_slices(images).images)} planar image(s), for a model that says so (input)"
        return f"none: {reason}"
    left_out = f", {len(slices.left_out)} localizer(s) left out" if slices.left_out else ""
    return f"{len(slices.images)} slices{left_out}"
