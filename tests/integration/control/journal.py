# SPDX-License-Identifier: Apache-2.0
"""Finding things in the files of a journal (docs/formats/journal.md), to damage them."""
import glob
import os
import struct

BLOCK = 4096
WRITE = 1


def frames(path):
    """(block, first LSN, records) of the frames of a segment; a record: (op, volume, LBA, sectors, payload block)."""
    with open(path, "rb") as f:
        data = f.read()
    at = 1
    while (at + 1) * BLOCK <= len(data) and data[at * BLOCK:at * BLOCK + 4] == b"TMRF":
        header = data[at * BLOCK:(at + 1) * BLOCK]
        count, = struct.unpack_from("<H", header, 28)
        first, = struct.unpack_from("<Q", header, 40)
        blocks, = struct.unpack_from("<I", header, 84)
        records = []
        for i in range(count):
            volume, op, _, payload, lba, length = struct.unpack_from("<IBBHQI", header, 128 + 48 * i)
            records.append((op, volume, lba, length, at + payload))
        yield at, first, records
        at += blocks


def segments(directory):
    return sorted(glob.glob(os.path.join(directory, "segment-*.tmj")))


def a_write(directory, volume, last=False):
    """The payload of the first or last write to a volume: (segment's path, offset in it, LSN)."""
    found = None
    for path in segments(directory):
        for _, first, records in frames(path):
            for i, (op, owner, _, _, block) in enumerate(records):
                if op == WRITE and owner == volume:
                    found = path, block * BLOCK, first + i
                    if not last:
                        return found
    assert found, "the journal has no write to volume %d" % volume
    return found


def flip(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)
        f.seek(offset)
        f.write(bytes([byte[0] ^ 0x40]))
