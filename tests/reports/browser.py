"""Headless Chromium: pictures of pages, and their layout at a given width."""

import html
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
PATIENCE = 120.0  # seconds

# A frame has the width of the device that it stands for; a window of Chromium is never narrower than 500 pixels.
FRAME = """<!doctype html><body style="margin: 0"><iframe src="{page}" width="{width}" height="{height}"
style="border: 0"></iframe><pre id="layout"></pre><script>
addEventListener("load", () => {{
  const frame = document.querySelector("iframe"), inside = frame.contentDocument;
  inside.querySelectorAll("details").forEach(one => one.open = {opened});
  const wide = [...inside.querySelectorAll("body *")].filter(one => !one.closest("svg") && !one.closest(".scroll *")
    && one.getBoundingClientRect().right > frame.clientWidth + 1).map(one => one.outerHTML.slice(0, 120));
  const root = inside.documentElement, text = inside.body.innerText;
  document.getElementById("layout").textContent = JSON.stringify(
    {{"width": root.scrollWidth, "height": root.scrollHeight, "wide": wide, "text": text}});
}});
</script>"""


def needs_chromium() -> pytest.MarkDecorator:
    return pytest.mark.skipif(CHROMIUM is None, reason=f"no browser is installed ({', '.join(NAMES)})")


def layout(page: Path, width: int, opened: bool = True) -> dict[str, Any]:
    """Layout of a page in a window of this width: its own width and height, elements that stick out, its text."""
    (document,) = (text for text in [_chromium(page, width, 900, opened, "--dump-dom")])
    found = document.partition('<pre id="layout">')[2].partition("</pre>")[0]
    return dict(json.loads(html.unescape(found)))


def picture(page: Path, width: int, height: int, to: Path) -> Path:
    """Take a picture of the top of a page, as PNG."""
    _chromium(page, width, height, False, f"--screenshot={to}", f"--window-size={max(width, 500)},{height}")
    return to


def _chromium(page: Path, width: int, height: int, opened: bool, *options: str) -> str:
    frame = page.with_name(f".frame-{page.name}")
    values = {"page": page.name, "width": width, "height": height, "opened": json.dumps(opened)}
    frame.write_text(FRAME.format(**values))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += ["--hide-scrollbars", f"--user-data-dir={page.parent / '.chromium'}", *options, frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    frame.unlink()
    return done.stdout
