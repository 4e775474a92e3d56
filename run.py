"""Open Luna with one command, on a machine that has nothing but Python.

    python run.py                  make .venv beside this file if needed, then open luna-tui
    python run.py luna ARGS ...    the headless command line in the same environment
    python run.py daemon ARGS ...  a model server in the foreground
    python run.py test [ARGS ...]  install what the tests need and run every check; ARGS go to pytest
    python run.py --here ...       use this interpreter (ComfyUI's own, say) and never touch its torch

The environment is installed only when pyproject.toml or constraints.txt changed. Standard library only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
OLDEST = (3, 10)
MODULES = {"tui": "luna_tui", "luna": "luna_tui.cli", "daemon": "luna_daemon.server"}
CHECKS = (
    ("ruff check", ("-m", "ruff", "check", ".")),
    ("ruff format", ("-m", "ruff", "format", "--check", ".")),
    ("mypy", ("-m", "mypy")),
    ("import contracts", ("-c", "import sys; from importlinter.cli import lint_imports_command as run; run()")),
)


def main() -> int:
    """Read the command line, make the environment, and hand over."""
    arguments = sys.argv[1:]
    here = "--here" in arguments[:1]
    if here:
        arguments = arguments[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if sys.version_info < OLDEST:
        print(f"Luna needs Python {OLDEST[0]}.{OLDEST[1]} or newer; this is {sys.version.split()[0]}.", file=sys.stderr)
        return 2
    verb = arguments.pop(0) if arguments and arguments[0] in {*MODULES, "test"} else "tui"
    python = prepare(here=here, extras=("torch", "fast", "test") if verb == "test" else ("torch", "fast"))
    if python is None:
        return 1
    if verb == "test":
        return check(python, arguments)
    return hand_over(python, ["-m", MODULES[verb], *arguments])


def prepare(*, here: bool, extras: tuple[str, ...]) -> Path | None:
    """Return the interpreter to use, with everything installed; None if an install failed."""
    python = Path(sys.executable) if here else VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp_file = stamp_folder(here=here) / f"luna-{'-'.join(extras)}.stamp"
    stamp = fingerprint(python)
    if python.exists() and stamp_file.exists() and stamp_file.read_text("utf-8") == stamp:
        return python
    if not python.exists():
        print(f"making {VENV} ...", file=sys.stderr)
        venv.create(VENV, with_pip=True, symlinks=os.name != "nt")
    print("installing what Luna needs (once; again only when its requirements change) ...", file=sys.stderr)
    if install(python, here=here, extras=extras) != 0:
        print("the install failed: see pip's words above; run the same command again once mended.", file=sys.stderr)
        return None
    stamp_file.parent.mkdir(parents=True, exist_ok=True)
    stamp_file.write_text(stamp, "utf-8")
    return python


def stamp_folder(*, here: bool) -> Path:
    """Return where the note "this is installed" lies: with the environment it speaks of."""
    return Path(sys.prefix) / "share" / "luna" if here else VENV


def fingerprint(python: Path) -> str:
    """Return a digest of what decides whether an installed environment is still right."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt", "requirements.txt"):
        digest.update((ROOT / name).read_bytes())
    digest.update(f"{ROOT}\n{python}\n{sys.version_info[:2]}".encode())
    return digest.hexdigest()


def install(python: Path, *, here: bool, extras: tuple[str, ...]) -> int:
    """Install with pip and return its exit code.

    In an own environment everything gets the exact pins. In a foreign one only what is missing is added, the
    package itself stays where it is (nothing is put on that environment's path), and an installed torch is pinned
    to itself so that no dependency can replace it.
    """
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    if not here:
        pins = ["-c", str(ROOT / "constraints.txt")]
        return run([*pip, *pins, "-e", f"{ROOT}[{','.join(extras)}]"])
    wanted = ["-r", str(ROOT / "requirements.txt")]
    torch = installed("torch")
    if torch is None:
        wanted.append("torch")
    else:
        wanted.append(f"torch=={torch}")
    if "test" in extras:
        wanted += test_requirements()
    return run([*pip, *wanted])


def installed(name: str) -> str | None:
    """Return the version of an installed distribution of this interpreter, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def test_requirements() -> list[str]:
    """Return the ``test`` extra of pyproject.toml (read as text: 3.10 has no TOML reader)."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    block = text.split("\ntest = [", 1)[1].split("]", 1)[0]
    return [line.split('"')[1] for line in block.splitlines() if line.strip().startswith('"')]


def run(command: list[str]) -> int:
    """Run a child in the project's folder and return its exit code."""
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def environment() -> dict[str, str]:
    """Return the environment for Luna's own processes: the clone is importable, whatever is installed."""
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *([before] if before else [])])}


def hand_over(python: Path, arguments: list[str]) -> int:
    """Become the program (POSIX), so that signals and the terminal are its own; elsewhere wait for it."""
    command = [str(python), *arguments]
    if os.name == "posix":
        os.execve(command[0], command, environment())
    return subprocess.run(command, env=environment(), check=False).returncode


def check(python: Path, arguments: list[str]) -> int:
    """Run every check CI runs, all of them even if one fails, the tests last."""
    failed = []
    # Half of the suite's time is waiting for daemons and terminals; a file's tests share what they start.
    tests = ("-m", "pytest", "-n", "2", "--dist", "loadfile", "--cov", "--cov-report=", *arguments)
    for name, command in (*CHECKS, ("tests", tests)):
        started = time.monotonic()
        print(f"== {name}", flush=True)
        code = subprocess.run([str(python), *command], cwd=ROOT, env=environment(), check=False).returncode
        print(
            f"== {name}: {'ok' if code == 0 else f'failed ({code})'} in {time.monotonic() - started:.1f} s", flush=True
        )
        if code != 0:
            failed.append(name)
    print("coverage, percent of branches and lines:", flush=True)
    run([str(python), "-m", "coverage", "report", "--format=total"])
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
