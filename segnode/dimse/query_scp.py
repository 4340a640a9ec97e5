"""Query/Retrieve in associations of peers (PS3.4 C): which models there are, and what answers them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pynetdicom import evt
from pynetdicom.dimse_primitives import C_FIND, C_GET, C_MOVE
from pynetdicom.events import Event

from segnode.dimse.exchange import Serve, answer_by_hand
from segnode.dimse.find_scp import FindDoor
from segnode.dimse.identifier import FIND_MODELS, GET_MODELS, MOVE_MODELS
from segnode.dimse.retrieve_scp import RetrieveDoor

_MODELS: Final = (*FIND_MODELS, *MOVE_MODELS, *GET_MODELS)


@dataclass(frozen=True)
class QueryDoor:
    """What associations ask of what is held."""

    find: FindDoor
    retrieve: RetrieveDoor

    def handlers(self) -> list[Any]:
        """What is bound to the events of an association."""
        return [(evt.EVT_ESTABLISHED, self._begin)]

    def _begin(self, event: Event) -> None:
        accepted = {str(context.abstract_syntax) for context in event.assoc.accepted_contexts}
        if accepted.intersection(_MODELS):
            answer_by_hand(event.assoc, self._serve())

    def _serve(self) -> Mapping[tuple[type[Any], str], Serve]:
        """What answers a kind of request of a SOP class: each model has one."""
        return {
            **{(C_FIND, model): self.find.serve for model in FIND_MODELS},
            **{(C_GET, model): self.retrieve.get for model in GET_MODELS},
            **{(C_MOVE, model): self.retrieve.move for model in MOVE_MODELS},
        }
