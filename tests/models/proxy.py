"""A TCP proxy that can be cut, and that can lose what the server answers.

Either side of a connection may end it at any moment: an error of a socket says no more than that.
"""
from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Forwards connections to *host*:*port*.

    `cut` ends all connections and refuses new ones until `heal`.  `lose` is asked of every request
    head (bytes, at the start of what a client sends); when it says true, the request goes on to
    the server, and the connection ends before the answer.
    """

    def __init__(self, host, port, lose=lambda head: False):
        self.target, self.lose, self.lost = (host, port), lose, 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._pairs, self._lock, self._down = set(), threading.Lock(), False
        self._threads = []
        self._start(self._serve)

    def _start(self, function, *args):
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.cut()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._server.close()

    def cut(self):
        self._down = True
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(pair)

    def heal(self):
        self._down = False

    def _end(self, pair):
        with self._lock:
            self._pairs.discard(pair)
        for one in pair:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _serve(self):
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self._down:
                client.close()
                continue
            pair = client, socket.create_connection(self.target)
            for one in pair:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.add(pair)
            state = {"mute": False}
            self._start(self._both, pair, state)

    def _both(self, pair, state):
        with pair[0], pair[1]:
            back = threading.Thread(target=self._back, args=(pair, state), daemon=True)
            back.start()
            self._up(pair, state)
            back.join()

    def _up(self, pair, state):
        client, server = pair
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                state["mute"] = state["mute"] or self.lose(data)
                server.sendall(data)
        self._end(pair)

    def _back(self, pair, state):
        client, server = pair
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if state["mute"]:           # it has been done, and nobody hears of it
                    self.lost += 1
                    break
                client.sendall(data)
        self._end(pair)
