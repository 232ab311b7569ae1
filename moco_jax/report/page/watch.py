"""Serves the page to this machine while a run goes on, and renews it when workdirs change."""

import contextlib
import hashlib
import http.server
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

HOST = "127.0.0.1"
SECONDS = 10.0  # for a request to arrive, and for its answer to be taken
AT_ONCE = 32  # open requests at most; others are turned away


class Server(http.server.ThreadingHTTPServer):
    """A server with a thread for each request, and at most `AT_ONCE` requests at a time.

    A request that does not end holds one thread.
    """

    request_queue_size = (
        128  # waiting to be answered or turned away; clients beyond try again after a second
    )

    def __init__(self, *arguments: Any):
        """Take the arguments of `ThreadingHTTPServer`."""
        self._free = threading.BoundedSemaphore(AT_ONCE)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or close the connection at once where too many are open."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one request, for at most `SECONDS` however slowly it comes."""
        late = threading.Timer(SECONDS, self._cut, [request])
        late.daemon = True
        late.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            late.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that is gone; print what else went wrong."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    @staticmethod
    def _cut(request: Any) -> None:
        with contextlib.suppress(OSError):  # the request may just have ended by itself
            request.shutdown(socket.SHUT_RDWR)


class Watch:
    """Serves a page on the loopback address and renews it.

    Attributes:
        address: the page's address for a browser.
    """

    def __init__(self, make: Callable[[str], str], stamp: Callable[[], Any], port: int = 0):
        """Make the page, and listen.

        Args:
            make: returns the page, given a name for its state.
            stamp: returns another value whenever the page may be out of date.
            port: 0 for any that is free.

        Raises:
            OSError: something else listens there.
        """
        self._make, self._stamp = make, stamp
        self._lock = threading.Lock()
        self._server = Server((HOST, port), self._handler())
        self.address = f"http://{HOST}:{self._server.server_address[1]}/"
        self._renew()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _renew(self) -> None:
        stamp = self._stamp()
        version = hashlib.sha256(repr(stamp).encode()).hexdigest()[:16]
        page = self._make(version).encode()
        with self._lock:
            self._page, self._version, self._of = page, version, stamp

    def look(self) -> bool:
        """Renew the page if its stamp has changed, and return whether it had."""
        if self._stamp() == self._of:
            return False
        self._renew()
        return True

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        watch = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                # A page from elsewhere, whose name was made to mean this address, gets no answer.
                known = (self.headers.get("Host") or "").rpartition(":")[0] in (HOST, "localhost")
                with watch._lock:
                    answers = {
                        "/": (watch._page, "text/html; charset=utf-8"),
                        "/version": (watch._version.encode(), "text/plain"),
                    }
                if not known or self.path not in answers:
                    return self.send_error(404 if known else 403)
                content, kind = answers[self.path]
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: Any) -> None:
                return

        return Handler
