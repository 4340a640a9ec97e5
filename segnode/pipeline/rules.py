"""Rules as the pipeline knows them: resolved with their model and label dictionary, and named by a digest of all that."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from segnode.config import Config, DestinationConfig, FormName, ModelConfig, RuleConfig
from segnode.dicom.attributes import RULE_ATTRIBUTES, SENDER_KEYS
from segnode.dicom.matching import When, satisfied
from segnode.dicom.uids import derived_digest
from segnode.errors import LabelError
from segnode.seg.segments import LabelDictionary, read_label_dictionary
from segnode.store.index import Sender

_R = TypeVar("_R")
# What a configuration says of a model beside its version that makes its results others.
_SHAPING: Final = ("orientation", "spacing", "grid", "threshold")
_PLAIN: Final = ModelConfig(name="m", run="python:m", labels="m", version="1")
_HELD_FORM: Final[FormName] = "labelmap:rle"


class _Selecting(msgspec.Struct, frozen=True, dict=True):
    """A rule, as far as it selects series."""

    config: RuleConfig

    @property
    def document(self) -> str:
        """The rule as it is kept beside the jobs that it has decided."""
        return msgspec.json.encode(self).decode()

    @property
    def image_keywords(self) -> frozenset[str]:
        """The attributes it asks of every image: those that are not one value for the whole series."""
        return frozenset(self.config.when) - {*RULE_ATTRIBUTES, *SENDER_KEYS}

    def unsatisfied(self, values: "SeriesValues") -> list[str]:
        """The keys of its conditions that a series with these values does not satisfy; those without a value are left out.

        What differs from image to image satisfies a condition if that of any image does.
        """
        return [key for key, when in self.config.when.items() if key in values and not satisfied(when, values[key])]

    @property
    def _conditions(self) -> list[str]:
        return [f"{keyword}={asked(when)}" for keyword, when in sorted(self.config.when.items())]


class Rule(_Selecting, frozen=True):
    """A rule with what it names; `first_form` is the LABELMAP form that its first destination would like best."""

    model: ModelConfig
    dictionary: LabelDictionary
    first_form: FormName

    @cached_property
    def digest(self) -> str:
        """Names what this rule makes: another model version, dictionary, selection or destination is another rule."""
        # Only where it is said: these came later, and what there was before keeps its name. Sides change nothing that is made.
        tilt = ["allow_tilt"] if self.config.allow_tilt else []
        asks = {key: getattr(self.model, key) for key in _SHAPING if getattr(self.model, key) != getattr(_PLAIN, key)}
        shaped = [msgspec.json.encode(asks).decode()] if asks else []
        planar = ["planar"] if self.model.input == "planar" else []
        return derived_digest(
            "rule",
            self._conditions,
            self.config.send_to,
            (self.model.name, self.model.version),
            msgspec.json.encode(self.dictionary).decode(),
            *tilt,
            *shaped,
            *planar,
        )

    @property
    def made_by(self) -> tuple[str, str]:
        """Name and version of the model."""
        return self.model.name, self.model.version


class ForwardRule(_Selecting, frozen=True):
    """A rule without a model: what comes in is sent on. `addresses` are those of its destinations, by name."""

    addresses: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """Names what this rule does; an address may change."""
        return derived_digest("forward", self._conditions, self.config.send_to, str(self.config.reencode))

    @property
    def made_by(self) -> tuple[str, str]:
        """No model, in no version."""
        return "", ""


AnyRule = Rule | ForwardRule

# The values of a series by the keys that rules ask for: attributes by keyword, and who sent it. An image without one has "".
SeriesValues = Mapping[str, Collection[str]]


def series_values(attributes: Mapping[str, str], senders: Iterable[Sender]) -> SeriesValues:
    """What is known of a series without looking at its images."""
    sent = [asdict(sender) for sender in senders] or [asdict(Sender())]
    return {
        **{keyword: (attributes.get(keyword, ""),) for keyword in RULE_ATTRIBUTES},
        **{key: {each[key] for each in sent} for key in SENDER_KEYS},
    }


def asked(when: When) -> str:
    """A condition as text."""
    return when if isinstance(when, str) else msgspec.json.encode(when).decode()


def resolve_rules(config: Config) -> Sequence[AnyRule]:
    """The rules of a configuration. Raises LabelError when a dictionary cannot be read."""
    folder: Path = config.folder
    forms = {destination.name: _labelmap_form(destination) for destination in config.destinations}
    rules: list[AnyRule] = []
    for rule in config.rules:
        if rule.model is None:
            rules.append(ForwardRule(rule, {d.name: d.to for d in config.destinations if d.name in rule.send_to}))
            continue
        model = config.model(rule.model)
        first_form = forms[rule.send_to[0]] if rule.send_to else _HELD_FORM
        rules.append(Rule(rule, model, read_label_dictionary(model.labels, folder), first_form))
    return rules


def _labelmap_form(destination: DestinationConfig) -> FormName:
    """The form that results are held in; those of another type are made when they are sent."""
    return next((form for form in destination.seg if form.startswith("labelmap:")), _HELD_FORM)


def documents(rules: Sequence[AnyRule]) -> Mapping[str, str]:
    """The documents of rules, by digest."""
    return {rule.digest: rule.document for rule in rules}


def rule_of(document: str) -> Rule:
    """The rule with a model that a document holds. Raises LabelError when this version cannot read it."""
    return _decoded(document, Rule)


def forward_rule_of(document: str) -> ForwardRule:
    """The rule without a model that a document holds. Raises LabelError when this version cannot read it."""
    return _decoded(document, ForwardRule)


def any_rule_of(document: str) -> AnyRule:
    """The rule that a document holds, with a model or without. Raises LabelError when this version cannot read it."""
    try:
        return rule_of(document)
    except LabelError:
        return forward_rule_of(document)


def _decoded(document: str, kind: type[_R]) -> _R:
    try:
        return msgspec.json.decode(document, type=kind)
    except msgspec.DecodeError as error:
        raise LabelError(f"the rule that asked for it was kept by another version of segnode: {error}") from error
