# SPDX-License-Identifier: Apache-2.0
"""Known defects of the gRPC library that is linked, by their numbers. docs/security-grpc.md says how
each of them stands here."""

import ctypes
import os
import socket
import unittest

import attack_harness as attack
import h2
from attack_harness import COMPLETE, harness

SO_ZEROCOPY = 60  # asm-generic/socket.h; Python has no name for it
PIDFD_OPEN, PIDFD_GETFD = 434, 438  # the numbers of the system calls, on every machine
FIRST_OF_TABLE = bytes([0x80 | 62])  # an indexed field: the newest entry of the dynamic table


def fields(*pairs, kind=b"\0"):
    """Literal header fields. Kind 0x00 does not enter the table, 0x40 does."""
    return b"".join(kind + h2.literal(name) + h2.literal(value) for name, value in pairs)


def sockets_of(pid):
    """The sockets of another process, as sockets of this one."""
    system = ctypes.CDLL(None, use_errno=True).syscall
    process = system(PIDFD_OPEN, pid, 0)
    if process < 0:
        raise OSError(ctypes.get_errno(), "pidfd_open")
    found = []
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    continue
            except OSError:
                continue  # closed since
            copy = system(PIDFD_GETFD, process, int(name), 0)
            if copy < 0 and ctypes.get_errno() == 9:  # EBADF: closed since
                continue
            if copy < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            found.append(socket.socket(fileno=copy))
    finally:
        os.close(process)
    return found


class LibraryDefects(harness.WithServer):
    @staticmethod
    def request():
        message = attack.stubs().kivi.GenerateRequest(text="a tale", max_tokens=1)
        return h2.message(message.SerializeToString())

    def call(self, connection, block):
        """Sends a call with this header block; the payload of its reply, None if none came."""
        stream, connection.next_stream = connection.next_stream, connection.next_stream + 2
        try:
            connection.send(h2.frame(h2.HEADERS, h2.END_HEADERS, stream, block))
            connection.data(stream, self.request())
        except OSError:
            return None  # the server has closed the connection
        return connection.end_of(stream) or None

    def test_cve_2024_7246_a_wrong_header_does_not_spoil_later_entries_of_the_table(self):
        wrong = {
            "not base64": fields(("x-bin", "!!!!")),
            "not base64, in the table": fields(("x-bin", "!!!!"), kind=b"\x40"),
            "no timeout": fields(("grpc-timeout", "x"), kind=b"\x40"),
            "an unknown te": fields(("te", "nonsense"), kind=b"\x40"),
            "an unknown encoding": fields(("grpc-encoding", "nonsense"), kind=b"\x40"),
            "a status that is no number": fields(("grpc-status", "x"), kind=b"\x40"),
            "a Huffman code without an end": b"\x40" + h2.literal("x-a") + b"\x84\xff\xff\xff\xff",
        }
        ended = set()
        for name, header in wrong.items():
            with self.subTest(name), h2.Connection(self.server.grpc_port) as connection:
                self.call(connection, h2.header_block(COMPLETE) + header +
                          fields(("x-later", "value"), kind=b"\x40"))
                # Another client of the same proxy: its call refers to the entry.
                reply = self.call(connection, h2.header_block(COMPLETE) + FIRST_OF_TABLE)
                if reply is None:
                    self.assertFalse(connection.is_open(1), "open, but the later call failed")
                    ended.add(name)
                    continue
                response = attack.stubs().kivi.CompleteResponse.FromString(reply[5:])
                self.assertEqual(response.usage.completion_tokens, 1)
        print(f"ended their connection: {sorted(ended)}")
        self.assertEqual(attack.grpc_code(self.server), "OK")

    def test_an_entry_of_the_table_is_known_to_later_calls(self):
        """Else the test above could not see a spoilt one."""
        with h2.Connection(self.server.grpc_port) as connection:
            block = h2.header_block(COMPLETE) + fields(("x-later", "value"), kind=b"\x40")
            self.assertTrue(self.call(connection, block))
            self.assertTrue(self.call(connection, h2.header_block(COMPLETE) + FIRST_OF_TABLE))
        with h2.Connection(self.server.grpc_port) as connection:  # its table has no such entry
            self.assertIsNone(self.call(connection, h2.header_block(COMPLETE) + FIRST_OF_TABLE))
        self.assertEqual(attack.grpc_code(self.server), "OK")

    def test_cve_2024_11407_the_kernel_copies_what_is_sent(self):
        with h2.Connection(self.server.grpc_port) as connection:
            self.assertTrue(self.call(connection, h2.header_block(COMPLETE)))
            try:
                sockets = sockets_of(self.server.process.pid)
            except OSError as error:
                attack.harness.not_run(self, f"this machine does not lend the sockets of a child: {error}")
            seen = 0
            for one in sockets:
                with one:
                    if one.family not in (socket.AF_INET, socket.AF_INET6):
                        continue
                    if one.getsockname()[1] != self.server.grpc_port:
                        continue
                    seen += one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
                    self.assertEqual(one.getsockopt(socket.SOL_SOCKET, SO_ZEROCOPY), 0)
            self.assertGreater(seen, 0, "the connection is not among the server's sockets")

    def test_cve_2023_1428_unknown_values_before_long_headers_do_not_end_the_process(self):
        plain = h2.header_block(COMPLETE)
        long = fields(*[(f"x-{i}", "v" * 1000) for i in range(12)])
        scheme = plain.replace(h2.literal(":scheme") + h2.literal("http"),
                               h2.literal(":scheme") + h2.literal("x"))
        self.assertNotEqual(scheme, plain)
        for name, block in {
                "te": plain + fields(("te", "x")) + long,
                "te, in the table": plain + fields(("te", "x"), kind=b"\x40") + long,
                "scheme": scheme + long,
                "grpclb_client_stats": plain + fields(("grpclb_client_stats", "x")) + long,
                "grpclb_client_stats, in the table":
                    plain + fields(("grpclb_client_stats", "x"), kind=b"\x40") + long}.items():
            with self.subTest(name), h2.Connection(self.server.grpc_port) as connection:
                self.call(connection, block)
                self.assertIsNone(self.server.process.poll(), "the process has ended")
        self.assertEqual(attack.grpc_code(self.server), "OK")


if __name__ == "__main__":
    unittest.main()
