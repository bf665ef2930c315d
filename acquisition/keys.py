"""CurveZMQ keys: made once, kept in files, checked at the publisher's door.

A publisher has a pair of its own (`server.key_secret`) and a folder with the public keys of the clients it lets in
(`allowed/`); a subscriber has a pair of its own and the publisher's public key. Frames are then encrypted, and neither
end talks to a stranger. Keys are given as paths, never as text: a command line is visible to every user of a machine.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import struct
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.utils import z85

from oneframe.acquisition.source import SourceError

logger = logging.getLogger(__name__)

SERVER_SECRET, SERVER_PUBLIC, ALLOWED = "server.key_secret", "server.key", "allowed"
CLIENT_SECRET = "client.key_secret"

_DOMAIN = b"oneframe"
_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_MAX_KEY_FILE_BYTES = 16 * 1024
_POLL_MS = 100


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """What `create_keys` wrote."""

    server_secret: Path
    """Stays where the publisher runs."""

    allowed: Path
    """Folder with the public keys of the clients; stays there too."""

    clients: tuple[Path, ...]
    """One folder a client, new ones only: copy each to that client's computer, then delete it here."""


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """The keys of a subscriber, as ZeroMQ takes them."""

    server_public: bytes
    public: bytes
    secret: bytes = field(repr=False)

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Let a socket talk to that one publisher only, and prove who it is."""
        socket.curve_serverkey = self.server_public
        socket.curve_publickey = self.public
        socket.curve_secretkey = self.secret


def create_keys(folder: Path, clients: Sequence[str]) -> KeyFolder:
    """Make the keys of a publisher and of its clients, or of more clients for a publisher that has its own.

    Secret files have the mode 0600 and all folders 0700. On Windows modes do not exist: the files inherit the rights of
    the folder they are made in, so make them in your own profile.

    Parameters
    ----------
    folder : Path
        New, or one that this function made before.
    clients : sequence of str
        Names of letters, digits, `-` and `_`.

    Raises
    ------
    SourceError
        If a name is none, a file is there already (nothing is ever overwritten), or the folder cannot be written to.
    """
    for name in clients:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise SourceError(f"expected a client's name of letters, digits, - and _, got {name!r}; choose another")
    if len(set(clients)) < len(clients):
        raise SourceError(f"expected a different name for each client, got {', '.join(clients)}")
    server, public, allowed = folder / SERVER_SECRET, folder / SERVER_PUBLIC, folder / ALLOWED
    made = tuple(folder / f"for-{name}" for name in clients)
    for path in (*made, *(allowed / f"{name}.key" for name in clients)):
        if path.exists():
            raise SourceError(f"{path} exists and is never overwritten; choose another name for the client")
    if folder.exists() and not (server.exists() and public.exists()):
        raise SourceError(f"expected a new folder, or one with {SERVER_SECRET} and {SERVER_PUBLIC}, got {folder}")
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700)
            _write_pair(folder, "server", public, server)
        allowed.mkdir(mode=0o700, exist_ok=True)
        for name, home in zip(clients, made, strict=True):
            home.mkdir(mode=0o700)
            _write_pair(home, name, allowed / f"{name}.key", home / CLIENT_SECRET)
            _write_new(home / SERVER_PUBLIC, public.read_bytes(), 0o644)
    except OSError as exc:
        raise SourceError(f"cannot write keys to {folder} ({exc.strerror}); choose another folder") from exc
    return KeyFolder(server, allowed, made)


def read_client_keys(server_public: Path, client_secret: Path) -> ClientKeys:
    """Read the keys of a subscriber.

    Raises
    ------
    SourceError
        If a file is missing, holds another kind of key, or a secret one can be read by others.
    """
    public, secret = _read_pair(client_secret)
    return ClientKeys(_read_key(server_public)[0], public, secret)


class Doorkeeper:
    """Lets in the clients whose public key is in a folder, and nobody else.

    Answers ZeroMQ's authentication requests (ZAP, rfc.zeromq.org/spec/27) of one context from a thread of its own. Not
    `zmq.auth.thread`, because that needs tornado on Windows. Should the thread ever die, `check` raises, and ZeroMQ
    lets nobody in: the sockets of `secure` demand an answer.

    Raises
    ------
    SourceError
        If a key file is missing or unreadable, or no client is allowed.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], server_secret: Path, allowed_clients: Path) -> None:
        self._public, self._secret = _read_pair(server_secret)
        self._allowed = _read_allowed(allowed_clients)
        self._stop = threading.Event()
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ZAP_ADDRESS)
        self.n_refused = 0
        """Handshakes with a key that is not on the list."""
        self._thread = threading.Thread(target=self._answer, name="oneframe-doorkeeper", daemon=True)
        self._thread.start()

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Let a socket talk to allowed clients only; before it is bound."""
        socket.curve_server = True
        socket.curve_publickey = self._public
        socket.curve_secretkey = self._secret
        socket.set(zmq.ZAP_DOMAIN, _DOMAIN)
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it a missing doorkeeper means an open door

    def check(self) -> None:
        """Raise SourceError if nobody keeps the door any more."""
        if not (self._thread.is_alive() or self._stop.is_set()):
            raise SourceError("the check of client keys broke down, new subscribers are refused; start serve again")

    def close(self) -> None:
        """Stop; a second call does nothing."""
        self._stop.set()
        self._thread.join()

    def _answer(self) -> None:
        try:
            while not self._stop.is_set():
                if self._socket.poll(_POLL_MS):
                    self._socket.send_multipart(self._verdict(self._socket.recv_multipart()))
        except Exception:
            logger.exception("the check of client keys broke down; new subscribers are refused")
        finally:
            self._socket.close()

    def _verdict(self, request: Sequence[bytes]) -> list[bytes]:
        version, request_id, domain, _, _, mechanism, *credentials = [*request, *[b""] * (6 - len(request))]
        known = (version, domain, mechanism, len(credentials)) == (b"1.0", _DOMAIN, b"CURVE", 1)
        if known and credentials[0] in self._allowed:
            return [b"1.0", request_id, b"200", b"OK", b"", b""]
        self.n_refused += 1
        if self.n_refused == 1:
            logger.warning("refused a subscriber whose key is not on the list; further ones are only counted")
        return [b"1.0", request_id, b"400", b"key not allowed", b"", b""]


def _read_allowed(folder: Path) -> frozenset[bytes]:
    """Public keys of a folder, in the 32-byte form of ZAP."""
    if not folder.is_dir():
        raise SourceError(f"expected a folder with the clients' public keys, got {folder}; make one: oneframe keys")
    keys = frozenset(z85.decode(_read_key(path)[0]) for path in sorted(folder.glob("*.key")))
    if not keys:
        raise SourceError(f"expected public keys (*.key) in {folder}, got none; nobody could subscribe")
    return keys


def _read_pair(path: Path) -> tuple[bytes, bytes]:
    """Public and secret key of a secret file that only its owner can read."""
    public, secret = _read_key(path)
    if secret is None:
        raise SourceError(f"expected a secret key (*.key_secret), got {path}, a public one")
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise SourceError(f"others can read the secret key {path}; run: chmod 600 {path}")
    return public, secret


def _read_key(path: Path) -> tuple[bytes, bytes | None]:
    if re.fullmatch(r"[!-~]{40}", str(path)) and not path.exists():  # perhaps the key itself: not into a message
        raise SourceError("expected the path of a key file, got no such file; keys are never given as text")
    try:
        if not path.is_file() or path.stat().st_size > _MAX_KEY_FILE_BYTES:
            raise SourceError(f"expected a key file, got {path}; make keys with: oneframe keys -o FOLDER")
        public, secret = load_certificate(path)
        for key in (public, secret):
            if key is not None and len(z85.decode(key)) != 32:
                raise ValueError("length")
    except OSError as exc:
        raise SourceError(f"cannot read the key file {path} ({exc.strerror})") from exc
    except (ValueError, LookupError, struct.error) as exc:
        raise SourceError(f"{path} is no CurveZMQ key file; make keys with: oneframe keys -o FOLDER") from exc
    return public, secret


def _write_pair(folder: Path, name: str, public: Path, secret: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # mode 0700: pyzmq writes files that others may read
        made_public, made_secret = create_certificates(scratch, name)
        _write_new(secret, Path(made_secret).read_bytes(), 0o600)
        _write_new(public, Path(made_public).read_bytes(), 0o644)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode), "wb") as file:
        file.write(content)
