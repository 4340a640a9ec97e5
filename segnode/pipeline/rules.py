"""Rules as the pipeline knows them: resolved with their model and label dictionary, and named by a digest of all that."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec

from segnode.config import Config, DestinationConfig, FormName, ModelConfig, RuleConfig
from segnode.dicom.matching import matches
from segnode.dicom.uids import derived_digest
from segnode.errors import LabelError
from segnode.seg.segments import LabelDictionary, read_label_dictionary

_HELD_FORM: Final[FormName] = "labelmap:rle"


class Rule(msgspec.Struct, frozen=True, dict=True):
    """A rule with what it names; `first_form` is the LABELMAP form that its first destination would like best."""

    config: RuleConfig
    model: ModelConfig
    dictionary: LabelDictionary
    first_form: FormName

    @cached_property
    def digest(self) -> str:
        """Names what this rule makes: another model version, dictionary, selection or destination is another rule."""
        return derived_digest(
            "rule",
            [f"{keyword}={value}" for keyword, value in sorted(self.config.when.items())],
            self.config.send_to,
            (self.model.name, self.model.version),
            msgspec.json.encode(self.dictionary).decode(),
        )

    @property
    def document(self) -> str:
        """The rule as it is kept beside the jobs that it has decided."""
        return msgspec.json.encode(self).decode()

    def selects(self, attributes: Mapping[str, str]) -> bool:
        """Whether a series with these attributes is this rule's."""
        return all(matches(value, attributes.get(keyword, "")) for keyword, value in self.config.when.items())


def resolve_rules(config: Config) -> Sequence[Rule]:
    """The rules of a configuration. Raises LabelError when a dictionary cannot be read."""
    folder: Path = config.folder
    forms = {destination.name: _labelmap_form(destination) for destination in config.destinations}
    rules = []
    for rule in config.rules:
        model = config.model(rule.model)
        first_form = forms[rule.send_to[0]] if rule.send_to else _HELD_FORM
        rules.append(Rule(rule, model, read_label_dictionary(model.labels, folder), first_form))
    return rules


def _labelmap_form(destination: DestinationConfig) -> FormName:
    """The form that results are held in; those of another type are made when they are sent."""
    return next((form for form in destination.seg if form.startswith("labelmap:")), _HELD_FORM)


def documents(rules: Sequence[Rule]) -> Mapping[str, str]:
    """The documents of rules, by digest."""
    return {rule.digest: rule.document for rule in rules}


def rule_of(document: str) -> Rule:
    """The rule that a document holds. Raises LabelError when this version cannot read it."""
    try:
        return msgspec.json.decode(document, type=Rule)
    except msgspec.DecodeError as error:
        raise LabelError(f"the rule that asked for it was kept by another version of segnode: {error}") from error
