"""Negotiation by hand against pynetdicom's, which takes long for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import negotiate_as_acceptor

from segnode.dimse.negotiation import BadRequest, Negotiator, join_answer, split_request
from segnode.dimse.services import Service
from tests.associating import request

CLASSES = [f"1.2.3.{number}" for number in range(6)]
SYNTAXES = [f"1.2.840.10008.1.2.{number}" for number in range(1, 6)]
ROLE = st.none() | st.tuples(st.booleans(), st.booleans())
SERVICES = st.lists(
    st.builds(
        Service,
        st.just("a service"),
        st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3, unique=True).map(tuple),
        st.lists(st.sampled_from(SYNTAXES), min_size=1, unique=True).map(tuple),
        st.none(),
        ROLE,
    ),
    max_size=1,
)
CONTEXTS = st.lists(
    st.tuples(st.sampled_from(CLASSES), st.lists(st.sampled_from(SYNTAXES), min_size=1, unique=True)), min_size=1, max_size=128
)


@given(SERVICES, CONTEXTS, st.dictionaries(st.sampled_from(CLASSES), st.tuples(st.booleans(), st.booleans())))
def test_answers_are_those_of_pynetdicom(served: list[Service], contexts, asked) -> None:
    """Results, transfer syntaxes, the roles that are taken, and those that are answered."""
    supported = []
    for service in served:
        for sop_class in service.sop_classes:
            supported.append(build_context(sop_class, list(service.transfer_syntaxes)))
            supported[-1].scu_role, supported[-1].scp_role = service.roles or (None, None)
    sent = request("A", "B", contexts)
    decoded = A_ASSOCIATE_RQ()
    decoded.decode(sent)
    expected, roles = negotiate_as_acceptor(
        decoded.to_primitive().presentation_context_definition_list, supported, {UID(uid): pair for uid, pair in asked.items()}
    )
    rest, proposals = split_request(sent)
    found, answered = Negotiator(served).negotiate(proposals, asked, lambda _: True)
    assert [(c.context_id, c.abstract_syntax, c.result) for c in found] == [
        (c.context_id, c.abstract_syntax, c.result) for c in expected
    ]
    taken = [(c.transfer_syntax, c.as_scu, c.as_scp) for c in found if c.result == 0]
    assert taken == [(c.transfer_syntax, c.as_scu, c.as_scp) for c in expected if c.result == 0]
    rejected_roles = {str(c.abstract_syntax) for c in expected if c.result != 0}
    assert {uid: pair for uid, pair in answered.items() if uid not in rejected_roles} == {
        str(role.sop_class_uid): (role.scu_role, role.scp_role)
        for role in roles
        if str(role.sop_class_uid) not in rejected_roles
    }
    without = A_ASSOCIATE_RQ()
    without.decode(rest)
    assert without.presentation_context == []
    assert without.to_primitive().user_information == decoded.to_primitive().user_information


@given(CONTEXTS)
def test_an_answer_is_read_by_pynetdicom(contexts) -> None:
    """The contexts that are put into an acceptance are those that pynetdicom finds there."""
    _, proposals = split_request(request("A", "B", contexts))
    (service,) = [Service("a service", tuple(CLASSES[:3]), tuple(SYNTAXES[:3]))]
    answers, _ = Negotiator([service]).negotiate(proposals, {}, lambda _: True)
    decoded = A_ASSOCIATE_RQ()
    decoded.decode(request("A", "B"))
    accepted: A_ASSOCIATE = decoded.to_primitive()
    accepted.result, accepted.result_source = 0, 1
    accepted.presentation_context_definition_results_list = []
    pdu = A_ASSOCIATE_AC()
    pdu.from_primitive(accepted)
    read = A_ASSOCIATE_AC()
    read.decode(join_answer(pdu.encode(), answers))
    assert [(item.presentation_context_id, item.result) for item in read.presentation_context] == [
        (context.context_id, context.result) for context in answers
    ]
    assert [str(item.transfer_syntax) for item in read.presentation_context if item.result == 0] == [
        context.transfer_syntax[0] for context in answers if context.result == 0
    ]


@given(CONTEXTS, st.data())
def test_a_request_that_is_cut_or_changed_is_read_or_refused(contexts, data) -> None:
    """Whatever bytes a request has, it is either read or a bad request; nothing else is raised."""
    sent = bytearray(request("A", "B", contexts))
    for _ in range(data.draw(st.integers(0, 4))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    try:
        split_request(bytes(sent[: data.draw(st.integers(0, len(sent)))]))
    except BadRequest:
        return


@pytest.mark.parametrize("number", [0, 2])
def test_context_ids_are_odd_and_differ(number: int) -> None:
    """An even ID, and one that is used twice, make a bad request (PS3.8 9.3.2.2)."""
    sent = bytearray(request("A", "B", [("1.2.3.1", SYNTAXES[:1]), ("1.2.3.1", SYNTAXES[:1])]))
    ids = [at + 4 for at in range(74, len(sent)) if sent[at : at + 2] == b"\x20\0"]
    sent[ids[1]] = number or sent[ids[0]]
    with pytest.raises(BadRequest):
        split_request(bytes(sent))
