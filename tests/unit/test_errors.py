"""The error tree and its tables."""

import inspect
import pickle

import pytest

from segnode import errors
from segnode.dicom.status import STATUS_OF, Meaning, meaning_of
from segnode.web.app import HTTP_STATUS_OF

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.SegnodeError)]


def test_every_error_is_drawn_in_the_tree() -> None:
    """The module's docstring draws every error there is."""
    assert errors.__doc__ is not None
    assert [kind.__name__ for kind in TREE if kind.__name__ not in errors.__doc__] == []


@pytest.mark.parametrize("kind", [kind for kind in TREE if issubclass(kind, errors.Refusal) and kind is not errors.Refusal])
def test_every_refusal_has_one_status(kind: type[errors.Refusal]) -> None:
    """Each refusal of an object maps to a failure status of C-STORE, which is STOW's failure reason too."""
    status = STATUS_OF[kind]
    assert meaning_of(status) in ("later", "form", "there", "never")


def test_what_the_web_answers_is_an_error_of_the_tree() -> None:
    """The HTTP table names errors of the tree: those of the client, and what it may try again later."""
    assert set(HTTP_STATUS_OF) <= set(TREE)
    later = {errors.OutOfResources, errors.IssuerSilent}
    assert {kind for kind, status in HTTP_STATUS_OF.items() if status == 503} == later
    assert all(400 <= status < 500 for kind, status in HTTP_STATUS_OF.items() if kind not in later)


@pytest.mark.parametrize("kind", TREE)
def test_every_error_survives_pickling(kind: type[errors.SegnodeError]) -> None:
    """The workflow engine keeps errors pickled."""
    assert str(pickle.loads(pickle.dumps(kind("why")))) == "why"


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (0x0000, "stored"),
        (0xB000, "stored"),
        (0xB007, "stored"),
        (0x0111, "there"),
        (0xB00E, "there"),
        (0xA700, "later"),
        (0xA701, "later"),
        (0x0110, "later"),
        (0x0213, "later"),
        (0xFE00, "later"),
        (0xA900, "form"),
        (0xC000, "form"),
        (0xC122, "form"),
        (0x0122, "form"),
        (0x0124, "never"),
        (0x0117, "never"),
    ],
)
def test_what_a_status_means(status: int, meaning: Meaning) -> None:
    """Stored, there already, later may do, another form may do, or never: each status means one of them."""
    assert meaning_of(status) == meaning
