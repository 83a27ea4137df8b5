"""An authority of our own for tests of TLS: certificates, and server contexts that use them."""
import asyncio
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _openssl(*arguments) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """Signs what it is asked to; ``file`` is its own certificate."""

    def __init__(self, folder: Path):
        if shutil.which("openssl") is None:
            pytest.skip("no openssl command to make a certificate")
        self.folder, self.file, self.count = folder, folder / "ca.pem", 0
        _openssl("req", "-x509", *EC, "-days", 2, "-keyout", folder / "ca.key", "-out", self.file,
                 "-subj", "/CN=an authority of the tests",
                 "-addext", "basicConstraints=critical,CA:TRUE",
                 "-addext", "keyUsage=critical,keyCertSign")

    def issue(self, names: str = "DNS:localhost,IP:127.0.0.1,IP:::1", days: int = 2) -> Path:
        """Key and certificate in one file, for a server called *names*; *days* may be past."""
        self.count += 1
        at = self.folder / f"{self.count}"
        (at.with_suffix(".ext")).write_text(f"subjectAltName={names}\n")
        _openssl("req", *EC, "-keyout", at.with_suffix(".key"), "-out", at.with_suffix(".csr"),
                 "-subj", "/CN=a server")
        _openssl("x509", "-req", "-in", at.with_suffix(".csr"), "-CA", self.file,
                 "-CAkey", self.folder / "ca.key", "-set_serial", self.count, "-days", days,
                 "-extfile", at.with_suffix(".ext"), "-out", at.with_suffix(".crt"))
        out = at.with_suffix(".pem")
        out.write_text(at.with_suffix(".crt").read_text() + at.with_suffix(".key").read_text())
        return out

    def server(self, certificate: Path | None = None,
               newest: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A context for a server; speaks nothing newer than *newest*."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate or self.issue())
        if newest is not None:
            context.set_ciphers("ALL:@SECLEVEL=0")      # else nothing old is spoken at all
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
        return context


class Front:
    """Speaks TLS on a port of its own and passes everything on to a plain one, and back.

    Parameters
    ----------
    context : ssl.SSLContext
    to : int
        The plain port, on this machine.
    """

    def __init__(self, context: ssl.SSLContext, to: int):
        self._context, self._to = context, to
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _main(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        mine = asyncio.all_tasks() - {asyncio.current_task()}
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)

    async def _serve(self, reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", self._to)

        async def pass_on(source, target):
            try:
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
            except OSError:
                pass                    # one side is gone: the other one follows
            finally:
                target.close()

        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))
