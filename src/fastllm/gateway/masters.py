"""Masters: what is mounted for the master key alone, because it tells of all keys."""

from __future__ import annotations

from .auth import Tenant
from .exchange import ASGI, Receive, Scope, Send
from .faces import Refusal


class MastersOnly:
    """Serves an app to the master key, and to everybody where there are no keys."""

    def __init__(self, app: ASGI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tenant: Tenant = scope["fastllm.tenant"]
        if not tenant.is_master:
            raise Refusal(403, "this tells of all keys: it wants the master key", code="master_key_needed")
        await self._app(scope, receive, send)

    def __repr__(self) -> str:
        return f"<MastersOnly {self._app!r}>"
