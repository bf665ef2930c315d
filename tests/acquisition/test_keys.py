from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from zmq.auth import load_certificate

from oneframe.acquisition import SourceError, open_source
from oneframe.acquisition.keys import CLIENT_SECRET, SERVER_PUBLIC, create_keys, read_client_keys
from oneframe.acquisition.publisher import Publisher

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_side_gets_what_it_needs_and_no_more(tmp_path: Path) -> None:
    made = create_keys(tmp_path / "keys", ["ann", "bob"])
    assert sorted(_tree(tmp_path / "keys")) == [
        "allowed/ann.key", "allowed/bob.key", "for-ann/client.key_secret", "for-ann/server.key",
        "for-bob/client.key_secret", "for-bob/server.key", "server.key", "server.key_secret",
    ]  # fmt: skip
    server_public, server_secret = load_certificate(made.server_secret)
    assert server_secret is not None
    for name, home in zip(("ann", "bob"), made.clients, strict=True):
        keys = read_client_keys(home / SERVER_PUBLIC, home / CLIENT_SECRET)
        assert keys.server_public == server_public
        assert load_certificate(made.allowed / f"{name}.key") == (keys.public, None)
        assert keys.secret not in repr(keys).encode()
        for path in home.iterdir():
            assert server_secret not in path.read_bytes()
    for public in (tmp_path / "keys" / SERVER_PUBLIC, *made.allowed.iterdir()):
        assert b"secret-key" not in public.read_bytes()


@posix
def test_secret_files_are_their_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = create_keys(tmp_path / "keys", ["ann"])
    finally:
        os.umask(before)
    for path in (tmp_path / "keys").rglob("*.key_secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (tmp_path / "keys", made.allowed, *made.clients):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_client_can_be_added_and_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    create_keys(folder, ["ann"])
    before = _tree(folder)
    create_keys(folder, ["bob"])
    after = _tree(folder)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 3
    for clients in (["ann"], ["eve", "bob"]):
        with pytest.raises(SourceError, match="exists and is never overwritten; choose another name"):
            create_keys(folder, clients)
    assert _tree(folder) == after


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 65, "é", "a/b"])
def test_a_name_that_is_no_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected a client's name of letters"):
        create_keys(tmp_path / "keys", [name])
    assert not (tmp_path / "keys").exists()


def test_a_folder_of_other_things_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected a different name for each client"):
        create_keys(tmp_path / "keys", ["ann", "ann"])
    with pytest.raises(SourceError, match="expected a new folder, or one with server"):
        create_keys(tmp_path, ["ann"])
    with pytest.raises(SourceError, match="cannot write keys to"):
        create_keys(tmp_path / "missing" / "keys", ["ann"])


def test_a_wrong_key_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    made = create_keys(tmp_path / "keys", ["ann"])
    public, secret = made.clients[0] / SERVER_PUBLIC, made.clients[0] / CLIENT_SECRET
    broken = {
        "empty": b"", "binary": bytes(range(256)), "short": b'public-key = "abc"\n', "no value": b"public-key\n",
        "letters": b'public-key = "' + b"~" * 40 + b'"\n', "huge": b"public-key" * 5000,
    }  # fmt: skip
    for name, content in broken.items():
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(0o600)
        for server, client in ((path, secret), (public, path)):
            with pytest.raises(SourceError, match=r"no CurveZMQ key file|expected a key file"):
                read_client_keys(server, client)
    with pytest.raises(SourceError, match=r"expected a key file, got .*; make keys with: oneframe keys"):
        read_client_keys(tmp_path / "none", secret)
    with pytest.raises(SourceError, match="expected a secret key"):
        read_client_keys(public, public)


def test_a_key_given_as_text_is_not_repeated(tmp_path: Path) -> None:
    made = create_keys(tmp_path / "keys", ["ann"])
    text = (load_certificate(made.server_secret)[1] or b"").decode()
    with pytest.raises(SourceError, match="keys are never given as text") as caught:
        read_client_keys(Path(text.replace("/", "+")), made.clients[0] / CLIENT_SECRET)
    assert text[:10] not in str(caught.value)


@posix
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    made = create_keys(tmp_path / "keys", ["ann"])
    made.server_secret.chmod(0o640)
    with pytest.raises(SourceError, match=r"others can read the secret key .*; run: chmod 600"):
        Publisher("tcp://127.0.0.1:0", server_keys=made.server_secret, allowed_clients=made.allowed)


def test_a_publisher_without_clients_or_with_half_its_keys_does_not_start(tmp_path: Path) -> None:
    made = create_keys(tmp_path / "keys", [])
    with pytest.raises(SourceError, match=r"expected public keys \(\*\.key\) in .*, got none; nobody could subscribe"):
        Publisher("tcp://127.0.0.1:0", server_keys=made.server_secret, allowed_clients=made.allowed)
    with pytest.raises(SourceError, match="expected a folder with the clients' public keys"):
        Publisher("tcp://127.0.0.1:0", server_keys=made.server_secret, allowed_clients=tmp_path / "none")
    with pytest.raises(SourceError, match="got one of them; give both"):
        Publisher("tcp://0.0.0.0:0", server_keys=made.server_secret)


def test_keys_open_other_computers_addresses(tmp_path: Path) -> None:
    made = create_keys(tmp_path / "keys", ["ann"])
    home = made.clients[0]
    url = f"zmq+tcp://lab-pc.example:5555?server_key={home / SERVER_PUBLIC}&client_key={home / CLIENT_SECRET}"
    open_source(url).close()
    with pytest.raises(SourceError, match="expected a key file"):
        open_source(url.replace("for-ann", "for-eve"))
