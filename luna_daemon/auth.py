"""Who may talk to a daemon over TCP: the token file and the proofs of the handshake."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from typing import TYPE_CHECKING

from luna_daemon.messages import MAGIC, PROTOCOL
from luna_engine import paths
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from pathlib import Path

TOKEN_BYTES = 32
NONCE_BYTES = 32
# A link is not followed, and a pipe in the token's place does not block.
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def new_nonce() -> str:
    """Return 32 random bytes in hex."""
    return secrets.token_hex(NONCE_BYTES)


def is_nonce(text: str) -> bool:
    """Tell whether a text is 32 bytes in lower-case hex."""
    return len(text) == 2 * NONCE_BYTES and set(text) <= set("0123456789abcdef")


def token_path() -> Path:
    """Return the place of the token; it need not exist."""
    return paths.state_dir() / "token"


def read_token(path: Path | None = None) -> bytes:
    """Read the token and check that nobody else can.

    Raises:
        DaemonError: ``daemon-auth`` if it is missing, a link, not the user's own, readable by others, or damaged.
    """
    path = path or token_path()
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except FileNotFoundError:
        raise DaemonError("daemon-auth", f"{path} does not exist", "start a daemon once to make it") from None
    except OSError as error:
        raise _unsafe(path, error.strerror or str(error)) from error
    try:
        _check_private(path, os.fstat(descriptor))
        token = os.read(descriptor, TOKEN_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(token) != TOKEN_BYTES:
        raise _unsafe(path, f"it holds {len(token)} bytes, {TOKEN_BYTES} are expected")
    return token


def _check_private(path: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise _unsafe(path, "it is no regular file")
    if os.name != "posix":
        return
    if facts.st_uid != os.getuid():
        raise _unsafe(path, f"it belongs to uid {facts.st_uid}")
    if facts.st_mode & 0o077:
        raise _unsafe(path, f"its mode is {stat.S_IMODE(facts.st_mode):04o}, others may read it")


def _unsafe(path: Path, why: str) -> DaemonError:
    return DaemonError(
        "daemon-auth",
        f"the token {path} cannot be trusted: {why}",
        "move it away; the next daemon makes a new one",
    )


def ensure_token(path: Path | None = None) -> bytes:
    """Read the token, making one first if there is none. Several processes may do this at once.

    Raises:
        DaemonError: ``daemon-auth`` as `read_token`.
    """
    path = path or token_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.is_symlink() and not path.exists():
        _create(path)
    return read_token(path)


def _create(path: Path) -> None:
    """Write the token beside its place and link it there, so that no reader sees half of it and the first one wins."""
    temporary = path.with_name(f".token.{secrets.token_hex(4)}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_bytes(TOKEN_BYTES))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def proof(token: bytes, side: str, port: int, client_nonce: str, server_nonce: str) -> str:
    """Return the HMAC-SHA256 by which one side (``server`` or ``client``) shows that it knows the token.

    The side keeps a proof from being sent back, the port from being carried to another daemon, the nonces from being
    used twice.
    """
    text = "\n".join((f"{MAGIC}/{PROTOCOL} {side}", str(port), client_nonce, server_nonce))
    return hmac.new(token, text.encode(), hashlib.sha256).hexdigest()


def is_proof(given: str, expected: str) -> bool:
    """Compare two proofs in constant time."""
    return hmac.compare_digest(given.encode(), expected.encode())
