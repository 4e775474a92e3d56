"""Hot reload: one background thread that turns file events into a fresh snapshot. Falls back to polling."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from luna_engine.wildcards.library import WildcardLibrary

DEBOUNCE_S = 0.040
MOST_DELAY_S = 0.250
POLL_S = 1.0
PAIRING_S = 0.010
_PAIRERS = (
    ("watchdog.observers.inotify_move_event_grouper", "InotifyMoveEventGrouper"),
    ("watchdog.observers.inotify_buffer", "InotifyBuffer"),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """What happened on disk. ``paths`` are relative to their root; ``conflicts`` lie under unsaved edits.

    ``notice`` is set once if the system gives no notifications and the folders are polled instead.
    """

    paths: tuple[str, ...] = ()
    conflicts: tuple[Path, ...] = ()
    notice: str | None = None


@contextlib.contextmanager
def _quick_pairing() -> Iterator[None]:
    """Let observers started inside pair the two halves of a rename within 10 ms.

    watchdog holds back half a rename, and every event behind it, for 0.5 s in the hope of the other half; editors
    that save by renaming would be seen half a second late. The delay is a class attribute read when an observer
    starts; it is put back at once, so other users of watchdog in this process keep theirs.
    """
    changed: list[tuple[Any, float]] = []
    for module, name in _PAIRERS:
        with contextlib.suppress(ImportError, AttributeError):  # depends on platform and version
            pairer = getattr(importlib.import_module(module), name)
            changed.append((pairer, pairer.delay))
            pairer.delay = PAIRING_S
    try:
        yield
    finally:
        for pairer, delay in changed:
            pairer.delay = delay


class Watch:
    """Watches a library's roots until stopped."""

    def __init__(
        self,
        library: WildcardLibrary,
        on_event: Callable[[Change], None],
        *,
        use_notifications: bool = True,
    ) -> None:
        self._library = library
        self._on_event = on_event
        self._wake = threading.Event()
        self._last_event_s = -math.inf
        self._stop = threading.Event()
        self._observer = self._observe() if use_notifications else None
        self.is_polling = self._observer is None
        self._thread = threading.Thread(target=self._run, name="luna-wildcards-watch", daemon=True)
        self._thread.start()

    def _observe(self) -> Any:
        """Return a running observer, or None where the system gives no notifications."""
        from watchdog.events import FileSystemEventHandler
        from watchdog.observers import Observer

        take = self._take

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: Any) -> None:
                if event.event_type not in {"opened", "closed_no_write"}:
                    take(event.src_path, event.dest_path)

        observer = Observer()
        try:
            for root in self._library.roots:
                observer.schedule(Handler(), str(root.path), recursive=True)
            with _quick_pairing():
                observer.start()
        except OSError as error:
            _log.warning("no file notifications (%s); polling every %g s", error, POLL_S)
            return None
        return observer

    def _take(self, *touched: str | bytes) -> None:
        """Take an event of the observer's thread, unless it is about hidden names alone, which the library skips."""
        names = [Path(os.fsdecode(path)).name for path in touched if path]
        if names and all(name.startswith(".") for name in names):
            return
        self._last_event_s = time.monotonic()
        self._wake.set()

    def _run(self) -> None:
        if self.is_polling:
            self._tell(Change(notice=f"no file notifications here; looking every {POLL_S:g} s"))
        while not self._stop.is_set():
            self._wake.wait(POLL_S if self.is_polling else None)
            if self._stop.is_set():
                return
            self._settle()
            self._reload()

    def _settle(self) -> None:
        """Wait until no event came for the debounce time, but not for ever."""
        until = time.monotonic() + MOST_DELAY_S
        while (left_s := min(self._last_event_s + DEBOUNCE_S, until) - time.monotonic()) > 0:
            if self._stop.wait(left_s):
                return
        self._wake.clear()

    def _reload(self) -> None:
        try:
            paths = self._library.refresh_changes()
        except Exception:  # noqa: BLE001 - a task border: the thread must outlive one bad reload
            _log.exception("reloading the wildcards failed; the last state stays")
            return
        if paths:
            changed = set(paths)
            conflicts = tuple(
                path
                for path in self._library.overlays()
                if any(str(path).replace("\\", "/").endswith(f"/{name}") for name in changed if name)
            )
            self._tell(Change(paths, conflicts))

    def _tell(self, change: Change) -> None:
        try:
            self._on_event(change)
        except Exception:  # noqa: BLE001 - a task border: a listener's mistake is not the watch's
            _log.exception("a listener of the wildcard watch failed")

    def stop(self) -> None:
        """Stop watching and wait for the thread."""
        self._stop.set()
        self._wake.set()
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
        if threading.current_thread() is not self._thread:
            self._thread.join()
