"""Certificates for tests of TLS: self-signed, made on the spot, for one host."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile
from pathlib import Path

from ..errors import MissingExtra

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
except ImportError:
    x509 = None  # type: ignore[assignment]


def self_signed(host: str = "127.0.0.1", *, days: int = 1) -> tuple[ssl.SSLContext, str]:
    """Give a server's context, and the certificate as PEM text for a client to trust.

    `days` may be negative: a certificate that expired. Example:

        context, pem = self_signed("127.0.0.1")
        async with MockServer(ssl_context=context) as server:
            client_context = ssl.create_default_context(cadata=pem)
    """
    pem, key = certificate(host, days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory(prefix="fastllm-tls-") as folder:  # ssl reads keys only from files
        path = Path(folder) / "server.pem"
        path.touch(mode=0o600)
        path.write_bytes(key + pem)
        context.load_cert_chain(path)
    return context, pem.decode()


def certificate(host: str, days: int = 1) -> tuple[bytes, bytes]:
    """Give a certificate that signs itself, and its key, both in PEM."""
    if x509 is None:
        raise MissingExtra("certificates need the package cryptography: pip install 'fastllm[test]'")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fastllm test")])
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - datetime.timedelta(days=1))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([_alternative(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM), private


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
