"""The keyed draw of the wildcard language: a draw depends on the seed and on where it stands, on nothing else.

No state, no clock, no `hash()`, no global generator: pure integer arithmetic modulo 2^64 (splitmix64 over BLAKE2b
keys), so that every machine, Python and process gives the same numbers.
"""

from __future__ import annotations

import functools
import hashlib

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
_WIDE = 1 << 32
_CHUNK_DIGITS = 4000
_CHUNK = 10**_CHUNK_DIGITS


def mix(value: int) -> int:
    """Return the splitmix64 output for the state ``value`` (Steele, Lea, Flood 2014)."""
    value = (value + GOLDEN) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def _hashed(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def fresh_text_key(text: str) -> int:
    """Return the first 8 bytes, little endian, of BLAKE2b with ``digest_size=8`` over the UTF-8 of ``text``."""
    return _hashed(text.encode("utf-8", "surrogatepass"))


text_key = functools.lru_cache(maxsize=1 << 16)(fresh_text_key)


@functools.lru_cache(maxsize=64)
def _part_key(part: str) -> int:
    return text_key(f"luna:{part}")


def frame_key(part: str, seed: int) -> int:
    """Return F of a template part: ``""`` is the main text, else the part's name."""
    return mix(_part_key(part) ^ _seed_key(seed))


def site_key(frame: int, text: str, occurrence: int) -> int:
    """Return K of the construct ``text``, the ``occurrence``-th of that text in its frame."""
    return mix(frame ^ ((text_key(text) + occurrence) & MASK))


def child_key(site: int, chosen: str, occurrence: int = 0) -> int:
    """Return F of the text chosen at a site, the ``occurrence``-th of equal texts chosen there."""
    return (site + text_key(chosen) + occurrence) & MASK


def reroll_key(site: int, times: int) -> int:
    """Return K of a site rerolled ``times`` times (0 changes nothing)."""
    return mix(site ^ text_key(f"reroll:{times}")) if times else site


def stream(site: int, position: int) -> int:
    """Return R(position), the 64-bit number at that position of the site's stream."""
    return mix((site + position * GOLDEN) & MASK) if position else site


def below(site: int, bound: int, position: int = 0) -> int:
    """Return an even draw from ``range(bound)``; bounds beyond 2^32 use 128 bits."""
    if bound <= _WIDE:
        return (stream(site, position) * bound) >> 64
    wide = (stream(site, position) << 64) | stream(site, position + _WIDE)
    return (wide * bound) >> 128


def batch_seed(seed: int, index: int) -> int:
    """Return ``seeds[index]`` of a batch: the seed itself, then 53-bit numbers that JSON keeps exactly."""
    if index == 0:
        return seed
    return mix((_seed_key(seed) + index * GOLDEN) & MASK) >> 11


def _seed_key(seed: int) -> int:
    # A seed comes once; keeping it would only push texts out.
    return _hashed(b"seed:%d" % seed if -MASK < seed < MASK else b"seed:" + decimal(seed).encode())


def decimal(number: int) -> str:
    """Return the decimal digits of an integer of any length.

    Python refuses `str` beyond 4,300 digits; such seeds are written in chunks.
    """
    if number.bit_length() < 4000:
        return str(number)
    sign, number = ("-", -number) if number < 0 else ("", number)
    chunks: list[str] = []
    while number:
        number, rest = divmod(number, _CHUNK)
        chunks.append(str(rest).zfill(_CHUNK_DIGITS))
    return sign + "".join(reversed(chunks)).lstrip("0")
