"""Model files behind a proxy: named to the daemon where it sees the same file, sent by content where it does not."""

from __future__ import annotations

import contextlib
from pathlib import PurePath, PurePosixPath
from typing import TYPE_CHECKING

from luna_daemon.model_messages import Expect
from luna_daemon.model_messages import Part as NamedPart
from luna_daemon.runtime.parts import KINDS, OpenFile, require_floats
from luna_daemon.sources import Sending
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from luna_daemon.client import DaemonClient
    from luna_daemon.model_messages import FileRow, ModelFacts

_NOT_THE_SAME = frozenset({"daemon-model-changed", "model-missing", "path-outside"})
"""What a daemon answers if it has no such file, or another one of that name: the content is then sent."""


class FileParts(Sending):
    """Parts of one model that lie in files, each in one of its own or several in one.

    Args:
        family: of the model.
        files: role -> file.
        check: raises when the user cancels.
        on_progress: is told bytes sent and bytes in all, for each part that must be sent.
    """

    def __init__(
        self,
        family: str,
        files: Mapping[str, Path],
        check: Callable[[], None],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(family, check, on_progress)
        self._files = files

    def load(self, client: DaemonClient) -> tuple[str, ModelFacts]:
        """Have the daemon read the files, or send it what it cannot see, and load the set.

        Raises:
            DaemonError: ``model-missing`` for a file that is gone, ``wrong-type`` for one without the part,
                ``model-unsupported`` for one that is quantised, ``file-damaged``, or what the daemon answers.
        """
        named = self._named(client.list_models().files)
        if named is not None:
            try:
                loaded = client.load_model(
                    named, family=self._family, poll=self._check, on_progress=self._told_in_bytes
                )
            except DaemonError as error:
                if error.code not in _NOT_THE_SAME:
                    raise
            else:
                self.was_sent = False
                return loaded.set, loaded.facts
        with contextlib.ExitStack() as stack:
            parts = {}
            for role, path in self._files.items():
                part = stack.enter_context(open_model(path)).find(role)
                if part is None:
                    raise DaemonError("wrong-type", f"{path.name} holds no {KINDS[role].label.partition(' ')[2]}")
                require_floats(part)
                parts[role] = part
            return self._send(client, parts)

    def _told_in_bytes(self, done: int, total: int, _unit: str) -> None:
        if self._on_progress is not None:
            self._on_progress(done, total)

    def _named(self, rows: Sequence[FileRow]) -> list[NamedPart] | None:
        """Return the files as the daemon calls them, None if one of them is not in its folders."""
        parts = []
        for role, path in self._files.items():
            try:
                found = path.stat()
            except OSError as error:
                raise DaemonError("model-missing", f"{path.name} cannot be opened: {error.strerror}") from error
            alike = [
                row.id for row in rows if row.size_bytes == found.st_size and PurePosixPath(row.id).name == path.name
            ]
            if not alike:
                return None
            expect = Expect(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, self._content.get(role))
            parts.append(NamedPart(role, id=max(alike, key=lambda name: _common_tail(name, path)), expect=expect))
        return parts


def _common_tail(file_id: str, path: PurePath) -> int:
    """Return how many parts at the end of an id and a path are equal."""
    count = 0
    for one, other in zip(reversed(file_id.split("/")), reversed(path.parts), strict=False):
        if one != other:
            break
        count += 1
    return count


def open_model(path: Path) -> OpenFile:
    """Open a model file.

    Raises:
        DaemonError: ``model-missing``, or what `OpenFile` raises.
    """
    try:
        return OpenFile(path, path.name)
    except OSError as error:
        raise DaemonError("model-missing", f"{path.name} cannot be opened: {error.strerror}") from error
