"""What this machine can do for mailhop, and how to fix what it cannot."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from analyzer.views.text import Look, Page, Span

LIBRARIES = ("numpy", "pandas", "scapy", "dnspython", "click", "rich", "cryptography", "lz4")
OPTIONAL = {
    "pyarrow": "Parquet files: pip install 'mailhop[parquet]'",
    "brotli": "certificates compressed by brotli in TLS 1.3: pip install 'mailhop[brotli]'",
}
TOOLS = {
    "dumpcap": "captures without losing packets and without root: apt install wireshark-common, brew install wireshark",
    "tcpdump": "captures, too: apt install tcpdump",
    "tshark": "opens what the `wireshark` columns say: apt install tshark",
}
CAP_NET_RAW = 13
"""Bit of the capability in Linux's masks (capability.h)."""


class Finding(NamedTuple):
    """One thing looked at: `ok`, `no` (something does not work) or `--` (something optional is not there)."""

    state: str
    name: str
    detail: str


def examine(look: Look) -> Page:
    """Every finding, as a page."""
    page = Page(look)
    for heading, findings in (
        ("Python and libraries", _libraries()),
        ("Tools", _tools()),
        ("Capture rights", _rights()),
        ("TLS keys", _keys()),
    ):
        page.line(Span(heading, "bold"))
        for state, name, detail in findings:
            style = {"ok": "good", "no": "bad", "--": "warn"}[state]
            page.lines.append([Span("  "), Span(state, style), Span(f"  {name:<14}{look.safe(detail)}")])
        page.line()
    page.lines.pop()
    return page


def _libraries() -> Iterator[Finding]:
    from analyzer import __version__

    yield Finding("ok", "mailhop", __version__)
    yield Finding("ok", "python", f"{platform.python_version()} ({sys.executable})")
    for name in LIBRARIES:
        found = _version(name)
        yield Finding("ok", name, found) if found else Finding("no", name, "not installed: pip install --force-reinstall mailhop")
    if sys.version_info < (3, 14):
        found = _version("backports.zstd")
        yield Finding("ok", "zstd", found) if found else Finding("no", "zstd", ".zst captures: pip install backports.zstd")
    for name, use in OPTIONAL.items():
        found = _version(name)
        yield Finding("ok", name, found) if found else Finding("--", name, f"not installed; for {use}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _tools() -> Iterator[Finding]:
    for name, use in TOOLS.items():
        path = shutil.which(name)
        yield Finding("ok", name, path) if path else Finding("--", name, f"not found; {use}")


def _rights() -> Iterator[Finding]:
    if not sys.platform.startswith("linux"):
        fix = {"darwin": "install ChmodBPF with Wireshark", "win32": "install Npcap"}.get(
            sys.platform, "see your system's manual"
        )
        yield Finding("--", "capture", f"not examined on {sys.platform}; {fix}")
        return
    from analyzer.wire.live import interfaces

    own = bool(_effective_capabilities() >> CAP_NET_RAW & 1)
    if own:
        yield Finding("ok", "this process", "has CAP_NET_RAW: mailhop capture works by raw sockets, too")
    elif os.geteuid() == 0:
        yield Finding("no", "this process", "root without CAP_NET_RAW: start the container with --cap-add NET_RAW")
    else:
        yield Finding("--", "this process", "has no CAP_NET_RAW: mailhop capture works by dumpcap only, where that may capture")
    dumpcap = shutil.which("dumpcap")
    if dumpcap is not None:
        yield _dumpcap(dumpcap, own)
    elif not own:
        yield Finding(
            "no", "live capture", f"impossible here; {TOOLS['dumpcap']}; or ssh HOST sudo tcpdump -U -w - | mailhop capture -i -"
        )
    names = interfaces()
    yield Finding("ok" if names else "--", "interfaces", ", ".join([*names, "any"]) if names else "none can be listed")


def _effective_capabilities() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    except (OSError, ValueError):
        pass
    return 0


def _dumpcap(path: str, own: bool) -> Finding:
    if own:
        return Finding("ok", "dumpcap", "may capture: it has this process's rights")
    if os.geteuid() == 0:
        return Finding("no", "dumpcap", "may not capture: root here lacks CAP_NET_RAW")
    if not os.access(path, os.X_OK):
        return Finding("no", "dumpcap", 'you may not run it: sudo usermod -aG wireshark "$USER", then log in again')
    try:
        may = bool(os.getxattr(path, "security.capability")) or bool(Path(path).stat().st_mode & 0o4000)
    except OSError:
        may = False
    if may:
        return Finding("ok", "dumpcap", "may capture")
    return Finding("no", "dumpcap", f"may not capture: sudo setcap cap_net_raw,cap_net_admin=ep {path}")


def _keys() -> Iterator[Finding]:
    path = os.environ.get("SSLKEYLOGFILE")
    if not path:
        yield Finding("--", "SSLKEYLOGFILE", "not set; TLS is read with --keylog FILE, or with keys inside a pcapng")
    elif os.access(path, os.R_OK):
        yield Finding("ok", "SSLKEYLOGFILE", f"{path}: used when no --keylog is given")
    else:
        yield Finding("no", "SSLKEYLOGFILE", f"{path} cannot be read")
