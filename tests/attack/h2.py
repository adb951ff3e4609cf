# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 by hand, for attacks that no client library sends. Frames go out as they are asked for,
whatever flow control or the protocol says. Header names and values are not compressed."""

import socket
import struct
import time

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def literal(text):
    data = text if isinstance(text, bytes) else text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, out = len(data) - 127, b"\x7f"
    while rest >= 128:
        out += bytes([rest % 128 + 128])
        rest //= 128
    return out + bytes([rest]) + data


def header_block(path, *more):
    pairs = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"),
             ("content-type", "application/grpc"), ("te", "trailers"), *more]
    return b"".join(b"\x00" + literal(name) + literal(value) for name, value in pairs)


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(payload, flag=0):
    """gRPC's framing of a message; flag 1 says that it is compressed."""
    return struct.pack(">BI", flag, len(payload)) + payload


class Connection:
    def __init__(self, port, timeout=10, window=1 << 30):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.timeout = timeout
        self.received = b""
        self.closed = False
        self.next_stream = 1
        # The initial window of the streams, so that replies never wait for us.
        try:
            self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, window)) +
                                frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", max(1, window))))
        except OSError:  # a server that refuses connections is sometimes faster than we are
            self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def open(self, path, *more, end=False):
        """Sends a call's headers; its stream."""
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        flags = END_HEADERS | (END_STREAM if end else 0)
        self.send(frame(HEADERS, flags, stream, header_block(path, *more)))
        return stream

    def data(self, stream, payload, end=True):
        pieces = [payload[i:i + 16384] for i in range(0, len(payload), 16384)] or [b""]
        for i, piece in enumerate(pieces):
            last = end and i + 1 == len(pieces)
            self.send(frame(DATA, END_STREAM if last else 0, stream, piece))

    def next_frame(self, until):
        """(kind, flags, stream, payload); None where the time is over or the server has closed."""
        while True:
            if len(self.received) >= 9:
                length = int.from_bytes(self.received[:3], "big")
                if len(self.received) >= 9 + length:
                    kind, flags, stream = struct.unpack(">BBI", self.received[3:9])
                    payload = self.received[9:9 + length]
                    self.received = self.received[9 + length:]
                    return kind, flags, stream, payload
            left = until - time.monotonic()
            if left <= 0 or self.closed:
                return None
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65536)
            except socket.timeout:
                return None
            except OSError:
                data = b""
            if not data:
                self.closed = True
            self.received += data

    def answer_settings(self, kind, flags):
        if kind == SETTINGS and not flags & ACK:
            try:
                self.send(frame(SETTINGS, ACK, 0))
            except OSError:
                self.closed = True

    def end_of(self, stream, seconds=10):
        """Waits until the server ends `stream`; the payloads of its DATA frames, or None where it
        did not end in time."""
        ended, data = self.ends_of([stream], seconds)
        return data if ended else None

    def ends_of(self, streams, seconds=10):
        """Waits until the server has ended all `streams`; (whether it did, all DATA payloads)."""
        waiting, data = set(streams), b""
        until = time.monotonic() + seconds
        while waiting:
            got = self.next_frame(until)
            if got is None:
                return self.closed, data
            kind, flags, stream, payload = got
            self.answer_settings(kind, flags)
            if kind == DATA and stream in waiting:
                data += payload
            if kind == GOAWAY and payload[4:8] != b"\0\0\0\0":
                return True, data
            if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
                waiting.discard(stream)
        return True, data

    def is_open(self, seconds):
        """Whether the connection stays open for `seconds`."""
        until = time.monotonic() + seconds
        while (got := self.next_frame(until)) is not None:
            self.answer_settings(got[0], got[1])
        return not self.closed


class FlowingConnection(Connection):
    """A connection that sends as much as the server's windows allow, and waits for more room."""

    def __init__(self, port, timeout=10, window=1 << 30):
        super().__init__(port, timeout, window)
        self.connection_window = self.initial_window = 65535
        self.stream_windows = {}

    def data(self, stream, payload, end=True):
        at = 0
        self.stream_windows.setdefault(stream, self.initial_window)
        while at < len(payload):
            room = min(16384, len(payload) - at, self.connection_window,
                       self.stream_windows[stream])
            if room <= 0:
                got = self.next_frame(time.monotonic() + self.timeout)
                if got is None:
                    raise OSError("the server gives no room")
                self.take(*got)
                continue
            last = end and at + room == len(payload)
            self.send(frame(DATA, END_STREAM if last else 0, stream, payload[at:at + room]))
            at += room
            self.connection_window -= room
            self.stream_windows[stream] -= room

    def take(self, kind, flags, stream, payload):
        self.answer_settings(kind, flags)
        if kind == SETTINGS and not flags & ACK:
            for i in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[i:i + 6])
                if name == 4:
                    for known in self.stream_windows:
                        self.stream_windows[known] += value - self.initial_window
                    self.initial_window = value
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            more = struct.unpack(">I", payload)[0]
            if stream == 0:
                self.connection_window += more
            else:
                self.stream_windows[stream] = (
                    self.stream_windows.get(stream, self.initial_window) + more)
