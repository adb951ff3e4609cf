# SPDX-License-Identifier: Apache-2.0
"""Ports of 127.0.0.1 for the servers that tests and scripts start.

    /usr/bin/python3 tests/e2e/ports.py N    (prints N different free ports on one line)
"""

import random
import socket
import sys

# Below the ports that the kernel gives to clients (ip_local_port_range), so that no connection of a
# test takes one before its server listens.
PORTS = range(20000, 32768)

# A name of the abstract namespace for each port that was handed out. Nobody else binds it while this
# process lives, so neither a later call nor a test that runs beside this one gets the same port.
_names = []


def free_port():
    for _ in range(1000):
        port = random.choice(PORTS)
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0kivi-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            name.close()
            continue
        _names.append(name)
        return port
    raise RuntimeError(f"1,000 ports of {PORTS.start} to {PORTS.stop - 1} were taken")


if __name__ == "__main__":
    print(*(free_port() for _ in range(int(sys.argv[1]))))
