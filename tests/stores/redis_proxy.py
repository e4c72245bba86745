"""A network that can fail, between a worker and its Redis."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from types import TracebackType
from typing import Self

from tests.servers import free_port


class Proxy:
    """Forwards TCP connections, freezes them, breaks them, or swallows answers.

    Args:
        port: Where to forward to.

    Attributes:
        frozen: Whether nothing passes in any direction, connections standing: what
            a lost route or a silent firewall looks like.
        mute: Whether requests pass and answers do not.
        sent: Bytes from clients to the server so far.
        received: Bytes back.

    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = free_port()
        self.frozen = False
        self.mute = False
        self.sent = 0
        self.received = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        self._wake, self._woken = socket.socketpair()
        self._stopped = False
        self._leading = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped = True
        self._wake.send(b"x")
        self._thread.join()
        self.cut()
        for end in (self._listener, self._wake, self._woken):
            end.close()

    def lead(self, port: int) -> None:
        """Break every connection, and forward new ones to another port."""
        with self._leading:
            self.target = port
            self.cut()

    def cut(self) -> None:
        """Close every connection."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _run(self) -> None:
        while not self._stopped:
            ends = [] if self.frozen else [end for pair in self._pairs for end in pair]
            listeners = [] if self.frozen else [self._listener]
            watched = [*listeners, self._woken, *ends]
            ready: list[socket.socket] = []
            with contextlib.suppress(OSError, ValueError):  # Cut in between.
                ready, _, _ = select.select(watched, [], [], 0.02)
            for end in ready:
                if end is self._listener:
                    with self._leading:
                        self._accept()
                elif end is not self._woken and not self.frozen:
                    self._forward(end)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            client.close()
            return
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.append((client, server))

    def _forward(self, end: socket.socket) -> None:
        pair = next((pair for pair in self._pairs if end in pair), None)
        if pair is None:
            return
        client, server = pair
        passed = False
        with contextlib.suppress(OSError):
            data = end.recv(65536)
            if data and end is client:
                self.sent += len(data)
                server.sendall(data)
            elif data and not self.mute:
                self.received += len(data)
                client.sendall(data)
            passed = bool(data)
        if not passed:
            with contextlib.suppress(ValueError):
                self._pairs.remove(pair)
            client.close()
            server.close()


class TlsProxy:
    """Speaks TLS before a server that was built without it, as terminators do.

    Args:
        context: The certificate to show.
        port: Where the server listens.

    """

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self.target = port
        self.port = free_port()
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._ends: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, name="tls proxy", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for end in (self._listener, *self._ends):
            end.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            client = self._context.wrap_socket(plain, server_side=True)
        except OSError:
            plain.close()
            return
        server = socket.create_connection(("127.0.0.1", self.target))
        self._ends += [client, server]
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)
