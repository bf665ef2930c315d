"""What the tags of a Micro-Manager image say, whichever way it came."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

_LONGEST_WAIT_S = 1800.0
"""An image that seems to have waited longer has another clock (time zone, summer time) than this process."""


def taken_s(tags: Mapping[str, Any], seen_s: float) -> float:
    """Return when the core received the image, seconds since the Unix epoch.

    Parameters
    ----------
    tags : mapping
        The time is local time in `TimeReceivedByCore`.
    seen_s : float
        When this process saw it: the answer if the tag is missing or absurd.
    """
    try:
        received_s = datetime.fromisoformat(str(tags["TimeReceivedByCore"])).timestamp()
    except (KeyError, ValueError, OSError, OverflowError):
        return seen_s
    return min(received_s, seen_s) if abs(seen_s - received_s) < _LONGEST_WAIT_S else seen_s
