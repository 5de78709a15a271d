"""Pages as a browser shows them on a narrow screen: Debian's chromium without a window."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
TELLING = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
    page: location.pathname.split("/").pop(), wide: document.documentElement.scrollWidth,
    broken: [...document.images].filter(i => !i.naturalWidth).length, images: document.images.length,
    scripts: document.scripts.length - 1, text: document.body.innerText}), "*"))</script>"""
FRAMES = """<!doctype html><body><script>addEventListener("message", e => {
    let shown = document.createElement("pre"); shown.textContent = e.data; document.body.append(shown)})</script>"""


def load(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Return the page as the browser holds it after loading, and what it complains of. Skips without a browser."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium: scripts/setup.sh --extras dev installs Debian's where it may")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=2000",
        "--dump-dom",
    ]
    ended = subprocess.run([chromium, *flags, page.as_uri()], capture_output=True, text=True, timeout=60)
    return ended.stdout, [text for text in ended.stderr.splitlines() if "CONSOLE" in text]


def shown_at(width: int, folder: Path, **pages: str) -> dict[str, dict[str, Any]]:
    """Return what each page tells of itself in a frame of this width: headless windows are 500 px wide at least.

    `wide` is the width of its content, `text` what a reader sees. The folder gets the pages' files.
    """
    frames = []
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(POLICY.sub("", page).replace("</body>", TELLING + "</body>"))
        frames.append(f'<iframe width="{width}" height="700" style="border:0" src="{name}.html"></iframe>')
    (folder / "frames.html").write_text(FRAMES + "".join(frames) + "</body>")
    content, complaints = load(folder / "frames.html", folder / "chromium")
    assert not complaints
    found = [json.loads(html.unescape(text)) for text in re.findall(r"<pre>(\{.*?\})</pre>", content, re.S)]
    assert len(found) == len(pages)
    return {one["page"].removesuffix(".html"): one for one in found}
