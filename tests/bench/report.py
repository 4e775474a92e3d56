"""Where tables go: each script owns one marked section of docs/benchmarks.md or docs/reliability.md."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
RELIABILITY = PAGE.with_name("reliability.md")


def machine() -> str:
    """Return one line on the machine: processor, cores, Python; never a host name or path."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text("utf-8"), re.MULTILINE)
        processor = match[1] if match else processor
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}"


def commit() -> str:
    """Return the short commit the tree stands on, or "unknown" outside git."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=PAGE.parent
    )
    return found.stdout.strip() or "unknown"


def load() -> str:
    """Return the machine's load averages: figures on a shared machine mean little without them."""
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def publish(
    name: str, title: str, table: str, *, write: bool, note: str = "", page: Path = PAGE, command: str = ""
) -> str:
    """Print a section and, if asked, put it in place of the one of the same name on its page.

    Args:
        name: of the section; ``bench_<name>`` is the script unless `command` names another.
        title, table, note: what it says.
        write: into the page; otherwise it is only printed.
        page: where.
        command: what made it.
    """
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    made_by = command or f"python -m tests.bench.bench_{name}"
    body = f"## {title}\n\n{today}, {machine()}, on {commit()}. `{made_by}`\n\n{table.strip()}\n"
    if note:
        body += f"\n{note.strip()}\n"
    section = f"<!-- bench:{name} -->\n{body}<!-- /bench:{name} -->\n"
    print(body)
    if write:
        text = page.read_text("utf-8") if page.exists() else f"# {page.stem.capitalize()}\n"
        pattern = re.compile(rf"<!-- bench:{re.escape(name)} -->.*?<!-- /bench:{re.escape(name)} -->\n", re.DOTALL)
        text = pattern.sub(lambda _: section, text) if pattern.search(text) else text.rstrip("\n") + "\n\n" + section
        page.write_text(text, "utf-8")
    return section
