"""What one request wants of the cache, and where its answer lies there."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..cache.base import Cache
from ..types import Request, Response
from .endpoint import Endpoint
from .router import Tier, address

Place = Endpoint | Tier
NOWHERE: Mapping[Place, tuple[bytes, bytes]] = MappingProxyType({})


def reads(request: Request) -> bool:
    """Tell whether an answer that is kept, or that another request is getting, will do."""
    return request.cache is None or request.cache.read


async def kept(cache: Cache, request: Request, place: Place) -> Response | None:
    """Give the answer that is kept of that place, if it is young enough."""
    text, key = address(request, place)
    return await look_up(cache, request, text, key)


async def look_up(cache: Cache, request: Request, text: bytes, key: bytes) -> Response | None:
    """Give the answer that is kept under this key, if it is young enough."""
    control = request.cache
    if control is None or control.max_age is None:
        return await cache.get(key, text)
    return await cache.get(key, text, control.max_age)


async def keep(
    cache: Cache,
    request: Request,
    place: Place,
    response: Response,
    known: Mapping[Place, tuple[bytes, bytes]] = NOWHERE,
) -> None:
    """Keep an answer that the place gave just now, unless the request does not want that; `known` are addresses."""
    if not response.cached and (request.cache is None or request.cache.write):
        text, key = known.get(place) or address(request, place)
        await cache.put(key, text, response)
