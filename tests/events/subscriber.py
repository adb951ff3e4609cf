# SPDX-License-Identifier: Apache-2.0
"""A subscriber of KV events, written from the description of the format alone (pyzmq, msgpack)."""

import msgpack
import zmq


class Subscriber:
    """Follows one server. `blocks` maps the hash of a unit of tokens in the device's memory to all
    tokens up to its end, and `host_blocks` that of one in the host's memory."""

    def __init__(self, endpoint, topic=""):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt_string(zmq.SUBSCRIBE, topic)
        self.socket.connect(endpoint)
        self.blocks, self.host_blocks = {}, {}
        self.topics = set()
        self.sequences = []
        self.counts = {"BlockStored": 0, "BlockRemoved": 0, "AllBlocksCleared": 0}
        self.block_sizes = set()

    def close(self):
        self.context.destroy(linger=0)

    def read(self, timeout_s):
        """Applies everything that arrives until nothing does for `timeout_s`. Returns the number of
        batches."""
        batches = 0
        while self.socket.poll(timeout_s * 1000):
            topic, sequence, payload = self.socket.recv_multipart()
            self.topics.add(topic.decode())
            self.apply(sequence, payload)
            batches += 1
        return batches

    def apply(self, sequence, payload):
        assert len(sequence) == 8, sequence
        self.sequences.append(int.from_bytes(sequence, "big"))
        time, events, rank = msgpack.unpackb(payload)
        assert isinstance(time, float) and time > 1.6e9, time
        assert rank is None, rank
        for event in events:
            self.counts[event[0]] += 1
            getattr(self, event[0])(*event[1:])

    def BlockStored(self, hashes, parent, tokens, block_size, lora_id, medium, lora_name, extra_keys):
        assert (lora_id, lora_name, extra_keys) == (None, None, None)
        assert len(hashes) * block_size == len(tokens), (len(hashes), block_size, len(tokens))
        self.block_sizes.add(block_size)
        blocks = self.of(medium)
        path = () if parent is None else blocks[parent]
        for i, name in enumerate(hashes):
            path += tuple(tokens[i * block_size:(i + 1) * block_size])
            assert name not in self.blocks and name not in self.host_blocks, "a hash was used twice"
            blocks[name] = path

    def BlockRemoved(self, hashes, medium):
        for name in hashes:
            self.of(medium).pop(name, None)

    def AllBlocksCleared(self):
        self.blocks.clear()
        self.host_blocks.clear()

    def of(self, medium):
        return {"GPU": self.blocks, "CPU": self.host_blocks}[medium]

    def replay(self, endpoint, first, timeout_s=20):
        """Asks for the batches from number `first` on and applies them."""
        socket = self.context.socket(zmq.DEALER)
        socket.connect(endpoint)
        socket.send_multipart([b"", first.to_bytes(8, "big")])
        while True:
            assert socket.poll(timeout_s * 1000), "the replay does not end"
            empty, sequence, payload = socket.recv_multipart()
            assert empty == b""
            if int.from_bytes(sequence, "big", signed=True) == -1:
                assert payload == b""
                break
            self.apply(sequence, payload)
        socket.close(linger=0)
