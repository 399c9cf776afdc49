"""What of an x axis is seen: all of it, or a part that was zoomed into, and where the cursor is."""

from __future__ import annotations

from monitoring.curves import AXES

LEAST = {"hours": 1e-6}  # of the axis that can be seen; of others 1


class Viewport:
    """Moved by keys and the mouse; the extent is what there is by now."""

    def __init__(self) -> None:
        self.axis = AXES[0]
        self.extent = (0.0, 1.0)
        self.cells = 60  # columns of the screen
        self.cursor: float | None = None
        self._zoom: tuple[float, float] | None = None

    @property
    def seen(self) -> tuple[float, float]:
        return self._zoom or self.extent

    @property
    def zoomed(self) -> bool:
        return self._zoom is not None

    def all(self) -> None:
        self._zoom = self.cursor = None

    def next_axis(self) -> None:
        self.axis = AXES[(AXES.index(self.axis) + 1) % len(AXES)]
        self.all()

    def point(self, column: int) -> None:
        """Put the cursor into a column."""
        low, high = self.seen
        if 0 <= column < self.cells:
            self.cursor = low + (high - low) * column / max(1, self.cells - 1)

    def move_cursor(self, columns: int) -> None:
        """Move the cursor, which comes from the right."""
        low, high = self.seen
        step = (high - low) / max(1, self.cells - 1)
        start = high + step if self.cursor is None else self.cursor
        self.cursor = min(high, max(low, start + columns * step))

    def zoom(self, factor: float) -> None:
        """See ``factor`` times as much; what is at the cursor stays where it is."""
        low, high = self.seen
        at = (low + high) / 2 if self.cursor is None else self.cursor
        first, last = self.extent
        new = (max(first, at - (at - low) * factor), min(last, at + (high - at) * factor))
        if new == (first, last):
            self._zoom = None
        elif new[1] - new[0] >= LEAST.get(self.axis, 1.0):
            self._zoom = new

    def pan(self, part: float) -> None:
        """Move what is seen by a part of its width, within what there is."""
        if self._zoom is None:
            return
        (low, high), (first, last) = self._zoom, self.extent
        by = min(max((high - low) * part, first - low), last - high)
        self._zoom = (low + by, high + by)
