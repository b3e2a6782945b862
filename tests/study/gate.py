"""A gate before the storage of a mock of AWS: closed, it answers as a storage does that refuses everything."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """An error of S3."""

    status: int
    code: str
    message: str

    def to_xml(self) -> bytes:
        return f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>{self.message}</Message></Error>".encode()


EXPIRED = Refusal(400, "ExpiredToken", "The provided token has expired.")
DENIED = Refusal(403, "AccessDenied", "Access Denied")


class Gate:
    """Hands connections on to `target`; closed, it cuts those that there are, and refuses every request."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.refusal: Refusal | None = None
        self.refused = 0  # requests
        self.address = ""
        self.open_ones: set[socket.socket] = set()

    def close(self, refusal: Refusal) -> None:
        self.refusal = refusal
        for connection in list(self.open_ones):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        self.refusal = None

    def serve(self, client: socket.socket) -> None:
        if self.refusal is not None:
            self.refused += 1
            _refuse(client, self.refusal)
            return
        with socket.create_connection(self.target) as server:
            ends = {client, server}
            self.open_ones |= ends
            back = threading.Thread(target=_hand_on, args=(server, client), daemon=True)
            back.start()
            _hand_on(client, server)
            back.join()
            self.open_ones -= ends


def _hand_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(65536):
            target.sendall(content)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _refuse(client: socket.socket, refusal: Refusal) -> None:
    client.settimeout(0.2)
    with suppress(OSError):  # all of the request: one that is not read to its end is reset with the answer
        while client.recv(65536):
            pass
    body = refusal.to_xml()
    head = f"HTTP/1.1 {refusal.status} Refused\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    with suppress(OSError):
        client.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)


@contextmanager
def gate_before(address: str) -> Iterator[Gate]:
    """`address` is HOST:PORT."""
    host, _, port = address.rpartition(":")
    gate = Gate((host, int(port)))

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            gate.serve(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        gate.address = f"127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield gate
        finally:
            server.shutdown()
            gate.close(DENIED)
