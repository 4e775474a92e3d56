"""The files of a pack, a folder or a zip archive. Nothing outside the pack is read and nothing is unpacked to disk.

An archive is hostile until shown otherwise: member names are only ever names, links are left out, and what a member
unpacks to is counted while it is unpacked, whatever its header says.
"""

from __future__ import annotations

import hashlib
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from luna_engine.errors import InputFileError
from luna_engine.wildcards.diagnostics import Diagnostic, Severity
from luna_engine.wildcards.files import Root, walk_roots
from luna_engine.wildcards.model import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_FILES = 20_000
MOST_FILE_BYTES = 32 * 1024 * 1024
MOST_BYTES = 96 * 1024 * 1024
_CHUNK_BYTES = 1 << 20
_SUFFIXES = frozenset(kind.value for kind in Kind)
_NOTICE = re.compile(r"(licen[cs]e|copying|notice|readme|credits|authors|attribution)\b.*", re.IGNORECASE)
_NOTICE_SUFFIXES = frozenset({"", ".txt", ".md", ".rst"})
_UTF8_NAME = 0x800
_ENCRYPTED = 0x1


@dataclass(frozen=True, slots=True)
class PackFile:
    """One file: ``path`` is relative to the pack, with ``/``. A notice is a licence or readme, never a list."""

    path: str
    data: bytes
    is_notice: bool = False

    @property
    def kind(self) -> Kind:
        """The kind of a wildcard file."""
        return Kind(self.path[self.path.rfind(".") :].lower())


@dataclass(slots=True)
class Pack:
    """What a pack holds, in code point order, and what was left out of it and why."""

    name: str
    files: list[PackFile] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    digest: str = ""

    def leave_out(self, code: str, file: str, message: str, hint: str | None = None) -> None:
        """Note a member that is not imported."""
        if len(self.diagnostics) < 1_000:
            self.diagnostics.append(Diagnostic(code, Severity.ERROR, message, hint, file))


def read_pack(source: Path) -> Pack:
    """Read the wildcard files and the notices of a folder or zip archive.

    Raises:
        InputFileError: ``file-missing``, ``file-damaged`` (no zip archive), or ``limit``: more than 20,000 files or
            96 MiB.
    """
    if source.is_dir():
        pack = Pack(source.resolve().name)
        members = _folder_members(source, pack)
    elif source.is_file():
        pack = Pack(source.stem)
        members = _zip_members(source, pack)
    else:
        raise InputFileError(
            "file-missing", f"the pack {source} does not exist", "give a folder or a zip file", file=str(source)
        )
    total = 0
    for member in members:
        total += len(member.data)
        if total > MOST_BYTES or len(pack.files) >= MOST_FILES:
            _refuse_size(source)
        pack.files.append(member)
    pack.files.sort(key=lambda one: one.path)
    pack.digest = _digest_of(pack.files)
    return pack


def _refuse_size(source: Path) -> NoReturn:
    raise InputFileError(
        "limit",
        f"the pack {source.name} holds more than {MOST_FILES} files or {MOST_BYTES >> 20} MiB of lists",
        "import it in parts",
        file=str(source),
    )


def _digest_of(files: list[PackFile]) -> str:
    """Return a digest of names and contents: equal for a folder and an archive of it."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.path.encode("utf-8", "surrogatepass") + b"\0" + hashlib.sha256(file.data).digest())
    return digest.hexdigest()


def _role(path: str) -> str | None:
    """Return ``list`` or ``notice``, None for what an import leaves alone."""
    folder, _, name = path.rpartition("/")
    parts = folder.split("/") if folder else []
    if any(part.startswith((".", "_!")) for part in parts) or name.startswith("."):
        return None
    stem, dot, suffix = name.rpartition(".")
    suffix = dot + suffix.lower() if stem else ""
    if _NOTICE.fullmatch(stem or name) and suffix in _NOTICE_SUFFIXES:
        return "notice"
    return "list" if suffix in _SUFFIXES else None


# -- folders


def _folder_members(source: Path, pack: Pack) -> Iterator[PackFile]:
    """Yield the files of a folder as the library would read them: links stay inside, hidden names are left out."""
    walk = walk_roots((Root(source),))
    pack.diagnostics += walk.diagnostics
    found = {entry.relative: entry.path for entry in walk.entries}
    found.update(
        {path.name: path for path in source.iterdir() if _role(path.name) == "notice" and not path.is_symlink()}
    )
    for relative, path in sorted(found.items()):
        role = _role(relative)
        if role is None or not path.is_file():
            continue
        try:
            size = path.stat().st_size
            if size > MOST_FILE_BYTES:
                pack.leave_out("limit", relative, f"a file of {size} bytes is left out, the limit is {MOST_FILE_BYTES}")
                continue
            data = path.read_bytes()
        except OSError as error:
            pack.leave_out("unreadable", relative, f"{relative} cannot be read: {error.strerror or error}")
            continue
        yield PackFile(relative, data, role == "notice")


# -- archives


def _zip_members(source: Path, pack: Pack) -> Iterator[PackFile]:
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            if len(members) > 4 * MOST_FILES:
                _refuse_size(source)
            for member in members:
                yield from _zip_member(archive, member, pack)
    except (zipfile.BadZipFile, NotImplementedError, OSError, struct.error, ValueError) as error:
        raise InputFileError(
            "file-damaged", f"{source.name} is no zip archive that can be read: {error}", None, file=str(source)
        ) from error


def _zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, pack: Pack) -> Iterator[PackFile]:
    path = member_path(member)
    shown = path.encode("utf-8", "replace").decode("utf-8")[:200]
    if member.is_dir() or path.startswith("__MACOSX/"):
        return
    if leaves_pack(path):
        pack.leave_out("path-escape", shown, "a member whose name leaves the pack was left out")
        return
    if stat.S_ISLNK(member.external_attr >> 16):
        pack.leave_out("path-escape", shown, f"the link {shown} was left out", "links in archives are never followed")
        return
    role = _role(path)
    if role is None:
        return
    if any(path == known.path for known in pack.files):
        pack.leave_out("duplicate-member", shown, "a second member of the same name was left out")
        return
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        pack.leave_out("unreadable", shown, f"{shown} is compressed in an unusual way", "unpack it, import the folder")
        return
    if member.flag_bits & _ENCRYPTED:
        pack.leave_out("unreadable", shown, f"{shown} is encrypted", "unpack it yourself and import the folder")
        return
    data = _unpacked(archive, member, shown, pack)
    if data is not None:
        yield PackFile(path, data, role == "notice")


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, shown: str, pack: Pack) -> bytes | None:
    """Return what a member holds, None (and a report) if it is too large or damaged."""
    pieces: list[bytes] = []
    size = 0
    try:
        with archive.open(member) as stream:
            while piece := stream.read(_CHUNK_BYTES):
                size += len(piece)
                if size > MOST_FILE_BYTES:
                    message = f"{shown} unpacks to more than {MOST_FILE_BYTES >> 20} MiB and was left out"
                    pack.leave_out("limit", shown, message)
                    return None
                pieces.append(piece)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        pack.leave_out("unreadable", shown, f"{shown} cannot be unpacked: {error}")
        return None
    return b"".join(pieces)


def member_path(member: zipfile.ZipInfo) -> str:
    """Return a member's name with ``/`` and in NFC; one that is UTF-8 without saying so is read as UTF-8."""
    name = member.orig_filename
    if not member.flag_bits & _UTF8_NAME:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = member.orig_filename
    parts = name.replace("\\", "/").split("/")
    leading = "/" if not parts[0] and len(parts) > 1 else ""
    return leading + "/".join(unicodedata.normalize("NFC", part) for part in parts if part not in {"", "."})


def leaves_pack(path: str) -> bool:
    """Tell whether a member's name is anything but a plain path below the pack."""
    parts = path.split("/")
    return (
        path.startswith(("/", "~"))
        or any(part == ".." or part != part.strip() or part.endswith(".") for part in parts)
        or any(ord(sign) < 32 or sign in '<>:"|?*' or 0xD800 <= ord(sign) < 0xE000 for sign in path)
    )
