"""A self-signed certificate to try TLS with (extra ``tls-tools``)."""

import datetime
import ipaddress
import os
from pathlib import Path

from pyproxy.errors import PyproxyError

_DAYS = 365


class CertificateError(PyproxyError):
    """It can't be made; the text says why, and a remedy."""


def make_certificate(names: list[str], certificate: Path, key: Path) -> None:
    """Writes a certificate for ``names`` (hosts or addresses) and its key, both in PEM; the key is
    readable by its owner only. Raises ``CertificateError``, also where a file exists already."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise CertificateError(
            "this needs the package cryptography: pip install 'pyproxy-lb[tls-tools]'"
        ) from None
    made = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0][:64])])
    now = datetime.datetime.now(datetime.UTC)
    try:
        alternatives = x509.SubjectAlternativeName(
            [
                x509.IPAddress(ipaddress.ip_address(name))
                if _is_address(name)
                else x509.DNSName(name)
                for name in names
            ]
        )
        signed = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(made.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=_DAYS))
            .add_extension(alternatives, False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
            .sign(made, hashes.SHA256())
        )
    except ValueError as error:
        raise CertificateError(f"{', '.join(names)}: {error}") from None
    private = made.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(key, private, 0o600)
    _write(certificate, signed.public_bytes(serialization.Encoding.PEM), 0o644)


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _write(path: Path, data: bytes, mode: int) -> None:
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
    except FileExistsError:
        raise CertificateError(f"{path}: it exists already, and is not overwritten") from None
    except OSError as error:
        raise CertificateError(f"{path}: {(error.strerror or str(error)).lower()}") from None
