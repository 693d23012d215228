#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Commits numbered rows one after the other and notes when.

    recorder.py SOCKET_DIRECTORY PORT NOTES [LAST]

LAST is the number of the last row that is there: it goes on after it.

For each row one line goes to NOTES: number, time before it was sent, time when its commit was acknowledged (ns,
CLOCK_REALTIME). A row without an answer has '-' as third word. Ends with SIGTERM after the row under way (status
0), or when the server refuses a row or goes away (status 3). Speaks PostgreSQL's protocol 3.0 itself, so that nothing
buffers between the answer and the clock.
"""
import os
import signal
import socket
import struct
import sys
import time


class Refused(Exception):
    pass


class Session:
    def __init__(self, directory, port):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(f"{directory}/.s.PGSQL.{port}")
        self.buffer = b""
        words = b"user\0postgres\0database\0postgres\0application_name\0recorder\0\0"
        self.socket.sendall(struct.pack("!II", 8 + len(words), 196608) + words)
        self.answer()

    def read(self, count):
        while len(self.buffer) < count:
            data = self.socket.recv(65536)
            if not data:
                raise Refused("the server closed the connection")
            self.buffer += data
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def answer(self):
        """Reads up to ReadyForQuery."""
        error = None
        while True:
            kind, length = struct.unpack("!cI", self.read(5))
            body = self.read(length - 4)
            if kind == b"E":
                fields = dict((f[:1], f[1:].decode()) for f in body.split(b"\0") if f)
                error = fields.get(b"M", "?")
                if fields.get(b"S") in ("FATAL", "PANIC"):
                    raise Refused(error)
            elif kind == b"R" and struct.unpack("!I", body[:4])[0] != 0:
                raise Refused("the server asks for a password")
            elif kind == b"Z":
                if error:
                    raise Refused(error)
                return

    def query(self, text):
        body = text.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!I", 4 + len(body)) + body)
        self.answer()


def main():
    directory, port, path = sys.argv[1:4]
    notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    going = True

    def stop(*_):
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    number = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    try:
        session = Session(directory, port)
        while going:
            number += 1
            begun = time.time_ns()
            try:
                session.query(f"INSERT INTO ledger VALUES ({number}, repeat('{number} ', 20))")
            except BaseException:
                os.write(notes, f"{number} {begun} -\n".encode())
                raise
            os.write(notes, f"{number} {begun} {time.time_ns()}\n".encode())
    except (Refused, OSError) as e:
        print(f"recorder: row {number}: {e}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
