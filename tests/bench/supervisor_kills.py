"""Supervisors die, the application among them: daemons live on, and who comes next takes over."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from luna_daemon import identity, restart_memory
from luna_daemon.identity import DaemonPlaces
from luna_daemon.supervisor import Supervisor, holder
from luna_daemon.views import DaemonState
from tests.bench.daemon_kills import NAME, ROOT, WIRE
from tests.bench.survival import WrongError, wait_for

if TYPE_CHECKING:
    import random

    from luna_daemon.identity import Identity
    from tests.bench.daemon_kills import DaemonKills
    from tests.bench.survival import Tally

SUPERVISOR = """
import json, sys, threading
from luna_daemon.supervisor import Supervisor
one = Supervisor(command=json.loads(sys.argv[1]), kind="kills")
assert one.try_lock()
print("go", flush=True)
one.run(threading.Event())
"""


class SupervisorKills:
    """Supervisors die; daemons live on, the next supervisor takes over at once and goes on with the back-off."""

    def __init__(self, daemons: DaemonKills, tally: Tally) -> None:
        self._daemons = daemons
        self._tally = tally

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SUPERVISOR, json.dumps(WIRE)]
        made = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if made.stdout is None or made.stdout.readline() != b"go\n":
            made.kill()
            made.wait(10)
            raise WrongError("no supervisor could take the lock that a dead one held")
        return made

    @staticmethod
    def _end(supervisor: subprocess.Popen[bytes]) -> None:
        supervisor.kill()
        supervisor.wait(10)
        if supervisor.stdout is not None:
            supervisor.stdout.close()

    def kill_one(self, chance: random.Random) -> float:
        """Kill a supervisor that watches; return the seconds until its daemon was known to be well."""
        found = self._daemons.ensure()
        supervisor = self._start()
        time.sleep(chance.uniform(0.0, 0.3))
        self._end(supervisor)
        began = time.monotonic()
        if holder() is not None:
            raise WrongError("a dead supervisor is named as the holder")
        self._daemons.check(found)
        return time.monotonic() - began

    def kill_in_back_off(self, chance: random.Random) -> float:
        """Kill daemon and supervisor; the next supervisor must start the daemon again after the back-off."""
        DaemonPlaces(NAME).memory.unlink(missing_ok=True)
        found = self._daemons.ensure()
        first = self._start()
        try:
            # It must have seen the daemon ready, or the end counts as that of a start.
            wait_for(lambda: restart_memory.read(NAME).state == "ready", "the supervisor's note that the daemon runs")
            os.kill(found.pid, signal.SIGKILL)
            killed = time.monotonic()
            # A daemon whose end no supervisor saw is the case of kill_with_daemon.
            wait_for(lambda: restart_memory.read(NAME).state == "backoff", "the first supervisor's back-off")
            time.sleep(chance.uniform(0.0, 0.5))
        finally:
            self._end(first)
        second = self._start()
        try:
            wait_for(lambda: self._is_new(found), "the restart after the back-off")
        finally:
            self._end(second)
        took = time.monotonic() - killed
        self._tally.restarts.append(took)
        self._daemons.check(self._daemons.ensure())
        return took

    def kill_with_daemon(self, chance: random.Random) -> float:
        """Kill both at once, so that nobody sees the daemon's end.

        The next supervisor shows it as crashed and leaves the rest to a person, whose start begins anew. Stopped first,
        the supervisor cannot be quicker than its own end.
        """
        DaemonPlaces(NAME).memory.unlink(missing_ok=True)
        found = self._daemons.ensure()
        first = self._start()
        try:
            wait_for(lambda: restart_memory.read(NAME).state == "ready", "the supervisor's note that the daemon runs")
            time.sleep(chance.uniform(0.0, 0.2))
            first.send_signal(signal.SIGSTOP)
            os.kill(found.pid, signal.SIGKILL)
        finally:
            self._end(first)
        began = time.monotonic()
        second = Supervisor(command=WIRE, kind="kills")
        try:
            if not second.try_lock():
                raise WrongError("the dead supervisor still holds the lock")
            for _ in range(3):
                second.step()
            self._require_crashed(second)
            second.start(NAME)
            wait_for(lambda: self._is_up(second, found), "the start that a person asks for")
        finally:
            second.close()
        self._daemons.check(self._daemons.ensure())
        return time.monotonic() - began

    @staticmethod
    def _require_crashed(supervisor: Supervisor) -> None:
        (view,) = (one for one in supervisor.snapshot() if one.name == NAME)
        if view.state is not DaemonState.CRASHED or not view.reason:
            raise WrongError(f"a daemon whose end nobody saw is {view.state.value} because {view.reason}")

    def _is_up(self, supervisor: Supervisor, old: Identity) -> bool:
        supervisor.step()
        (view,) = (one for one in supervisor.snapshot() if one.name == NAME)
        return view.state is DaemonState.READY and self._is_new(old)

    def kill_application(self, chance: random.Random) -> float:
        """Kill luna-tui while it supervises; return the seconds until its daemon was known to be well."""
        found = self._daemons.ensure()
        application = Application()
        try:
            wait_for(lambda: (one := holder()) is not None and one.pid == application.pid, "luna-tui's supervision")
            time.sleep(chance.uniform(0.0, 0.5))
        finally:
            application.kill()
        began = time.monotonic()
        if holder() is not None:
            raise WrongError("a dead luna-tui is named as the holder")
        self._daemons.check(found)
        took = time.monotonic() - began
        self._end(self._start())  # the lock is free for the next
        return took

    @staticmethod
    def _is_new(old: Identity) -> bool:
        now = identity.read_identity(NAME)
        return now is not None and now.generation != old.generation and now.is_alive()


class Application:
    """luna-tui on a terminal of its own that somebody reads."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "36"}
        command = [sys.executable, "-m", "luna_tui"]
        try:
            self._process = subprocess.Popen(
                command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environ, start_new_session=True
            )
        finally:
            os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Return its process."""
        return self._process.pid

    def _read(self) -> None:
        while self._process.poll() is None:
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    os.read(self._master, 65536)
                except OSError:  # it is gone, and the terminal with it
                    return

    def kill(self) -> None:
        """End it without a word."""
        self._process.kill()
        self._process.wait(10)
        self._reader.join(10)
        os.close(self._master)
