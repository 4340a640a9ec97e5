"""The conformance statement."""

from pathlib import Path

from click.testing import CliRunner

from segnode.cli import main
from segnode.dimse.services import services

KEPT = Path(__file__).parents[2] / "docs" / "conformance.md"


def test_the_copy_in_the_repository_is_what_the_command_prints() -> None:
    """`segnode conformance > docs/conformance.md` would change nothing."""
    assert CliRunner().invoke(main, ["conformance"]).stdout == KEPT.read_text()


def test_every_class_and_transfer_syntax_that_is_served_is_stated() -> None:
    """What is negotiated by the table is in the statement, with its UID."""
    stated = KEPT.read_text()
    for service in services():
        assert [uid for uid in (*service.sop_classes, *service.transfer_syntaxes) if f"({uid})" not in stated] == []
