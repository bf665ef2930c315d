"""The frame stream between two processes: plain against encrypted (CurveZMQ), throughput and latency.

Run: python benchmarks/stream.py [--rounds 5] [--seconds 3] [-o results.json]

Both kinds take turns in one run; printed are medians over the rounds and the ratio of the two. Frames are uint16, as a
camera gives them. Throughput: a recording as fast as the reader takes it, nothing lost, pixels touched once per 64
bytes. Latency: a live source at a camera's rate, from `send` to the frame in the reader's hands (one clock).
Also: how long a CRC-32 over the pixels would take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from oneframe.acquisition import EndOfStream, Frame, SourceInfo, open_source
from oneframe.acquisition.keys import CLIENT_SECRET, SERVER_PUBLIC, KeyFolder, create_keys
from oneframe.acquisition.publisher import Publisher

CASES = ((512, 100.0), (2048, 20.0))
"""Edge of a frame in pixels; camera rate for the latency, frames per second."""


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    arguments.add_argument("--read", metavar="URL", help=argparse.SUPPRESS)
    arguments.add_argument("-o", "--output", type=Path)
    chosen = arguments.parse_args()
    if chosen.read:
        read(chosen.read)
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        keys = create_keys(Path(folder) / "keys", ["bench"])
        for edge, rate_hz in CASES:
            results[f"{edge}x{edge}"] = case(edge, rate_hz, keys, chosen.rounds, chosen.seconds)
    if chosen.output:
        chosen.output.write_text(json.dumps(results, indent=1))


def case(edge: int, rate_hz: float, keys: KeyFolder, rounds: int, seconds: float) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 4000, (edge, edge), dtype=np.uint16) for _ in range(4)]
    found: dict[str, list[dict[str, Any]]] = {"plain": [], "curve": []}
    for _ in range(rounds):
        for kind, rounds_of in found.items():
            fast = stream(images, None, seconds, keys if kind == "curve" else None)
            steady = stream(images, rate_hz, seconds, keys if kind == "curve" else None)
            rounds_of.append({"fps": fast["fps"], "p50_ms": steady["p50_ms"], "p99_ms": steady["p99_ms"]})
    medians = {kind: {key: float(np.median([r[key] for r in rs])) for key in rs[0]} for kind, rs in found.items()}
    mb = 2 * edge**2 / 1e6
    for kind, m in medians.items():
        print(
            f"{edge}x{edge} {kind}: {m['fps']:.0f} frames/s, {m['fps'] * mb:.0f} MB/s; at {rate_hz:g} frames/s latency "
            f"p50 {m['p50_ms']:.2f} ms, p99 {m['p99_ms']:.2f} ms",
            flush=True,
        )
    plain, curve = medians["plain"], medians["curve"]
    crc_ms = crc(images[0])
    print(
        f"{edge}x{edge} curve/plain: throughput {curve['fps'] / plain['fps']:.2f}, latency "
        f"{curve['p50_ms'] / plain['p50_ms']:.2f}; CRC-32 of the pixels {crc_ms:.2f} ms, "
        f"{100 * crc_ms * plain['fps'] / 1e3:.0f} % of the time a plain frame takes",
        flush=True,
    )
    return {"rounds": found, "median": medians, "crc_ms": crc_ms}


def stream(images: list[Any], rate_hz: float | None, seconds: float, keys: KeyFolder | None) -> dict[str, Any]:
    """Send frames to a reader in another process, at a rate or as fast as it takes them; return what it measured."""
    settings = {} if keys is None else {"server_keys": keys.server_secret, "allowed_clients": keys.allowed}
    publisher = Publisher("tcp://127.0.0.1:0", **settings)
    url = f"zmq+{publisher.address}"
    if keys is not None:
        home = keys.clients[0]
        url += f"?server_key={home / SERVER_PUBLIC}&client_key={home / CLIENT_SECRET}"
    reader = subprocess.Popen([sys.executable, __file__, "--read", url], stdout=subprocess.PIPE, text=True)
    try:
        if not publisher.wait_for_subscriber(30.0):
            raise SystemExit("the reader did not connect")
        publisher.start(SourceInfo("bench:", live=rate_hz is not None))
        start_s = next_s = time.monotonic()
        index = 0
        while time.monotonic() - start_s < seconds:
            if rate_hz is not None:
                time.sleep(max(0.0, next_s - time.monotonic()))
                next_s += 1.0 / rate_hz
            if publisher.send(Frame(images[index % len(images)], index, time.time()), timeout_s=1.0):
                index += 1
        publisher.end("over", index)
        answer: dict[str, Any] = json.loads(reader.communicate(timeout=60)[0])
    finally:
        reader.kill()
        publisher.close()
    if answer["n"] != index:
        print(f"  {index - answer['n']} of {index} frames lost", flush=True)
    return answer


def read(url: str) -> None:
    """Read to the end and print frames per second and latency."""
    source = open_source(url)
    arrived_s, ages_ms = [], []
    try:
        while True:
            frame = source.read(1.0)
            if frame is not None:
                now_s = time.time()
                arrived_s.append(now_s)
                ages_ms.append(1e3 * (now_s - frame.time_s))
                frame.pixels.reshape(-1)[::32].max()
    except EndOfStream:
        source.close()
    skip = len(ages_ms) // 10
    print(
        json.dumps(
            {
                "n": len(arrived_s),
                "fps": (len(arrived_s) - 1) / (arrived_s[-1] - arrived_s[0]),
                "p50_ms": float(np.quantile(ages_ms[skip:], 0.5)),
                "p99_ms": float(np.quantile(ages_ms[skip:], 0.99)),
            }
        )
    )


def crc(image: Any) -> float:
    """Return the time of a CRC-32 over an image, milliseconds."""
    times_s = []
    for _ in range(15):
        start_s = time.perf_counter()
        zlib.crc32(image.reshape(-1).view(np.uint8).data)
        times_s.append(time.perf_counter() - start_s)
    return 1e3 * float(np.median(times_s))


if __name__ == "__main__":
    main()
