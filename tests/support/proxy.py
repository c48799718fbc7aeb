"""A TCP proxy between a client and a server of ours, which hurts what passes: cuts, delays, and bytes one by one."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PIECE = 1 << 16
# Closing with this sends a reset instead of an orderly end.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Passes on what comes to `address`; `delay` holds each piece up for so many seconds, `piece` is its size."""

    def __init__(self, target: str, port: int = 0) -> None:
        host, _, number = target.rpartition(":")
        self._target = (host, int(number))
        self._listener = socket.create_server(("127.0.0.1", port))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.delay = 0.0
        self.piece = PIECE
        self._refusing = False
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.passed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Resets every connection that there is; how many there were."""
        with self._lock:
            cut, self._open = self._open, set()
        for end in cut:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                # Wakes the thread that reads from it, which closing alone does not.
                end.shutdown(socket.SHUT_RD)
            end.close()
        return len(cut) // 2

    @contextmanager
    def away(self) -> Iterator[None]:
        """Cuts what there is, and takes no connection meanwhile."""
        self._refusing = True
        self.cut()
        try:
            yield
        finally:
            self._refusing = False

    def close(self) -> None:
        # Wakes the thread that waits for connections, and that alone frees the port.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
                continue
            # It may be cut or refused before it is made.
            with suppress(OSError):
                self._join(client)

    def _join(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            raise
        with self._lock:
            self._open |= {client, server}
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while piece := one.recv(self.piece):
                if self.delay:
                    time.sleep(self.delay)
                other.sendall(piece)
                self.passed += len(piece)
        with self._lock:
            self._open -= {one, other}
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
