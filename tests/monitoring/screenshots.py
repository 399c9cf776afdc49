"""Makes the pictures of docs/watch.md from generated runs:

python -m tests.monitoring.screenshots
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

from monitoring.snapshot import JobState
from tests.monitoring.generate import START, Folders, Shape, Try, devices, generate, slow
from tests.monitoring.screens import Seen, watched

IMAGES = Path(__file__).parents[2] / "docs" / "images"
JOB = JobState("17", "RUNNING", nodes="n2gpu[1201,1205]", ends=START + 900, emulated=True)
SIZE = (110, 30)


def main() -> None:
    os.environ["TZ"] = "UTC"
    time.tzset()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        run = generate(root / "tiny_moe" / "20251122-082640-1f2e")
        slow(run, rank=3, times=1.4)
        devices(run)
        shape = Shape((Try(0, 60, "finished"),), steps=60, name="llammlein", layers=())
        others = [generate(root / "llammlein" / f"20251121-07{n}000-77a{n}", shape) for n in range(3)]

        async def act(seen: Seen) -> None:
            save(seen, IMAGES / "watch-overview.svg")
            await seen.press("2", "down", "down", "space", "s", "left", "left", "left")
            save(seen, IMAGES / "watch-curves.svg")
            await seen.press("3")
            save(seen, IMAGES / "watch-ranks.svg")
            await seen.press("6")
            save(seen, IMAGES / "watch-attempts.svg")

        watched(act, Folders([run, *others], JOB), run, SIZE)


def save(seen: Seen, file: Path) -> None:
    """What is on the screen now, as an SVG file."""
    picture = seen.app.export_screenshot(title="hpc watch", simplify=True)
    # The page that shows it must not fetch a font from elsewhere.
    picture = re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.S)
    picture = re.sub(r"terminal-\d+", "terminal", picture)  # the same each time
    file.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
