"""What the node serves (PS3.18 8.9): OPTIONS says it, and a method that is not served is answered 405."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send


def other_methods(routes: Sequence[Route]) -> list[Route]:
    """Routes to go behind others, with the same paths: they answer the methods that those do not."""
    methods: dict[str, set[str]] = defaultdict(set, {"/": set()})
    for route in routes:
        methods[route.path] |= route.methods or set()
    allowed = {path: sorted(found | {"OPTIONS"}) for path, found in methods.items()}
    return [Route(path, _Other(path, allowed)) for path in allowed]


@dataclass(frozen=True)
class _Other:
    """Answers for one path, of all that are served with their methods."""

    path: str
    allowed: Mapping[str, Sequence[str]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        headers = {"Allow": ", ".join(self.allowed[self.path])}
        if request.method != "OPTIONS":
            raise HTTPException(405, "that method is not served here; Allow says which are", headers)
        await JSONResponse(self._capabilities(request), headers=headers)(scope, receive, send)

    def _capabilities(self, request: Request) -> dict[str, Any]:
        """Every resource at the root, and the one that is asked elsewhere; as the WADL of PS3.18 H names things."""
        base = f"{request.url.scheme}://{request.url.netloc}{request.scope['root_path']}/"
        paths = sorted(self.allowed) if self.path == "/" else [self.path]
        resources = [{"@path": path[1:], "method": [{"@name": name} for name in self.allowed[path]]} for path in paths]
        return {"application": {"resources": {"@base": base, "resource": resources}}}
