"""The token file: made once, private, and refused when it is not."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from luna_daemon import auth
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# DAEMON S3
@pytest.mark.parametrize("spoil", ["mode", "link", "short", "folder", "pipe"])
def test_a_token_that_cannot_be_trusted_is_refused(luna_home: Path, spoil: str) -> None:
    auth.ensure_token()
    path = auth.token_path()
    if spoil == "mode":
        path.chmod(0o640)
    elif spoil == "link":
        path.rename(path.with_name("other"))
        path.symlink_to("other")
    elif spoil == "short":
        path.write_bytes(b"x")
    else:
        path.unlink()
        path.mkdir() if spoil == "folder" else os.mkfifo(path, 0o600)
    with pytest.raises(DaemonError) as caught:
        auth.ensure_token()
    assert caught.value.code == "daemon-auth"


def test_many_at_once_agree_on_one_token(luna_home: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        tokens = set(pool.map(lambda _: auth.ensure_token(), range(64)))
    assert len(tokens) == 1
    assert [path.name for path in auth.token_path().parent.iterdir()] == ["token"]


def test_a_proof_is_bound_to_its_side_port_and_nonces() -> None:
    base = (b"t" * 32, "client", 19283, "a" * 64, "b" * 64)
    proofs = {
        auth.proof(*base),
        auth.proof(b"u" * 32, *base[1:]),
        auth.proof(base[0], "server", *base[2:]),
        auth.proof(*base[:2], 19284, *base[3:]),
        auth.proof(*base[:3], "c" * 64, base[4]),
        auth.proof(*base[:4], "c" * 64),
    }
    assert len(proofs) == 6


# DAEMON S3
def test_a_token_others_may_read_keeps_the_daemon_from_starting(run_daemon: Callable[..., tuple[int, str]]) -> None:
    auth.ensure_token()
    auth.token_path().chmod(0o644)
    code, said = run_daemon("--port", "0")
    assert code == 78
    assert "daemon-auth" in said
