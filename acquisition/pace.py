"""The pace of a simulated camera."""

from __future__ import annotations

import time


class Pace:
    """Makes frames due at `fps` at most; 0: whenever they are asked for."""

    def __init__(self, fps: float) -> None:
        self._period_s = 1 / fps if fps else 0.0
        self._due_s: float | None = None

    def wait(self, timeout_s: float) -> bool:
        """Wait until the next frame is due, `timeout_s` seconds at most; False if it is not due then."""
        now_s = time.monotonic()
        if self._due_s is None or not self._period_s:
            self._due_s = now_s
        wait_s = self._due_s - now_s
        time.sleep(min(max(wait_s, 0.0), timeout_s))
        if wait_s > timeout_s:
            return False
        # a camera that fell behind does not hurry afterwards
        self._due_s = max(self._due_s, now_s - self._period_s) + self._period_s
        return True
