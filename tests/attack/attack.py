# SPDX-License-Identifier: Apache-2.0
"""What the attack tests share: raw sockets, and the server's memory and CPU time from /proc."""

import os
import pathlib
import socket
import struct
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

slow = unittest.skipUnless(os.environ.get("KIVI_ATTACK_SLOW") == "1",
                           "takes long: set KIVI_ATTACK_SLOW=1")


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def read_all(connection):
    """All bytes until the server closes; what came until then where it resets."""
    received = b""
    try:
        while data := connection.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass
    return received


def read_reply(connection, received=b""):
    """(status, head, body) of one reply with a Content-Length, of which `received` is there; status 0
    where there is none. Interim replies (100) are passed over."""
    while b"\r\n\r\n" not in received:
        data = connection.recv(1 << 16)
        if not data:
            return 0, received, b""
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        return read_reply(connection, body)
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        data = connection.recv(1 << 16)
        if not data:
            break
        body += data
    return int(head.split(b" ")[1]), head, body


def send_raw(server, request):
    """Sends bytes on a connection of their own; (status, head, body) of the first reply."""
    with connect(server) as connection:
        connection.sendall(request)
        return read_reply(connection)


def post(path, body, *headers, host="localhost"):
    """The bytes of a POST of JSON."""
    body = body if isinstance(body, bytes) else body.encode()
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json",
             f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def reset(connection):
    """Closes with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def cpu_seconds(server):
    """User and system time of the server's process."""
    fields = pathlib.Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(server, name="VmRSS"):
    """VmRSS or VmHWM of the server's process, in MB."""
    for line in pathlib.Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1000
    return 0.0
