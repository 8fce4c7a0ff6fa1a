"""Repairs JPEGs that the strict decoder refuses although they lost no pixel."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import simplejpeg

from glci_dist.data.jpeg import Jpeg, cleaned, ends_whole
from glci_dist.data.pixels import DecodeError, Pixels, check_size, raise_if_out_of_memory, reason_of

_REST = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_DAMAGE = re.compile("corrupt JPEG data|premature end", re.IGNORECASE)
"""libjpeg's warnings of lost data; Pillow would show grey in their place."""

_Verdict = int | str | None
"""Of a refused JPEG: how many bytes of its last scan are data; or why it is damaged; or None, if neither is known."""

_MOST_KNOWN = 1 << 16
# A cache by the photo's digest: finding a verdict takes up to ten times as long as decoding an intact photo. It depends
# on the bytes alone, so the cache changes no result.
_known: dict[bytes, tuple[_Verdict]] = {}


def repaired(encoded: bytes, error: Exception) -> bytes | None:
    """A version of ``encoded`` that the strict decoder accepts; it refused ``encoded`` itself with ``error``.

    None if another decoder may support the format; DecodeError if data of the picture are lost.
    """
    digest = hashlib.sha256(encoded).digest()
    jpeg = cleaned(encoded)
    known = _known.get(digest)
    if known is None:
        known = (_verdict(encoded, jpeg, reason_of(error)),)
        if len(_known) >= _MOST_KNOWN:  # cleared as a whole, as verify's threads share it
            _known.clear()
        _known[digest] = known
    (verdict,) = known
    if isinstance(verdict, str):
        raise DecodeError(verdict) from error
    if verdict is None or jpeg is None:
        return None
    return Jpeg(jpeg.head, jpeg.scan[:verdict], jpeg.huffman, jpeg.ended).encoded


def _verdict(encoded: bytes, jpeg: Jpeg | None, reason: str) -> _Verdict:
    # A JPEG that is unchanged by cleaning was already refused.
    found = reason if jpeg is None or jpeg.encoded == encoded else _warning(jpeg.encoded)
    rest = _REST.search(found) if found else None
    if jpeg is None or (found and not rest):
        return reason if found and _DAMAGE.search(found) else None
    if not rest and jpeg.ended:
        return len(jpeg.scan)
    whole = ends_whole(jpeg, left_over=int(rest[1]) if rest else 0, warning=_warning, decode=_strict)
    return reason if whole is None else len(whole.scan)


def _warning(encoded: bytes) -> str | None:
    """Why the strict decoder refuses a JPEG; None if it does not. It decodes the smallest size: libjpeg's warnings are
    the same, in a third of the time."""
    found = _strict(encoded, least=1)
    return found if isinstance(found, str) else None


def _strict(encoded: bytes, least: int = 0) -> Pixels | str:
    """The pixels of a JPEG without a warning, its sides at least ``least`` px (0: whole), or the warning."""
    try:
        check_size(*simplejpeg.decode_jpeg_header(encoded)[:2])
        return np.asarray(simplejpeg.decode_jpeg(encoded, min_height=least, min_width=least), dtype=np.uint8)
    except DecodeError:
        raise
    except Exception as error:  # as in ``decode``
        raise_if_out_of_memory(error)
        return reason_of(error)
