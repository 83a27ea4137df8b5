"""A broker for tests of who cancels: open orders in a list, and every way of not answering."""
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Broker:
    """Behaviour is set by attributes; *asked* is what was asked, in order.

    status      of every answer, instead of the right one; 0 = as it should be
    stubborn    how many DELETEs change nothing before one works
    hang        seconds before each answer
    """

    def __init__(self):
        self.orders, self.positions = [], {}
        self.asked = []
        self.status, self.stubborn, self.hang, self.closes = 0, 0, 0.0, True
        self._number = 0

    def add(self, count=1):
        for _ in range(count):
            self._number += 1
            self.orders.append({"id": f"o{self._number}", "client_order_id": f"c{self._number}",
                                "symbol": "ACME", "status": "new",
                                "submitted_at": f"2026-11-25T10:00:00.{self._number:06d}Z"})

    def did(self, what):
        return sum(line == what for line in self.asked)

    def answer(self, method, path):
        self.asked.append(f"{method} {path}")
        time.sleep(self.hang)
        if self.status:
            return self.status, {"message": "not now"}
        if (method, path) == ("GET", "/v2/orders"):
            return 200, list(self.orders)
        if (method, path) == ("DELETE", "/v2/orders"):
            rows = [{"id": o["id"], "status": 200} for o in self.orders]
            if self.stubborn:
                self.stubborn -= 1
            else:
                self.orders.clear()
            return 207, rows
        held = [{"symbol": s, "qty": q} for s, q in self.positions.items()]
        if (method, path) == ("GET", "/v2/positions"):
            return 200, held
        if (method, path) == ("DELETE", "/v2/positions"):
            rows = []
            for p in held:
                self.add()
                rows.append({"symbol": p["symbol"], "status": 200, "body": self.orders[-1]})
            if self.closes:
                self.positions.clear()
                self.orders.clear()
            return 207, rows
        return 404, {"message": "endpoint not found."}


@contextmanager
def broker():
    """A :class:`Broker` that listens; its address is ``url``."""
    made = Broker()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self):
            status, body = made.answer(self.command, self.path.partition("?")[0])
            data = json.dumps(body).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                self.close_connection = True        # nobody waited for it

        do_GET = do_DELETE = respond

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
