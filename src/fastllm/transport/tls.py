"""TLSConnection: the same exchange, encrypted through memory buffers instead of the loop's own TLS.

The loop's TLS copies every byte through two more protocol layers, which costs about 20 µs a request.
"""

from __future__ import annotations

import asyncio
import ssl
import time

from ..errors import APIConnectionError, APITimeoutError
from .connection import Connection, Context
from .sweep import NEVER

RECORD = 16 * 1024  # the most that one read can give (RFC 8446, 5.1)


def default_ssl_context() -> ssl.SSLContext:
    """The system's trust store, or SSL_CERT_FILE and SSL_CERT_DIR where they are set; names are checked."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class TLSConnection(Connection):
    """`handshake` comes before the first exchange."""

    __slots__ = ("_host", "_incoming", "_outgoing", "_ready", "_seconds", "_ssl")

    def __init__(
        self, context: Context, name: str, host: str, trust: ssl.SSLContext, session: ssl.SSLSession | None = None
    ) -> None:
        super().__init__(context, name)
        self._host = host
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = trust.wrap_bio(self._incoming, self._outgoing, server_hostname=host, session=session)
        self._ready: asyncio.Future[None] | None = None
        self._seconds: float | None = None

    @property
    def session(self) -> ssl.SSLSession | None:
        """What lets the next connection to this server skip the certificate; there once an answer has come."""
        return self._ssl.session

    def handshake(self, seconds: float | None) -> asyncio.Future[None]:
        """Begin; the future fails with an APIConnectionError of `sent=False`."""
        self._ready = ready = self.loop.create_future()
        self._seconds = seconds
        if seconds is not None:
            self._context.sweeper.watch(self, time.monotonic(), seconds)
        self._shake()
        return ready

    def _shake(self) -> bool:
        """Go on with the handshake; tell whether it succeeded."""
        error = None
        done = False
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLError, ssl.CertificateError) as found:
            error = found
        else:
            done = True
            self._leave_handshake(None)
        if self._outgoing.pending:  # our part, or the alert that tells the peer what we refuse
            self.transport.write(self._outgoing.read())
        if error is not None:
            self._leave_handshake(_refusal(self._host, error))
        return done

    def _leave_handshake(self, error: APIConnectionError | None) -> None:
        ready, self._ready = self._ready, None
        if error is not None:
            self.closed = True
            self.transport.close()
        self.due = NEVER
        if ready is not None and not ready.done():
            if error is None:
                ready.set_result(None)
            else:
                ready.set_exception(error)

    def expire(self) -> None:
        if self._ready is None:
            super().expire()
            return
        text = f"no TLS handshake with {self.name} within {self._seconds:g} s (tls)"
        self._leave_handshake(APITimeoutError(text, code="timeout_tls", sent=False))
        self.abort()

    def write(self, data: bytes | memoryview) -> None:
        try:
            done = self._ssl.write(data)
            if done < len(data):  # a call takes one record at most
                view = memoryview(data)
                while done < len(view):
                    done += self._ssl.write(view[done:])
        except ssl.SSLError as error:
            self._broken(error)
        else:
            self.transport.write(self._outgoing.read())

    def data_received(self, data: bytes) -> None:
        incoming, tls = self._incoming, self._ssl
        incoming.write(data)
        if self._ready is not None and not self._shake():
            return
        try:
            while True:
                plain = tls.read(RECORD)
                if not plain:
                    self._closed_properly()
                    return
                Connection.data_received(self, plain)
                # Asking once more would only cost a WantRead exception: half the price of a small answer.
                if self.closed or not (incoming.pending or tls.pending()):
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._broken(error)
        if self._outgoing.pending and not self.closed:  # the answer to a key update
            self.transport.write(self._outgoing.read())

    def _broken(self, error: ssl.SSLError) -> None:
        if self.busy:
            self.fail(APIConnectionError(f"TLS with {self.name} failed: {_reason(error)}", code="tls"))
        else:
            self.abort()

    def _closed_properly(self) -> None:
        """A close_notify came: only this proves that a body without a length is whole."""
        super().eof_received()
        self.abort()

    def eof_received(self) -> None:
        if self._ready is not None:
            self._cut_handshake(None)
        elif self.busy:
            self._cut_off(None)
        else:
            self.closed = True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ready is not None:
            self._cut_handshake(exc)
        super().connection_lost(exc)

    def _cut_handshake(self, cause: Exception | None) -> None:
        how, code = ("closed", "eof") if cause is None else ("reset", "connection_reset")
        error = APIConnectionError(f"{self.name} {how} the connection during the TLS handshake", code=code, sent=False)
        error.__cause__ = cause
        self._leave_handshake(error)

    def shutdown(self) -> None:
        try:
            self._ssl.unwrap()
        except ssl.SSLError:  # we do not wait for the peer's close_notify
            pass
        if self._outgoing.pending:
            self.transport.write(self._outgoing.read())
        super().shutdown()


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def _refusal(host: str, error: ssl.SSLError) -> APIConnectionError:
    if isinstance(error, ssl.SSLCertVerificationError):
        text = (
            f"the TLS certificate of {host} is not accepted: {error.verify_message}. "
            "If it is signed by your own CA, put that CA's PEM file into SSL_CERT_FILE"
        )
        refusal = APIConnectionError(text, code="tls_certificate", retryable=False, sent=False)
    else:
        refusal = APIConnectionError(f"no TLS with {host}: {_reason(error)}", code="tls", sent=False)
    refusal.__cause__ = error
    return refusal
