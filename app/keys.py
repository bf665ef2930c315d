"""`oneframe keys`: the keys of an encrypted frame stream."""

from __future__ import annotations

import argparse
from pathlib import Path

from oneframe.app.console import Console


def keys(arguments: argparse.Namespace, console: Console) -> None:
    """Make the keys of a publisher and its clients, and tell what to copy where."""
    from oneframe.acquisition.keys import CLIENT_SECRET, SERVER_PUBLIC, create_keys

    folder = Path(arguments.output)
    made = create_keys(folder, arguments.clients)
    console.say(
        f"{folder}: stays on this computer, never share it. Serve with:\n"
        f"  oneframe serve SOURCE --bind tcp://0.0.0.0:5555 --keys {folder}",
        event="keys",
        folder=str(folder),
        server_secret=str(made.server_secret),
        allowed=str(made.allowed),
        clients=[str(client) for client in made.clients],
    )
    for client in made.clients:
        console.say(
            f"{client}: copy this folder to that subscriber's computer in a safe way (a USB stick, scp), then delete "
            "it here. Subscribe there with the SOURCE, in quotes:\n"
            f'  "zmq+tcp://HOST:5555?server_key={client.name}/{SERVER_PUBLIC}'
            f'&client_key={client.name}/{CLIENT_SECRET}"'
        )
