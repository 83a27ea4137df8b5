"""An HTTP server of a test's own, in a thread."""
import http.server
import threading
from contextlib import contextmanager


class Handler(http.server.BaseHTTPRequestHandler):
    """Says nothing on standard error; a test adds ``do_GET`` and so on."""

    def log_message(self, *_):
        pass


@contextmanager
def serving(handler, context=None):
    """Answer with *handler*, over TLS with a *context*; yields the port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None       # a client that does not believe us
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
