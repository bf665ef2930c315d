"""Where a stream may go: on this machine, or anywhere with keys; used by both of its ends."""

from __future__ import annotations

import ipaddress
import re

import zmq

from oneframe.acquisition.source import SourceError


def host_and_port(text: str, match: re.Match[str] | None, advice: str, has_keys: bool) -> tuple[str, str]:
    """Host and port that were matched, if the host is on the loopback interface or there are keys."""
    if match is None or not re.fullmatch(r"[A-Za-z0-9._-]+|\*", match[1]):
        raise SourceError(f"expected a host and a port, got {text}; {advice}")
    host = "127.0.0.1" if match[1] == "localhost" else match[1]
    try:
        local = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        local = False
    if not (local or has_keys):
        raise SourceError(
            f"{text} leaves this computer, which needs keys on both sides (oneframe keys -o FOLDER); without "
            f"them {advice}"
        )
    return host, match[2]


def keep_alive(socket: zmq.Socket[bytes]) -> None:
    """Notice a peer whose computer is gone.

    TCP's own probes, which a peer that stands still answers too; ZeroMQ's heartbeat would disconnect it.
    """
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, 5)
