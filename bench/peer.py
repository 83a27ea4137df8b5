"""The other side of a latency bench: a market data generator and an order sink in one process.

It speaks just enough of Alpaca's protocol for our pipeline and for alpaca-py, and it stamps:
``sent`` is taken right before the frame with a quote is handed to the socket, ``received``
right after the first bytes of the order that answers it were read.  It runs on one core; the
pipeline under test has the other.

The sink refuses every order (403), so positions stay flat and every order ends at once; what
is measured lies before that.
"""
from __future__ import annotations

import base64
import hashlib
import json
import os
import select
import socket
import ssl
import struct
import sys
import time

import msgspec

SYMBOL = "ACME"
REFUSED = (b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: 54\r\n"
           b"\r\n" + b'{"code":40310000,"message":"insufficient buying power"}'[:54])
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(payload: bytes) -> bytes:
    """One unmasked binary WebSocket frame."""
    if len(payload) < 126:
        return bytes((0x82, len(payload))) + payload
    return struct.pack(">BBH", 0x82, 126, len(payload)) + payload


def timestamp(ns: int) -> msgspec.msgpack.Ext:
    """MessagePack timestamp, 8-byte form."""
    return msgspec.msgpack.Ext(-1, struct.pack(
        ">Q", (ns % 1_000_000_000) << 34 | ns // 1_000_000_000))


def quote(i: int, encoder: msgspec.msgpack.Encoder) -> bytes:
    """The i-th quote: the mid wanders, the imbalance changes sign each time."""
    tick = 10_000 + (i * 7919 % 41) - 20
    bid, ask = (900, 100) if i & 1 else (100, 900)
    return frame(encoder.encode([{
        "T": "q", "S": SYMBOL, "bx": "V", "bp": tick / 100, "bs": bid + i % 50, "ax": "V",
        "ap": (tick + 1) / 100, "as": ask + i % 37, "c": ["R"], "z": "C",
        "t": timestamp(time.time_ns())}]))


def unmask(data: bytes) -> bytes:
    """Payload of one small masked client frame."""
    size = data[1] & 127
    at = 2
    if size == 126:
        size, at = struct.unpack_from(">H", data, 2)[0], 4
    key = data[at:at + 4]
    return bytes(b ^ key[i & 3] for i, b in enumerate(data[at + 4:at + 4 + size]))


class Peer:
    """Serve one data stream and any number of order connections.

    Parameters
    ----------
    count : int
        Quotes to send.
    rate : float, per second
        Quotes are sent at this pace, and never before the order that answers the last one
        came or *patience* passed.
    certificate : str
        Key and certificate, PEM: speak TLS.
    """

    def __init__(self, count: int, rate: float, patience: float = 0.05,
                 certificate: str = "") -> None:
        self.tls = None
        if certificate:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(certificate)
        self.count, self.gap, self.patience = count, 1 / rate, patience
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.poll = select.epoll()
        self.poll.register(self.listener.fileno(), select.EPOLLIN)
        self.connections: dict[int, socket.socket] = {self.listener.fileno(): self.listener}
        self.buffers: dict[int, bytes] = {}
        self.data: socket.socket | None = None
        self.ready = False
        self.sent: list[int] = []
        self.received: list[int] = []
        self.encoder = msgspec.msgpack.Encoder()

    def _upgrade(self, conn: socket.socket, head: bytes) -> None:
        key = next(line.split(b":", 1)[1].strip() for line in head.split(b"\r\n")
                   if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        conn.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                     b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        self._say(conn, [{"T": "success", "msg": "connected"}])
        self.data = conn

    def _say(self, conn: socket.socket, what: object) -> None:
        conn.sendall(frame(self.encoder.encode(what)))

    def _control(self, conn: socket.socket, data: bytes) -> None:
        """Client frames of the handshake: auth, then subscribe (perhaps fragmented)."""
        if b"auth" in unmask(data):
            self._say(conn, [{"T": "success", "msg": "authenticated"}])
        elif (data[0] & 15) in (1, 2, 0) and b"subscribe" in unmask(data):
            self._say(conn, [{"T": "subscription", "trades": [SYMBOL], "quotes": [SYMBOL],
                              "bars": [], "updatedBars": [], "dailyBars": [], "statuses": [],
                              "lulds": [], "corrections": [], "cancelErrors": []}])
            self.ready = True

    def step(self, wait: float) -> None:
        """Handle what the sockets have, at most *wait* seconds from now."""
        for fd, _ in self.poll.poll(wait):
            if fd == self.listener.fileno():
                conn, _ = self.listener.accept()
                conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.tls is not None:
                    conn.settimeout(10)         # of the handshake; then it waits for epoll alone
                    conn = self.tls.wrap_socket(conn, server_side=True)
                    conn.settimeout(None)
                self.poll.register(conn.fileno(), select.EPOLLIN)
                self.connections[conn.fileno()] = conn
                self.buffers[conn.fileno()] = b""
                continue
            conn = self.connections[fd]
            try:
                data = conn.recv(65536)
                while isinstance(conn, ssl.SSLSocket) and conn.pending():
                    data += conn.recv(65536)
            except OSError:
                data = b""
            now = time.monotonic_ns()
            if not data:
                self.poll.unregister(fd)
                del self.connections[fd]
                conn.close()
                if conn is self.data:
                    self.data, self.ready = None, False
                continue
            if conn is self.data:
                self._control(conn, data)
                continue
            data = self.buffers[fd] + data
            while True:
                end = data.find(b"\r\n\r\n")
                if end < 0:
                    break
                head = data[:end]
                if head.startswith(b"GET") and b"pgrade" in head:
                    self._upgrade(conn, head)
                    data = data[end + 4:]
                    break
                size = 0
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length"):
                        size = int(line.split(b":")[1])
                if len(data) < end + 4 + size:
                    break
                data = data[end + 4 + size:]
                if head.startswith(b"POST"):
                    if len(self.received) < len(self.sent):
                        self.received.append(now)
                    conn.sendall(REFUSED)
                else:
                    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
            self.buffers[fd] = data

    def run(self, deadline: float = 600) -> None:
        """Send the quotes; ``sent`` and ``received`` are filled, 0 where no order came."""
        end = time.monotonic() + deadline
        while not self.ready:
            self.step(0.1)
            if time.monotonic() > end:
                raise SystemExit("nobody subscribed")
        due = time.monotonic()
        for i in range(self.count):
            due = max(due + self.gap, time.monotonic())
            while (left := due - time.monotonic()) > 0:
                self.step(left)
            if self.data is None or time.monotonic() > end:
                break
            payload = quote(i, self.encoder)
            self.sent.append(time.monotonic_ns())
            self.data.sendall(payload)
            limit = time.monotonic() + self.patience
            while len(self.received) < len(self.sent):
                left = limit - time.monotonic()
                if left <= 0:
                    self.received.append(0)
                    break
                self.step(left)


def main() -> None:
    count, rate, core, out = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    os.sched_setaffinity(0, {core})
    peer = Peer(count, rate, certificate=sys.argv[5] if len(sys.argv) > 5 else "")
    print(json.dumps({"port": peer.port}), flush=True)
    peer.run()
    with open(out, "w") as file:
        json.dump({"sent": peer.sent, "received": peer.received}, file)


if __name__ == "__main__":
    main()
