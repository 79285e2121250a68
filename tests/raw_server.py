"""A server on this machine that answers each request with the bytes of a script, whatever HTTP says of them."""

import socketserver
import threading
from contextlib import suppress


class _Handler(socketserver.StreamRequestHandler):
    def handle(self):
        path = self.rfile.readline().split()[1].decode()
        headers = b"".join(iter(self.rfile.readline, b"\r\n"))
        self.server.asked.append(path)
        with suppress(OSError):  # the client has hung up
            for part in self.server.script(path, headers):
                self.wfile.write(part)


class RawServer(socketserver.ThreadingTCPServer):
    """On loopback, at a port that is free; stops when the block ends.

    `script(path, headers)` gives the parts of an answer; it may never end, as each write fails when the client has hung up.
    """

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.asked = script, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request, client_address):
        """A client that has hung up is no news."""
