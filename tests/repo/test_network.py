"""The suite has no network, so the library can have none that a test would miss."""

from __future__ import annotations

import ast
import socket
from pathlib import Path

import pytest

NETWORK_MODULES = {"ftplib", "http.client", "requests", "smtplib", "telnetlib", "urllib.request", "urllib3", "xmlrpc"}


def test_a_connection_is_refused_before_it_leaves() -> None:
    with socket.socket() as client, pytest.raises(RuntimeError, match="the suite has no network"):
        client.connect(("192.0.2.1", 80))


def test_loopback_is_refused_without_the_mark() -> None:
    with socket.socket() as client, pytest.raises(RuntimeError, match="loopback"):
        client.connect(("127.0.0.1", 9))


def test_a_name_is_not_looked_up() -> None:
    with pytest.raises(RuntimeError, match="the suite has no network"):
        socket.create_connection(("example.invalid", 443))


@pytest.mark.loopback
def test_loopback_works_with_the_mark() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        with peer:
            client.sendall(b"x")
            assert peer.recv(1) == b"x"


def test_no_module_of_the_library_is_a_network_client(root: Path) -> None:
    found = []
    for file in sorted((root / "simulator").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found += [f"{file.relative_to(root)}:{node.lineno}: {name}" for name in names if name in NETWORK_MODULES]
    assert not found
