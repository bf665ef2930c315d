from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oneframe.acquisition import EndOfStream, SourceError, open_source
from oneframe.app.console import Console
from oneframe.app.frames import serve
from oneframe.app.keys import keys

WAIT_S = 20.0


def _make(folder: Path, *clients: str) -> None:
    keys(argparse.Namespace(output=str(folder), clients=list(clients)), Console(as_json=False))


def test_it_prints_what_to_copy_where_and_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "keys"
    _make(folder, "ann", "bob")
    said = capsys.readouterr().out
    assert f"oneframe serve SOURCE --bind tcp://0.0.0.0:5555 --keys {folder}" in said
    for name in ("ann", "bob"):
        assert f"{folder / f'for-{name}'}: copy this folder to that subscriber's computer" in said
        assert f'"zmq+tcp://HOST:5555?server_key=for-{name}/server.key&client_key=for-{name}/client.key_secret"' in said
    for path in folder.rglob("*.key*"):
        for line in path.read_text("utf-8").splitlines():
            if "-key" in line:
                assert line.split('"')[1] not in said
    with pytest.raises(SourceError, match="exists and is never overwritten"):
        _make(folder, "ann")


@pytest.fixture
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("latest", ["", "&latest=1"])
def test_serve_with_keys_reaches_the_client_they_were_made_for(
    latest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _make(tmp_path / "keys", "ann")
    capsys.readouterr()
    home = tmp_path / "keys" / "for-ann"
    n_read, ends = [0], []

    class Watched(Console):
        """Reads in another thread what this one serves, as soon as it says where."""

        def event(self, **facts: Any) -> None:
            super().event(**facts)
            if facts["event"] == "serving":
                assert facts["encrypted"]
                port.append(facts["address"].rpartition(":")[2])
                reader.start()

    port: list[str] = []

    def read() -> None:
        options = (
            f"?server_key={home / 'server.key'}&client_key={home / 'client.key_secret'}&timeout_s={WAIT_S}{latest}"
        )
        source = open_source(f"zmq+tcp://127.0.0.1:{port[0]}{options}")
        try:
            while True:
                n_read[0] += source.read(1.0) is not None
        except EndOfStream as exc:
            ends.append(exc)
        finally:
            source.close()

    reader = threading.Thread(target=read)
    arguments = argparse.Namespace(
        source="sim:beads?width=64&height=64&n=2&fps=50&frames=20", bind="tcp://0.0.0.0:0", wait=True, frames=None,
        seconds=None, keys=str(tmp_path / "keys"), latest_port=None, linger_s=WAIT_S, mode="every",
    )  # fmt: skip
    serve(arguments, Watched(as_json=True))
    reader.join(WAIT_S)
    assert not reader.is_alive()
    done = [json.loads(line) for line in capsys.readouterr().out.splitlines()][-1]
    assert (done["event"], done["sent"], done["stalls"]) == ("done", 20, 0)
    assert [end.n_frames for end in ends] == [20]
    assert n_read[0] == 20 if not latest else 0 < n_read[0] <= 20


@pytest.mark.usefixtures("_signals")
def test_serve_without_keys_stays_on_this_computer() -> None:
    arguments = argparse.Namespace(
        source="sim:beads", bind="tcp://0.0.0.0:0", wait=False, frames=1, seconds=None, keys=None, latest_port=None,
        linger_s=1.0, mode="every",
    )  # fmt: skip
    with pytest.raises(SourceError, match=r"needs keys on both sides \(oneframe keys -o FOLDER\)"):
        serve(arguments, Console(as_json=True))
