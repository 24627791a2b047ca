"""Router: from a model's name to its endpoint, or to the tiers of endpoints that a route has behind one name."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from types import MappingProxyType

import msgspec

from ..options import Choice, Route, Upstream
from ..policy.fingerprint import canonical, fingerprint
from ..types import Request
from .endpoint import Endpoint
from .limiter import Limiter

INF = float("inf")
COOL = 15.0  # seconds for which an endpoint that does not answer is left alone while others do
ALIKE = 1024  # bytes: messages that begin with as many equal ones profit from one prompt cache
LOCAL = "local/"  # a model of this process is started when it is needed, not before
NO_ROUTES: Mapping[str, Route] = MappingProxyType({})

Place = tuple[str, str, str, bytes]
Resolve = Callable[[str], Awaitable[Endpoint]]
Find = Callable[[Upstream], Awaitable[Endpoint]]


class _Marks(msgspec.Struct):
    """What of a body tells that it has much in common with others."""

    prompt_cache_key: str | None = None
    user: str | None = None
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


_marks = msgspec.json.Decoder(_Marks)


class Member:
    """One endpoint of a tier. `due` is how many turns it is behind, `probe_at` when it may be probed."""

    __slots__ = ("due", "endpoint", "probe_at", "weight")

    def __init__(self, endpoint: Endpoint, weight: float) -> None:
        self.endpoint = endpoint
        self.weight = weight
        self.due = 0.0
        self.probe_at = -INF

    def __repr__(self) -> str:
        return f"<Member {self.endpoint.name} x{self.weight:g}>"


class Tier:
    """Endpoints of which any will do. Answers are kept for all of them together: `model` and `scope` say whose."""

    def __init__(self, name: str, members: list[Member], choose: Choice, *, sticky: bool) -> None:
        self.members = members
        self._choose = choose
        self._sticky = sticky
        places = sorted({(m.endpoint.scope, m.endpoint.target.model) for m in members})
        if len(places) == 1:
            ((self.scope, self.model),) = places
        else:
            parts = [scope + model.encode() for scope, model in places]
            self.scope, self.model = hashlib.sha256(b"\0".join(parts)).digest()[:16], name

    def pick(self, request: Request, but: Collection[Endpoint] = ()) -> tuple[Endpoint | None, float]:
        """Choose one for this request, and say for how many seconds it will probably have to wait there.

        None where all of them are among `but`. What does not answer is left alone but for a probe every COOL seconds.
        """
        found: list[tuple[float, Member]] = []
        resting: list[tuple[float, Member]] = []
        for member in self.members:
            endpoint = member.endpoint
            if endpoint in but:
                continue
            limiter = endpoint.limiter
            wait = limiter.outlook(endpoint.estimator.estimate(request), request.priority)
            rests = limiter.breaker.opened and limiter.now < member.probe_at
            (resting if rests else found).append((wait, member))
        candidates = found or resting
        if not candidates:
            return None, INF
        ready = [member for wait, member in candidates if not wait]
        if self._sticky:
            member = max(ready or [member for _, member in candidates], key=_affinity(request))
        elif ready:
            member = self._turn(ready)
        else:
            member = min(candidates, key=lambda found: found[0])[1]
        limiter = member.endpoint.limiter
        if limiter.breaker.opened:
            member.probe_at = limiter.now + COOL
        return member.endpoint, next(wait for wait, found in candidates if found is member)

    def _turn(self, ready: list[Member]) -> Member:
        """Choose among those that can take it at once."""
        if len(ready) == 1:
            return ready[0]
        if self._choose == "least_loaded":
            return min(ready, key=lambda m: m.endpoint.limiter.in_flight / m.endpoint.limiter.concurrency)
        # Smooth weighted round robin: everybody gains its weight, the one that is furthest behind pays for all.
        for member in ready:
            member.due += member.weight
        chosen = max(ready, key=lambda m: m.due)
        chosen.due -= sum(member.weight for member in ready)
        return chosen

    def __repr__(self) -> str:
        return f"<Tier {', '.join(m.endpoint.name for m in self.members)}>"


def _affinity(request: Request) -> Callable[[Member], float]:
    """Give how near a member is to a request, the same for all that begin alike: weighted rendezvous hashing."""
    try:
        marks = _marks.decode(request.body)
        rest = bytes(marks.messages) or bytes(marks.input) or bytes(marks.prompt)
        mark = (marks.prompt_cache_key or marks.user or "").encode() or rest[:ALIKE]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        mark = b""

    def near(member: Member) -> float:
        digest = hashlib.blake2b(mark + b"\0" + member.endpoint.name.encode(), digest_size=8).digest()
        return -member.weight / math.log((int.from_bytes(digest, "big") + 1) / (2**64 + 1))

    return near


class Tiers:
    """A route at work: its tiers, of which those of fallbacks have one endpoint each."""

    def __init__(self, name: str, route: Route, find: Find) -> None:
        self.name = name
        self.route = route
        self._find = find
        self._upstreams = route.tiers
        self._tiers: list[Tier | None] = [None] * len(self._upstreams)

    def __len__(self) -> int:
        return len(self._tiers)

    async def tier(self, index: int) -> Tier:
        """Give a tier, whose endpoints are made when it is first asked for."""
        found = self._tiers[index]
        if found is None:
            wanted = self._upstreams[index]
            ends = await asyncio.gather(*map(self._find, wanted))
            members: dict[Endpoint, Member] = {}
            for endpoint, upstream in zip(ends, wanted, strict=True):
                members.setdefault(endpoint, Member(endpoint, 0.0)).weight += upstream.weight
            made = Tier(self.name, list(members.values()), self.route.choose, sticky=self.route.sticky)
            found = self._tiers[index] = self._tiers[index] or made
        return found

    def shortest_queue(self) -> Limiter | None:
        """Give the limiter of the first tier at which the fewest wait; None before it was asked for."""
        first = self._tiers[0]
        limiters = [member.endpoint.limiter for member in first.members] if first is not None else []
        return min(limiters, key=lambda limiter: limiter.waiting, default=None)

    @property
    def known(self) -> list[Endpoint]:
        """The endpoints of all tiers that were made so far, the first tier's first."""
        return [member.endpoint for tier in self._tiers if tier is not None for member in tier.members]

    async def begin(self) -> Tier:
        """Give the first tier. What is wrong with the fallbacks is said now, not in their hour of need."""
        for index, (upstream, *_) in enumerate(self._upstreams):
            if index and not upstream.model.startswith(LOCAL):
                await self.tier(index)
        return await self.tier(0)

    def __repr__(self) -> str:
        return f"<Tiers {self.name}: {self._tiers}>"


class Router:
    """Knows the endpoint of every model asked for so far; `resolve` makes a new one (and may start a model).

    Spellings of one model (`gpt-4o`, `openai/gpt-4o`, `openai:gpt-4o`) that lead to the same place have one endpoint,
    the first, because a limit belongs to the place and not to how it is called. The names of `routes` lead to several;
    `find` makes those. With `before`, it goes on with what another router knows: endpoints that it would make alike,
    with the limits that were learnt and what was used of them, and models of this process that run.
    """

    def __init__(
        self,
        resolve: Resolve,
        routes: Mapping[str, Route] = NO_ROUTES,
        find: Find | None = None,
        before: Router | None = None,
    ) -> None:
        self._resolve = resolve
        self.known: dict[str, Endpoint] = {}  # by their models; a route's name is none of them
        self._by_place: dict[Place, Endpoint] = {}
        self._before: dict[Place, Endpoint] = {}
        if before is not None:
            self._before = {**before._before, **before._by_place}
            self.known = {name: found for name, found in before.known.items() if name.startswith(LOCAL)}
        self._resolving: dict[str, asyncio.Future[Endpoint]] = {}
        self._routes: dict[str, Tiers] = {}
        if find is not None:
            self._find_upstream = find
            self._routes = {name: Tiers(name, route, self._member) for name, route in routes.items()}

    def pick(self, model: str) -> Endpoint | None:
        """Give the model's endpoint if it is known; otherwise await `resolve`. A route's name has none of its own."""
        return self.known.get(model)

    def route(self, model: str) -> Tiers | None:
        """Give the route of that name."""
        return self._routes.get(model)

    async def resolve(self, model: str) -> Endpoint:
        """Make the endpoint for a model, once however many ask for it together. Raises ConfigError."""
        under_way = self._resolving.get(model)
        if under_way is None:
            under_way = asyncio.ensure_future(self._find(model))
            self._resolving[model] = under_way
            under_way.add_done_callback(lambda future: self._resolved(model, future))
        # Shielded: one caller that goes away must not take the start of a model from the others.
        return await asyncio.shield(under_way)

    async def _find(self, model: str) -> Endpoint:
        return self._placed(await self._resolve(model))

    async def _member(self, upstream: Upstream) -> Endpoint:
        if upstream == Upstream(model=upstream.model, weight=upstream.weight):
            return self.known.get(upstream.model) or await self.resolve(upstream.model)
        return self._placed(await self._find_upstream(upstream))

    def _placed(self, made: Endpoint) -> Endpoint:
        target = made.target
        place = (made.provider.name, target.base_url, target.model, target.headers.encoded)
        old = self._before.get(place)
        if old is not None and old.is_like(made):
            made = old
        return self._by_place.setdefault(place, made)

    def shortest_queue(self, model: str) -> Limiter | None:
        """Give the limiter in whose queue a request for this model would wait; None where that is not known yet."""
        endpoint = self.known.get(model)
        if endpoint is not None:
            return endpoint.limiter
        tiers = self._routes.get(model)
        return None if tiers is None else tiers.shortest_queue()

    def _resolved(self, model: str, future: asyncio.Future[Endpoint]) -> None:
        del self._resolving[model]
        if not future.cancelled() and future.exception() is None and model not in self._routes:
            self.known[model] = future.result()

    @property
    def endpoints(self) -> list[Endpoint]:
        """Each endpoint once, in the order in which they were made."""
        return list(self._by_place.values())

    def __repr__(self) -> str:
        return f"<Router {', '.join(e.name for e in self.endpoints) or 'no endpoint yet'}>"


def address(request: Request, place: Endpoint | Tier) -> tuple[bytes, bytes]:
    """Give the canonical request and the key under which the answer of that place is kept."""
    text = canonical(request, place.model)
    return text, fingerprint(text) + place.scope
