"""Transfer syntax UIDs and SOP Class UIDs that the code names (PS3.6 annex A), and what a valid UID is."""

from __future__ import annotations

import re

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR_LOSSLESS = "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
JPEG_2000 = "1.2.840.10008.1.2.4.91"
HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.201"
HTJ2K_LOSSLESS_RPCL = "1.2.840.10008.1.2.4.202"
HTJ2K = "1.2.840.10008.1.2.4.203"

NATIVE = frozenset(
    {
        IMPLICIT_VR_LITTLE_ENDIAN,
        EXPLICIT_VR_LITTLE_ENDIAN,
        DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
        EXPLICIT_VR_BIG_ENDIAN,
    }
)
"""Transfer syntaxes whose pixel data is native: converting between them loses nothing and needs no codec."""

UNCOMPRESSED = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
"""Transfer syntaxes to which data sets are re-encoded and decoded, the better one first: it says what VRs its elements have."""

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
VERIFICATION = "1.2.840.10008.1.1"
MODALITY_PERFORMED_PROCEDURE_STEP = "1.2.840.10008.3.1.2.3.3"
STORAGE_COMMITMENT_PUSH_MODEL = "1.2.840.10008.1.20.1"

STORAGE_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
"""The SOP Instance that every request and report of the Push Model is about (PS3.4 J.3.5)."""

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def is_uid(value: str) -> bool:
    """Return whether text is a UID: 1 to 64 digits and dots (PS3.5 9.1).

    Components with leading zeros are accepted: real files have them, and receivers accept them.
    """
    return len(value) <= 64 and _UID.fullmatch(value) is not None
