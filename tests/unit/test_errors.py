"""The error tree and its tables."""

import inspect
import pickle

import pytest

from segnode import errors
from segnode.dicom.status import STATUS_OF, is_passing, is_refusal_of_form, is_stored
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
    assert not is_stored(status)
    assert is_passing(status) or is_refusal_of_form(status)


def test_what_the_web_answers_is_an_error_of_the_tree() -> None:
    """The HTTP table names errors of the tree, with client errors only."""
    assert set(HTTP_STATUS_OF) <= set(TREE)
    assert all(400 <= status < 500 for status in HTTP_STATUS_OF.values())


@pytest.mark.parametrize("kind", TREE)
def test_every_error_survives_pickling(kind: type[errors.SegnodeError]) -> None:
    """The workflow engine keeps errors pickled."""
    assert str(pickle.loads(pickle.dumps(kind("why")))) == "why"


@pytest.mark.parametrize(
    ("status", "stored", "form", "passing"),
    [
        (0x0000, True, False, False),
        (0xB000, True, False, False),
        (0xB007, True, False, False),
        (0x0111, True, False, False),
        (0xA700, False, False, True),
        (0xA701, False, False, True),
        (0x0110, False, False, True),
        (0xA900, False, True, False),
        (0xC000, False, True, False),
        (0xC122, False, True, False),
        (0x0122, False, True, False),
        (0x0124, False, False, False),
    ],
)
def test_what_a_status_means(status: int, stored: bool, form: bool, passing: bool) -> None:
    """Stored, another form may do, later may do, or never: each status means one of them."""
    assert (is_stored(status), is_refusal_of_form(status), is_passing(status)) == (stored, form, passing)
