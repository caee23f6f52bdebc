"""How long the API takes to answer, seen by a client on the unix socket.

The client is a bare socket with one connection, its own send and receive included. ``measure`` asks
a daemon that is already there: a real one, or that of ``api_fake.py`` with 1,000 guests.
"""

import socket
import sys
import time
from pathlib import Path


class RawClient:
    """One keep-alive connection; knows only what is needed to find the end of an answer."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))

    def get(self, target: str) -> bytes:
        """Return the body of ``GET target``."""
        self._socket.sendall(f"GET {target} HTTP/1.1\r\nhost: serai\r\n\r\n".encode())
        received = self._socket.recv(1 << 20)
        while b"\r\n\r\n" not in received:
            received += self._socket.recv(1 << 20)
        head, _, body = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(head.decode())
        length = int(head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        parts, missing = [body], length - len(body)
        while missing > 0:
            parts.append(self._socket.recv(1 << 20))
            missing -= len(parts[-1])
        return b"".join(parts)

    def time(self, target: str, count: int) -> list[float]:
        """Return how long each of ``count`` requests took, in seconds, sorted."""
        for _ in range(min(count, 200)):
            self.get(target)
        taken = []
        for _ in range(count):
            begun = time.perf_counter()
            self.get(target)
            taken.append(time.perf_counter() - begun)
        return sorted(taken)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def measure(path: Path, guest: str) -> dict[str, float]:
    """Return p50 and p99 of one guest and p50 of the whole list, in seconds."""
    client = RawClient(path)
    try:
        one = client.time(f"/v1/guests/{guest}", 5000)
        many = client.time("/v1/guests", 50)
    finally:
        client.close()
    return {
        "guest p50": one[len(one) // 2],
        "guest p99": one[len(one) * 99 // 100],
        "list p50": many[len(many) // 2],
    }


def main() -> None:
    """Measure the daemon at the socket that is named, three times; see ``api_fake.py``."""
    if len(sys.argv) != 3:
        sys.exit("usage: api_latency.py SOCKET GUEST")
    for _ in range(3):
        found = measure(Path(sys.argv[1]), sys.argv[2])
        print(" · ".join(f"{what} {seconds * 1e6:.0f} µs" for what, seconds in found.items()))


if __name__ == "__main__":
    main()
