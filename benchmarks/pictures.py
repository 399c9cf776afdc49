"""Pictures of the live screens of a run, as people see them: ``hpc watch`` and the page of ``hpc serve``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from hpc import watching
from hpc.runs import Run
from monitoring.terminal.app import Options
from tests.monitoring.screens import Seen, watched
from tests.monitoring.screenshots import save

SIZE = (120, 32)
VIEWS = {"overview": "1", "ranks": "3", "attempts": "6"}  # by their keys


def terminal(run: Run, folder: Path) -> None:
    """Write ``showcase-VIEW.svg`` for some views of a run."""

    async def act(seen: Seen) -> None:
        for name, key in VIEWS.items():
            await seen.press(key)
            save(seen, folder / f"showcase-{name}.svg")

    fleet = watching.some([run])
    try:
        watched(act, fleet, run.folder, SIZE, Options(interval=0.2))
    finally:
        fleet.stop()


def page(run: Run, file: Path) -> None:
    """Write the page of a run, from its own server, as a Chromium shows it."""
    from playwright.sync_api import sync_playwright

    server = subprocess.Popen([sys.executable, "-m", "hpc", "serve", "--json"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        place = json.loads(server.stdout.readline())
        with sync_playwright() as driver:
            chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            seen = chromium.new_page(viewport={"width": 1100, "height": 1400}, reduced_motion="reduce")
            seen.goto(place["url"])
            seen.locator("table.runs a", has_text=run.id[9:15]).first.click()
            seen.wait_for_selector(".u-over")
            seen.locator("#ranks").scroll_into_view_if_needed()
            seen.wait_for_selector("#ranks tbody tr")
            seen.locator("#experts").scroll_into_view_if_needed()
            seen.wait_for_timeout(1000)
            # Has the names of this machine, its folders and its user.
            seen.evaluate("document.getElementById('request').style.display = 'none'; scrollTo(0, 0)")
            seen.wait_for_timeout(500)
            seen.screenshot(path=file, full_page=True)
            chromium.close()
    finally:
        server.terminate()
        server.wait(10)
