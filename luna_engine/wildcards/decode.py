"""Bytes of a wildcard file to text: UTF-8 first, never a guess that turns good characters into wrong ones."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from luna_engine.wildcards.diagnostics import Diagnostic, Severity

_HANDLER = "luna-windows-1252"
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Decoded:
    """The text of a file and what had to be done to get it."""

    text: str
    diagnostics: tuple[Diagnostic, ...] = ()


def decode(data: bytes, file: str) -> Decoded:
    """Decode a file: BOM removed, UTF-16 with a BOM read, a stray byte read by itself as Windows-1252."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decode_utf16(data, file)
    data = data.removeprefix(codecs.BOM_UTF8)
    found: list[Diagnostic] = []
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        byte = data[error.start]
        text = data.decode("utf-8", _HANDLER)
        message = f"byte 0x{byte:02X} is not valid UTF-8 and was read as Windows-1252"
        found.append(_encoding(message, "save the file as UTF-8", file, before))
    if "\0" in text:
        found.append(
            _encoding(
                "the file holds NUL characters, which were removed",
                "is this a text file?",
                file,
                text[: text.index("\0")],
            )
        )
        text = text.replace("\0", "")
    return Decoded(text, tuple(found))


def to_utf8(data: bytes, file: str) -> tuple[bytes, tuple[Diagnostic, ...]]:
    """Return what `decode` gives, but as UTF-8; a file that is clean already costs no copy."""
    clean = data.removeprefix(codecs.BOM_UTF8)
    if b"\0" not in clean and (clean.isascii() or _is_utf8(clean)):
        return clean, ()
    decoded = decode(data, file)
    return decoded.text.encode("utf-8"), decoded.diagnostics


def _is_utf8(data: bytes) -> bool:
    """Tell whether all bytes are UTF-8, a block at a time so that no second copy of the file is made."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(data)
    try:
        for at in range(0, len(data), _BLOCK_BYTES):
            decoder.decode(view[at : at + _BLOCK_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _decode_utf16(data: bytes, file: str) -> Decoded:
    note = Diagnostic("encoding", Severity.HINT, "the file is UTF-16", "save it as UTF-8", file=file, line=1, column=1)
    text = data.decode("utf-16", "replace").replace("\0", "")
    return Decoded(text, (note,))


def _encoding(message: str, hint: str, file: str, before: str) -> Diagnostic:
    lines = before.replace("\r\n", "\n").replace("\r", "\n")
    return Diagnostic(
        "encoding",
        Severity.WARNING,
        message,
        hint,
        file=file,
        line=lines.count("\n") + 1,
        column=len(lines) - lines.rfind("\n"),
    )


def _read_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    byte = error.object[error.start : error.start + 1]
    return byte.decode("windows-1252", "replace"), error.start + 1


codecs.register_error(_HANDLER, _read_byte)
