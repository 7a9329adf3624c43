"""The plug-ins that decode and encode frames: which one serves which transfer syntax, and what it gives.

They are pydicom's, each named in one table; RLE needs none. They are imported when they are used: examsend works without them, and only
conversion of pixel data needs them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import struct
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from examsend.dicom import codestream, packbits
from examsend.dicom.codestream import Stream
from examsend.dicom.pixels import Image, interleave
from examsend.dicom.recode import refusal
from examsend.dicom.uids import (
    HTJ2K,
    HTJ2K_LOSSLESS,
    HTJ2K_LOSSLESS_RPCL,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
    JPEG_LS_NEAR_LOSSLESS,
    RLE_LOSSLESS,
)


@dataclass(frozen=True, slots=True)
class _Decoder:
    """How frames of one transfer syntax are decoded."""

    plugin: str
    """pydicom's name of the plug-in."""
    modules: tuple[str, ...]
    begins: Callable[[bytes], bool]
    header: Callable[[bytes], Stream] | None
    either: bool = False
    """Frames of the syntax may be lossless or lossy."""


_GDCM = ("pydicom", "numpy", "gdcm")
_CHARLS = ("pydicom", "numpy", "jpeg_ls")
_OPENJPEG = ("pydicom", "numpy", "pylibjpeg", "openjpeg")

_JPEG = _Decoder("gdcm", _GDCM, codestream.begins_jpeg, functools.partial(codestream.jpeg, start=0xC3))
_JPEG_LS = _Decoder("pyjpegls", _CHARLS, codestream.begins_jpeg, functools.partial(codestream.jpeg, start=0xF7))
_JPEG_LS_EITHER = _Decoder("pyjpegls", _CHARLS, codestream.begins_jpeg, _JPEG_LS.header, either=True)
_J2K = _Decoder("pylibjpeg", _OPENJPEG, codestream.begins_jpeg_2000, codestream.jpeg_2000)
_J2K_EITHER = _Decoder("pylibjpeg", _OPENJPEG, codestream.begins_jpeg_2000, codestream.jpeg_2000, either=True)

_DECODERS = {
    RLE_LOSSLESS: _Decoder("", (), codestream.begins_rle, None),
    JPEG_LOSSLESS: _JPEG,
    JPEG_LOSSLESS_SV1: _JPEG,
    JPEG_LS_LOSSLESS: _JPEG_LS,
    JPEG_LS_NEAR_LOSSLESS: _JPEG_LS_EITHER,
    JPEG_2000_LOSSLESS: _J2K,
    JPEG_2000: _J2K_EITHER,
    HTJ2K_LOSSLESS: _J2K,
    HTJ2K_LOSSLESS_RPCL: _J2K,
    HTJ2K: _J2K_EITHER,
}

DECODED = frozenset(_DECODERS)
"""Transfer syntaxes whose pixel data can be decoded, if it is lossless."""

MAY_BE_LOSSY = frozenset(syntax for syntax, decoder in _DECODERS.items() if decoder.either)
"""Those whose files are lossless or lossy: JPEG-LS near-lossless, JPEG 2000 and HTJ2K (PS3.5 A.4.3, A.4.4)."""

_ENCODERS = {
    RLE_LOSSLESS: ("", ()),
    JPEG_LS_LOSSLESS: ("pyjpegls", _CHARLS),
    JPEG_2000_LOSSLESS: ("pylibjpeg", _OPENJPEG),
}
"""Plug-in and its modules, by transfer syntax."""

ENCODED = frozenset(_ENCODERS)
"""Transfer syntaxes to which pixel data can be encoded."""


MODULES = tuple(dict.fromkeys(module for decoder in (_J2K, _JPEG_LS, _JPEG) for module in decoder.modules))
"""What all decoders and encoders import."""


def absent(modules: Iterable[str]) -> list[str]:
    """Return those of some modules that are not installed."""
    return [module for module in modules if importlib.util.find_spec(module) is None]


def missing(syntax: str, *, encoder: bool = False) -> str | None:
    """Return a sentence if the plug-in for a transfer syntax is not installed, None if it is or if none is needed."""
    modules: tuple[str, ...] = ()
    if encoder and syntax in _ENCODERS:
        modules = _ENCODERS[syntax][1]
    elif not encoder and syntax in _DECODERS:
        modules = _DECODERS[syntax].modules
    lacking = absent(modules)
    if not lacking:
        return None
    what = "encode" if encoder else "decode"
    return (
        f"{' and '.join(lacking)} is not installed and is needed to {what} {syntax}: pip install 'examsend[transcode]'"
    )


def begins(syntax: str) -> Callable[[bytes], bool]:
    """Return the function that says whether a fragment is the beginning of a frame."""
    return _DECODERS[syntax].begins


def decode(frame: bytes, syntax: str, image: Image) -> bytes | bytearray:
    """Given an encoded frame, return it in native form: little endian, pixel by pixel, in the image's Bits Allocated.

    Raises Unacceptable where the frame is lossy, does not fit the image, or cannot be decoded.
    """
    decoder = _DECODERS[syntax]
    if decoder.header is None:
        if image.photometric in {"YBR_RCT", "YBR_ICT"}:
            raise refusal(f"its Photometric Interpretation is {image.photometric}, and RLE has no colour transform")
        pixels = packbits.decode(frame, image)
        return interleave(pixels, image.samples, image.sample_bytes) if image.samples > 1 else pixels
    if decoder.begins is codestream.begins_jpeg_2000:
        frame = codestream.bare(frame)
    stream = decoder.header(frame)
    _check(stream, image, either=decoder.either)
    samples = image.rows * image.columns * image.samples
    held = _container(stream.precision)
    decoded, planar = _decoded(frame, syntax, decoder.plugin, image, stream, held)
    if len(decoded) != samples * held:
        raise refusal(f"a frame decodes to {len(decoded)} bytes, and its geometry needs {samples * held}")
    if planar and image.samples > 1:
        decoded = interleave(decoded, image.samples, held)
    return _fitted(decoded, held, stream, image)


def _container(precision: int) -> int:
    """Return the bytes of a decoded sample of so many bits."""
    return 1 if precision <= 8 else 2 if precision <= 16 else 4


def _check(stream: Stream, image: Image, *, either: bool) -> None:
    """Raise Unacceptable unless an encoded frame is lossless and is what the data set says it is."""
    if not stream.reversible:
        raise refusal("its pixel data is encoded with loss")
    if either and image.lossy:
        raise refusal("its pixel data has been compressed with loss (Lossy Image Compression is 01)")
    said = (image.rows, image.columns, image.samples)
    if (stream.rows, stream.columns, stream.samples) != said:
        raise refusal(
            f"a frame has {stream.rows} rows, {stream.columns} columns and {stream.samples} components, and the data set"
            f" says {said[0]}, {said[1]} and {said[2]}"
        )
    if stream.precision > image.allocated:
        raise refusal(f"a frame has samples of {stream.precision} bits, and Bits Allocated is {image.allocated}")
    # RGB with the transform is a common mistake with one meaning: the decoder gives RGB.
    agreed = (
        image.photometric in {"YBR_RCT", "RGB"} if stream.transform else image.photometric not in {"YBR_RCT", "YBR_ICT"}
    )
    if not agreed:
        raise refusal(
            f"its Photometric Interpretation is {image.photometric}, and its frames are"
            f" {'transformed' if stream.transform else 'not transformed'}: what colours they have is not certain"
        )


def _decoded(
    frame: bytes, syntax: str, plugin: str, image: Image, stream: Stream, held: int
) -> tuple[bytes | bytearray, bool]:
    """Return a frame as a plug-in gives it, with samples of ``held`` bytes, and whether it is plane by plane.

    The plug-in is told what the stream says, not what the data set says: they may differ in precision and sign.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    _quiet()
    one = struct.pack("<HHLHHL", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE000, len(frame)) + frame
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels, said = get_decoder(UID(syntax)).as_buffer(
                one,
                index=0,
                raw=True,
                decoding_plugin=plugin,
                transfer_syntax_uid=UID(syntax),
                rows=image.rows,
                columns=image.columns,
                samples_per_pixel=image.samples,
                number_of_frames=1,
                bits_allocated=8 * held,
                bits_stored=stream.precision,
                photometric_interpretation=image.photometric,
                pixel_representation=int(stream.signed),
                planar_configuration=0,
                pixel_keyword="PixelData",
            )
        except Exception as error:  # noqa: BLE001 - a plug-in raises whatever its library does about a hostile frame
            raise refusal(f"a frame cannot be decoded: {_first_line(error)}") from None
    return bytes(pixels) if isinstance(pixels, memoryview) else pixels, said.get("planar_configuration") == 1


def _first_line(error: Exception) -> str:
    """Return the last line of what a library says: pydicom's first one says only that a plug-in failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else type(error).__name__
    return "".join(filter(str.isprintable, said))[:200]


@functools.cache
def _quiet() -> None:
    """Keep GDCM, where it is installed, from writing to standard error."""
    if importlib.util.find_spec("gdcm") is not None:
        trace = importlib.import_module("gdcm").Trace
        for switch in ("WarningOff", "ErrorOff", "DebugOff"):
            getattr(trace, switch)()


def _fitted(pixels: bytes | bytearray, held: int, stream: Stream, image: Image) -> bytes | bytearray:
    """Given decoded samples of ``held`` bytes, return them in the image's Bits Allocated, with the sign extended.

    JPEG and JPEG-LS streams have no sign, and JPEG 2000 ones of some writers have none either: the sign is then the highest
    of the stream's bits (PS3.5 8.1.1, 8.2).
    """
    wanted = image.sample_bytes
    if stream.signed and not image.signed:
        import numpy as np

        if np.frombuffer(pixels, f"<i{held}").min() < 0:
            raise refusal("a frame has negative samples, and Pixel Representation says there are none")
    extend = image.signed and not stream.signed and stream.precision < image.allocated
    if held == wanted and not extend:
        return pixels
    import numpy as np

    samples = np.frombuffer(pixels, f"<{'i' if stream.signed else 'u'}{held}")
    if extend and stream.precision < image.high_bit + 1:
        raise refusal(
            f"a frame has samples of {stream.precision} bits without a sign, and Bits Stored is {image.stored}"
        )
    if wanted == 3:
        raise refusal("Bits Allocated is 24, and only RLE can be converted with it")
    samples = samples.astype(f"<i{wanted}")
    if extend:
        shift = image.allocated - stream.precision
        samples = (samples << shift) >> shift
    return samples.tobytes()


def encode(frame: bytes, syntax: str, image: Image) -> bytes:
    """Given a native frame, little endian and pixel by pixel, return it encoded. It is decoded again and compared.

    Raises Unacceptable where the image cannot be encoded without loss.
    """
    if syntax != RLE_LOSSLESS and image.allocated not in {8, 16}:
        raise refusal(f"its Bits Allocated are {image.allocated}, and only 8 and 16 are encoded")
    encoded = _encoded(frame, syntax, image)
    if decode(encoded, syntax, image) != frame:
        raise refusal("its samples are not the same after encoding: bits above High Bit are used, or the encoder fails")
    return encoded + b"\0" * (len(encoded) % 2)


def _encoded(frame: bytes, syntax: str, image: Image) -> bytes:
    if syntax == RLE_LOSSLESS:
        return packbits.encode(frame, image)
    from pydicom.pixels.encoders.base import get_encoder
    from pydicom.uid import UID

    _quiet()
    # Codestreams have no bits above the highest one, and this plug-in takes the given bytes for samples of that many bits.
    masked = _masked(frame, image) if syntax == JPEG_LS_LOSSLESS and image.signed else frame
    options: dict[str, Any] = {"encoding_plugin": _ENCODERS[syntax][0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return bytes(
                get_encoder(UID(syntax)).encode(
                    masked,
                    index=0,
                    transfer_syntax_uid=UID(syntax),
                    rows=image.rows,
                    columns=image.columns,
                    samples_per_pixel=image.samples,
                    number_of_frames=1,
                    bits_allocated=image.allocated,
                    bits_stored=image.high_bit + 1,
                    photometric_interpretation=image.photometric,
                    pixel_representation=int(image.signed),
                    planar_configuration=0,
                    **options,
                )
            )
        except Exception as error:  # noqa: BLE001 - a plug-in raises whatever its library does
            raise refusal(f"a frame cannot be encoded: {_first_line(error)}") from None


def _masked(frame: bytes, image: Image) -> bytes:
    """Return a frame without the bits above High Bit."""
    import numpy as np

    kind = f"<u{image.sample_bytes}"
    masked = np.frombuffer(frame, kind) & np.array((1 << (image.high_bit + 1)) - 1, kind)
    return bytes(masked.tobytes())
