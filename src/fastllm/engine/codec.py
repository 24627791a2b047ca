"""The engine's one door to Providers: what their code raises that is none of FastLLM's errors becomes one, so that it
ends its request and never a whole job. A Provider may be anybody's.

The messages name the provider and the exception's class; what the exception says may hold a prompt, and stays its own.
"""

from __future__ import annotations

from ..errors import FastLLMError, InvalidRequestError, ProtocolError
from ..providers.base import Decoder
from ..types import Chunk, HTTPRequest, HTTPResponse, Request, Response
from .endpoint import Endpoint


def encoded(endpoint: Endpoint, request: Request) -> tuple[Request, HTTPRequest]:
    """Give a request as the endpoint takes it, and as bytes. InvalidRequestError where that fails."""
    try:
        sent = endpoint.adapted(request)
        return sent, endpoint.provider.encode(sent, endpoint.target)
    except FastLLMError:
        raise
    except Exception as error:  # foreign code
        text = f"the request cannot be written for {endpoint.provider.name}: its code raised {_name(error)}"
        raise InvalidRequestError(text, code="provider_failed", sent=False) from error


def decoded(endpoint: Endpoint, request: Request, answer: HTTPResponse) -> Response:
    """Read a whole answer. ProtocolError where that fails."""
    try:
        return endpoint.provider.decode(request, answer)
    except FastLLMError:
        raise
    except Exception as error:  # foreign code
        raise _unreadable(endpoint.provider.name, error, answer.status) from error


def begun(endpoint: Endpoint, request: Request) -> Decoder:
    """Give a decoder for one stream. ProtocolError where that fails."""
    try:
        return endpoint.provider.decoder(request)
    except FastLLMError:
        raise
    except Exception as error:  # foreign code
        raise _unreadable(endpoint.provider.name, error) from error


def replayed(endpoint: Endpoint, request: Request, hit: Response) -> list[Chunk]:
    """Give the chunks of an answer from the cache. ProtocolError where that fails."""
    try:
        return endpoint.provider.replay(hit, request)
    except FastLLMError:
        raise
    except Exception as error:  # foreign code
        raise _unreadable(endpoint.provider.name, error) from error


def fed(decoder: Decoder, data: bytes | None, name: str) -> list[Chunk]:
    """Give the chunks that these bytes of a stream complete, or (None) its end. ProtocolError where that fails."""
    try:
        return decoder.finish() if data is None else decoder.feed(data)
    except FastLLMError:
        raise
    except Exception as error:  # foreign code
        raise _unreadable(name, error) from error


def so_far(decoder: Decoder, name: str) -> Response:
    """Give what a stream has come to. ProtocolError where that fails."""
    try:
        return decoder.response()
    except FastLLMError:
        raise
    except Exception as error:  # foreign code
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception, status: int = 200) -> ProtocolError:
    text = f"the answer cannot be read: the code of {name} raised {_name(error)}"
    return ProtocolError(text, status_code=status, code="provider_failed")


def _name(error: Exception) -> str:
    return type(error).__name__
