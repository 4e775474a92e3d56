"""Wildcard files for the editor of screen 4: read whole or as a section, written back byte for byte or not at all."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from luna_engine import paths
from luna_engine.errors import InputFileError, LunaError
from luna_engine.wildcards.decode import decode
from luna_engine.wildcards.files import Stamp

if TYPE_CHECKING:
    from pathlib import Path

# Above this TextArea needs seconds to open a file and a quarter of one for a key (measured, TUI.md 2.4): only a
# section is opened, which is spliced back on save.
MOST_EDIT_BYTES = 256 * 1024
MOST_EDIT_LINES = 4_000
SECTION_LINES = 2_000
MOST_FILE_BYTES = 64 * 1024 * 1024
_TOP_KEY = re.compile(r"[^\s#\-\]}]")


@dataclass(frozen=True, slots=True)
class Section:
    """The part of a large file that is being edited: what stands before and behind it, and its first line."""

    before: str
    after: str
    first_line: int
    total_lines: int


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file as it was read: its text with line feeds only, and what is needed to write it back unchanged.

    ``text`` is the part in the editor: the whole file, or its ``section``. ``is_normalised``: the bytes of the file
    are not what writing its text gives (mixed line ends, bytes that are no UTF-8), so that saving changes more.
    """

    path: Path
    name: str
    root: int
    text: str
    stamp: Stamp
    newline: str
    has_bom: bool
    section: Section | None = None
    is_normalised: bool = False

    @property
    def first_line(self) -> int:
        """The number of the editor's first line in the file."""
        return self.section.first_line if self.section else 1

    @property
    def last_line(self) -> int:
        """The number of the editor's last line in the file."""
        return self.first_line + self.text.count("\n")

    def whole(self, text: str) -> str:
        """Return the file's text with ``text`` in place of what was opened."""
        return f"{self.section.before}{text}{self.section.after}" if self.section else text

    def with_text(self, text: str, stamp: Stamp) -> OpenFile:
        """Return the file after ``text`` was written."""
        section = self.section
        if section is not None:
            lines = section.total_lines + text.count("\n") - self.text.count("\n")
            section = replace(section, total_lines=lines)
        return replace(self, text=text, stamp=stamp, section=section, is_normalised=False)

    def data(self, text: str) -> bytes:
        """Return the bytes of the file with ``text`` in place of what was opened."""
        bom = b"\xef\xbb\xbf" if self.has_bom else b""
        return bom + self.whole(text).replace("\n", self.newline).encode("utf-8", "surrogatepass")


def open_file(path: Path, name: str, root: int, line: int = 1) -> OpenFile:
    """Read a file; of a large one the section round a line.

    Raises:
        InputFileError: ``file-missing`` if it is gone or unreadable, ``limit`` above 64 MiB or for one huge line.
    """
    try:
        status = path.stat()
        if status.st_size > MOST_FILE_BYTES:
            raise InputFileError(
                "limit",
                f"{name} is too large for the editor ({status.st_size} bytes)",
                f"edit it elsewhere, at most {MOST_FILE_BYTES} bytes here; the samples follow each save",
                file=str(path),
            )
        data = path.read_bytes()
    except OSError as error:
        raise InputFileError(
            "file-missing", f"{name} cannot be read: {error.strerror or error}", file=str(path)
        ) from error
    text = decode(data, name).text
    newline = "\r\n" if "\r\n" in text else "\n"
    plain = text.replace("\r\n", "\n")
    whole = OpenFile(path, name, root, plain, Stamp.of(status), newline, data.startswith(b"\xef\xbb\xbf"))
    whole = replace(whole, is_normalised=whole.data(plain) != data)
    if len(data) <= MOST_EDIT_BYTES and plain.count("\n") <= MOST_EDIT_LINES:
        return whole
    return _section(whole, line)


def _section(file: OpenFile, line: int) -> OpenFile:
    lines = file.text.split("\n")
    start, end = _bounds(lines, min(max(line, 1), len(lines)) - 1, file.path.suffix.lower())
    text = "\n".join(lines[start:end])
    if len(text.encode("utf-8", "surrogatepass")) > MOST_EDIT_BYTES:
        raise InputFileError(
            "limit",
            f"{file.name}: the lines round line {line} are too long for the editor",
            f"edit it elsewhere: a section may hold {MOST_EDIT_BYTES} bytes",
            file=str(file.path),
        )
    before = "".join(f"{part}\n" for part in lines[:start])
    after = "".join(f"\n{part}" for part in lines[end:])
    return replace(file, text=text, section=Section(before, after, start + 1, len(lines)))


def _bounds(lines: list[str], at: int, suffix: str) -> tuple[int, int]:
    """Return [start, end) of the section: the top-level keys round a line, else so many lines round it."""
    reach = SECTION_LINES // 2
    start, end = max(0, at - reach), min(len(lines), at + reach)
    if suffix in {".yaml", ".yml"}:
        head = next((number for number in range(at, start - 1, -1) if _TOP_KEY.match(lines[number])), start)
        tail = next((number for number in range(at + 1, end) if _TOP_KEY.match(lines[number])), end)
        while tail < end and tail - head < reach // 2:  # small keys: take neighbours along
            tail = next((number for number in range(tail + 1, end) if _TOP_KEY.match(lines[number])), end)
        start, end = head, tail
    size = 0
    for number in range(start, end):
        size += 4 * len(lines[number])
        if number > at and size > MOST_EDIT_BYTES:
            return start, number
    return start, end


def save_file(file: OpenFile, text: str, *, overwrite: bool = False) -> OpenFile:
    """Write a file: temporary name, sync, rename; mode, line ends, BOM and what was not opened are kept.

    Raises:
        LunaError: ``conflict`` if the file changed since it was read, ``unwritable``.
    """
    if not overwrite:
        check_stamp(file)
    try:
        with paths.atomic_write(file.path.resolve()) as temporary:
            temporary.write_bytes(file.data(text))
        stamp = Stamp.of(file.path.stat())
    except OSError as error:
        raise LunaError(
            "unwritable", f"{file.name} was not saved: {error.strerror or error}", "the text stays in the editor"
        ) from error
    return file.with_text(text, stamp)


def check_stamp(file: OpenFile) -> None:
    """Raise ``conflict`` if the file is not what was read."""
    try:
        now = Stamp.of(file.path.stat())
        if now == file.stamp or file.path.read_bytes() == file.data(file.text):
            return
    except FileNotFoundError:
        raise LunaError("conflict", f"{file.name} was deleted meanwhile", "save it again, or close it") from None
    raise LunaError("conflict", f"{file.name} was changed by another program", "keep yours or take theirs")
