"""A raw WebSocket and HTTP server for tests: one script for each connection, in order.

It checks what clients must do (masking, whole handshakes) and does what servers must not.
"""
from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(payload: bytes, opcode: int = BINARY, fin: bool = True, rsv: int = 0,
          masked: bool = False, width: int | None = None) -> bytes:
    """Bytes of a frame as a server sends it; *width* forces 2 or 8 bytes of length."""
    size = len(payload)
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if width == 8 or (width is None and size > 65535):
        head += bytes([127 | masked << 7]) + struct.pack(">Q", size)
    elif width == 2 or size > 125:
        head += bytes([126 | masked << 7]) + struct.pack(">H", size)
    else:
        head += bytes([size | masked << 7])
    return head + (b"\0\0\0\0" if masked else b"") + payload


class Client:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer
        self.request = ""
        self.headers: dict[str, str] = {}
        self.closed_with: int | None = None

    async def head(self) -> None:
        raw = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        self.request, *rest = raw.strip().split("\r\n")
        self.headers = {k.lower(): v.strip() for k, v in (h.split(":", 1) for h in rest)}

    async def upgrade(self, behind: bytes = b"", extra: str = "", proof: str | None = None) -> None:
        await self.head()
        key = self.headers["sec-websocket-key"].encode()
        assert len(base64.b64decode(key)) == 16 and self.headers["sec-websocket-version"] == "13"
        proof = proof or base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
        self.writer.write(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                          f"Connection: Upgrade\r\nSec-WebSocket-Accept: {proof}\r\n{extra}\r\n"
                          .encode() + behind)
        await self.writer.drain()

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send(self, message: Any, opcode: int | None = None) -> None:
        """A message: bytes as they are, anything else in the encoding that was asked for."""
        binary = self.headers.get("content-type") == "application/msgpack"
        if not isinstance(message, bytes):
            message = (msgspec.msgpack if binary else msgspec.json).encode(message)
        await self.raw(frame(message, opcode or (BINARY if binary else TEXT)))

    async def frame(self) -> tuple[int, bytes]:
        """The client's next frame; it must be masked and whole."""
        a, b = await self.reader.readexactly(2)
        assert b & 0x80, "a client must mask"
        size = b & 0x7f
        if size == 126:
            size = struct.unpack(">H", await self.reader.readexactly(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", await self.reader.readexactly(8))[0]
        key = await self.reader.readexactly(4)
        data = await self.reader.readexactly(size)
        assert a & 0x80, "our clients send whole messages"
        return a & 15, bytes(c ^ key[i & 3] for i, c in enumerate(data))

    async def receive(self) -> Any:
        """The client's next data message, decoded."""
        while True:
            opcode, data = await self.frame()
            if opcode == BINARY:
                return msgspec.msgpack.decode(data)
            if opcode == TEXT:
                return json.loads(data)
            if opcode == CLOSE:
                raise ConnectionError("the client left")
            assert opcode in (PING, PONG), f"wanted a message, found opcode {opcode}"
            if opcode == PING:
                await self.raw(frame(data, PONG))

    async def until_closed(self) -> None:
        """Answer pings until the client says goodbye or is gone."""
        try:
            while True:
                opcode, data = await self.frame()
                if opcode == PING:
                    await self.raw(frame(data, PONG))
                elif opcode == CLOSE:
                    self.closed_with = struct.unpack(">H", data[:2])[0] if data else None
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    def reset(self) -> None:
        """Drop the connection without a word."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Client], Awaitable[None]]


class Server:
    """``async with Server(first, second, ...)``: each connection runs the next script.

    The last one is used for all that come after it.  A script that raises makes the test
    fail when the server is left.
    """

    def __init__(self, *scripts: Script, context: Any = None):
        self.scripts, self.clients, self.failures = list(scripts), [], []
        self.context = context
        self.tasks: set[asyncio.Task] = set()

    async def __aenter__(self) -> Server:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.context)
        self.port = self.server.sockets[0].getsockname()[1]
        s = "s" * (self.context is not None)
        self.ws, self.http = f"ws{s}://127.0.0.1:{self.port}", f"http{s}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, kind: Any, *_: Any) -> None:
        self.server.close()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.server.wait_closed()
        if kind is None and self.failures:
            raise self.failures[0]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        client = Client(reader, writer)
        self.clients.append(client)
        script = self.scripts[min(len(self.clients), len(self.scripts)) - 1]
        try:
            await script(client)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass                        # the client left, or the test is over
        except BaseException as error:
            self.failures.append(error)
        finally:
            self.tasks.discard(task)
            writer.close()


async def eventually(condition: Callable[[], Any], timeout: float = 10.0) -> None:
    """Wait until *condition* is true."""
    end = asyncio.get_running_loop().time() + timeout
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it never became true"
        await asyncio.sleep(0.002)
