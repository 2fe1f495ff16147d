"""A server on loopback that answers with whatever bytes it is told to."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread


class Raw:
    """url: without /v1. heads: of the requests that came, each with its request line."""

    def __init__(self, url: str) -> None:
        self.url, self.heads = url, []


@contextmanager
def raw(answer: Callable[[bytes], bytes | Iterator[bytes]], *, host: str = "127.0.0.1", tls=None) -> Iterator[Raw]:
    """answer: of a request's head, the bytes to send; several are sent one by one."""

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                head = b""
                while (line := self.rfile.readline()) not in (b"", b"\r\n"):
                    head += line
                if not head:
                    return
                served.heads.append(head)
                made = answer(head)
                for part in [made] if isinstance(made, bytes) else made:
                    self.wfile.write(part)
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_WR)
                self.connection.settimeout(1)
                while self.connection.recv(1 << 16):  # or what was sent may be lost with what was not read
                    pass

    class Server(ThreadingTCPServer):
        daemon_threads, allow_reuse_address, block_on_close = True, True, False
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def get_request(self):
            connection, address = super().get_request()
            return (tls.wrap_socket(connection, server_side=True) if tls else connection), address

        def handle_error(self, *_: object) -> None:
            pass

    server = Server((host, 0), Handler)
    name = f"[{host}]" if ":" in host else host
    served = Raw(f"http{'s' * bool(tls)}://{name}:{server.server_address[1]}")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def http(body: bytes | str, status: str = "200 OK", *headers: str) -> bytes:
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", "Connection: close", *headers]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + data


def slowly(whole: bytes, *, pause: float) -> Iterator[bytes]:
    for byte in whole:
        yield bytes([byte])
        time.sleep(pause)
