"""What the devices and hosts of the newest attempt are doing."""

from __future__ import annotations

from rich.text import Text

from monitoring import layout
from monitoring.recorder import metric
from monitoring.snapshot import Snapshot
from monitoring.tail import RecordTail
from monitoring.terminal.screen import DIM
from monitoring.terminal.scroll import Scroll
from monitoring.terminal.view import Key, Opens, RunView, empty
from monitoring.terminal.watched import Watched
from monitoring.terminal.words import duration, figure
from monitoring.text import clean

TAIL = 1 << 16  # bytes of each rank's records in which its newest device record is looked for
OLD = 60.0  # seconds after which a record's age is pointed out
# Field, heading, from which value on it is pointed out.
KNOWN = {
    "gpu_util": ("gpu %", None),
    "gpu_memory_gib": ("GiB", None),
    "power_w": ("power W", None),
    "temperature_c": ("temp C", 85.0),
    "sm_clock_mhz": ("MHz", None),
    "ecc_errors": ("ECC", 1.0),
    "xid_errors": ("Xid", 1.0),
    "cpu_util": ("cpu %", None),
    "host_memory_gib": ("host GiB", None),
}
FIELDS = ("seq", "t", "kind", "step", "rank", "host", "node", "device")


class Devices(RunView):
    title = "devices"
    keys = (Key("up", "up", "Rows above, below; PgUp, PgDn, Home, End.", shown=False), Key("down", "down", shown=False))

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self._scroll = Scroll()
        self._attempt: int | None = None
        self._tails: dict[int, RecordTail] = {}
        self._newest: dict[tuple[int, str], dict] = {}  # by rank and device
        self._hosts: dict[int, str] = {}

    def gather(self) -> None:
        super().gather()
        snapshot = self.watched.snapshot
        if snapshot is None or not snapshot.attempts:
            return
        number = snapshot.attempts[-1].number
        if number != self._attempt:
            self._attempt, self._tails, self._newest, self._hosts = number, {}, {}, {}
        folder = layout.attempt_folder(self.watched.folder, number)
        for rank in layout.recorded_ranks(folder):
            path = layout.rank_records(folder, rank)
            tail = self._tails.setdefault(rank, RecordTail(path, begin=TAIL))
            for found in tail.read():
                for record in found.items:
                    if record["kind"] == "device":
                        self._newest[rank, str(record.get("device", ""))] = record
                    elif record["kind"] == "header":
                        self._hosts[rank] = str(record.get("host", ""))

    def body(self, snapshot: Snapshot, width: int, height: int, *, unicode: bool) -> list[Text]:
        if not self._newest:
            return empty("none recorded: this run's ranks write no device records", height)
        records = [self._newest[key] for key in sorted(self._newest)]
        names = [name for name in KNOWN if any(name in record for record in records)]
        names += sorted(
            {name for r in records for name in r if name not in (*KNOWN, *FIELDS) and metric(r[name]) is not None}
        )
        head = Text(f" {'rank':>4} {'node':<14}{'device':<7}", "bold")
        for name in names:
            head.append(f"{KNOWN.get(name, (clean(name), None))[0]:>9}")
        head.append("      age")
        rows = [self._row(key, names, snapshot.now) for key in sorted(self._newest)]
        return [Text(), head, *self._scroll.part(rows, height - 2)]

    def _row(self, key: tuple[int, str], names: list[str], now: float) -> Text:
        rank, device = key
        record = self._newest[key]
        node = str(record.get("host") or record.get("node") or self._hosts.get(rank, ""))
        row = Text(f" {rank:>4} {clean(node)[:13]:<14}{clean(device)[:6]:<7}")
        for name in names:
            value = metric(record.get(name))
            bound = KNOWN.get(name, ("", None))[1]
            hot = value is not None and bound is not None and value >= bound
            text = "" if value is None else f"{value:.1f}" if 0.05 <= abs(value) < 1e5 else figure(value)
            row.append(f"{text}{'!' if hot else ''}".rjust(9), "bold red" if hot else "")
        age = now - record["t"]
        row.append(f"{duration(age):>9}", "yellow" if age > OLD else DIM)
        return row

    def press(self, key: str) -> Opens | None:
        self._scroll.press(key)
        return None

    def scroll(self, x: int, y: int, by: int) -> None:
        self._scroll.by(3 * by)
