#!/usr/bin/env python3
"""Make the pictures of this folder again, of the real thing.

    .venv/bin/python docs/pictures.py       (the report's picture needs a Chromium)

waterfall.svg  one delivery of captures/story.pcapng, as a notebook shows it
town.svg       who talks to whom in captures/town.pcapng
report.png     the HTML report of captures/delay.pcapng in a browser
"""

import os
import shutil
import tempfile
from pathlib import Path

import analyzer

HERE = Path(__file__).resolve().parent
CAPTURES = Path("captures")
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking".split()


def on_paper(svg: str) -> str:
    """A picture on white: beside a README nothing says whether the page is dark."""
    head, rest = svg.split(">", 1)
    return f'{head} style="background:#fff;color:#1c2430"><rect width="100%" height="100%" fill="#fff"/>{rest}\n'


def main() -> None:
    os.chdir(HERE.parent)  # names of captures as a reader would give them
    story, delay = (analyzer.analyze(CAPTURES / f"{name}.pcapng") for name in ("story", "delay"))
    town = analyzer.analyze(CAPTURES / "town.pcapng", keylog=CAPTURES / "town.keys.log")
    (HERE / "waterfall.svg").write_text(on_paper(story.trace("<story-1@example.org>").waterfall().svg), encoding="utf-8")
    (HERE / "town.svg").write_text(on_paper(town.role_map.svg()), encoding="utf-8")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium here: report.png stays as it is")
        return
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        path = Path(folder) / "report.html"
        delay.report(path)
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1180, "height": 1100})
        page.goto(path.as_uri())
        page.wait_for_selector("#waterfall svg")
        page.screenshot(path=HERE / "report.png")
        browser.close()


if __name__ == "__main__":
    main()
