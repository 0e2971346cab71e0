"""TLS with certificates on both sides (PS3.15 B.9 leaves the rest to BCP 195): 1.2 or later, one authority."""

import ssl

from lfmri_runtime.console.settings import DicomSettings
from lfmri_runtime.errors import UsageError


def contexts(settings: DicomSettings) -> tuple[ssl.SSLContext, ssl.SSLContext] | None:
    """How we answer and how we call; None without certificates.

    Who calls us must show a certificate that the authority has signed; so must who is called, and it must name the
    address that we called.

    Raises:
        UsageError: a file that is missing or does not fit the others.
    """
    if not settings.certificate:
        return None
    try:
        return _context(settings, ssl.PROTOCOL_TLS_SERVER), _context(settings, ssl.PROTOCOL_TLS_CLIENT)
    except (OSError, ValueError) as error:  # ssl's errors are both
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(
            f"TLS: {reason}; expected PEM files that belong together in dicom.certificate, key and authority"
        ) from None


def _context(settings: DicomSettings, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.certificate, settings.key, password="")
    context.load_verify_locations(settings.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context
