#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The gRPC server with a stock client, and with frames that no decent client sends. ECHO_SERVER is the server program.
Tests name the invariants of src/rpc/rpc_internal.h."""
import errno
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import grpc

sys.path.insert(0, os.environ["ECHO_PB2"])
import echo_pb2 as echo  # noqa: E402

CODE = grpc.StatusCode
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4


def literal(name, value):
    """A header in HPACK: literal, never indexed, no Huffman."""
    return b"\x10" + b"".join(length(len(x)) + x for x in (name.encode(), value.encode() if isinstance(value, str) else value))


def length(n):
    if n < 127:
        return bytes([n])
    n, out = n - 127, bytearray([127])
    while n >= 128:
        out.append(n % 128 + 128)
        n //= 128
    return bytes(out) + bytes([n])


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def request(stream, path="/echo.Echo/Echo", method="POST", content="application/grpc", extra=b"", flags=END_HEADERS):
    block = b"".join(literal(n, v) for n, v in ((":method", method), (":scheme", "http"), (":path", path),
                                                (":authority", "/var/lib/kubelet/plugins/x/csi.sock"),
                                                ("content-type", content), ("te", "trailers")))
    return frame(HEADERS, flags, stream, block + extra)


def message(body=b"", flag=0, size=None):
    return struct.pack(">BI", flag, len(body) if size is None else size) + body


class Raw:
    """A connection by hand."""

    def __init__(self, path, handshake=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)  # blocking: waits for room in the backlog
        self.socket.settimeout(60)
        self.buffer = b""
        if handshake:
            self.send(PREFACE + frame(SETTINGS, 0, 0))

    def send(self, data):
        self.socket.sendall(data)

    def read(self):
        """The next frame: kind, flags, stream, payload; None at the end."""
        while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3], "big"):
            try:
                data = self.socket.recv(65536)
            except (ConnectionResetError, BrokenPipeError):
                return None
            if not data:
                return None
            self.buffer += data
        size = int.from_bytes(self.buffer[:3], "big")
        kind, flags = self.buffer[3], self.buffer[4]
        stream = int.from_bytes(self.buffer[5:9], "big") & 0x7fffffff
        payload, self.buffer = self.buffer[9:9 + size], self.buffer[9 + size:]
        return kind, flags, stream, payload

    def until(self, *kinds):
        while True:
            got = self.read()
            if got is None or got[0] in kinds:
                return got

    def closed(self):
        """Whether the server ends the connection."""
        return self.until(-1) is None

    def close(self):
        self.socket.close()


class Case(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="tmr-", dir="/tmp")
        self.path = os.path.join(self.directory, "echo.sock")
        self.server = subprocess.Popen([os.environ["ECHO_SERVER"], self.path], stdout=subprocess.PIPE)
        self.assertEqual(self.server.stdout.readline(), b"ready\n")
        self.channel = grpc.insecure_channel(f"unix:{self.path}")
        self.stub = self.channel.unary_unary("/echo.Echo/Echo", request_serializer=echo.EchoRequest.SerializeToString,
                                             response_deserializer=echo.EchoResponse.FromString)

    def tearDown(self):
        """Whatever was done to it: it serves on, and ends cleanly (no leak, with the address sanitizer)."""
        if self.server.poll() is None:
            self.assertEqual(self.stub(echo.EchoRequest(text="still there"), timeout=120).text, "still there")
            self.channel.close()
            self.server.send_signal(signal.SIGTERM)
        self.assertEqual(self.server.wait(120), 0)
        self.server.stdout.close()
        self.assertEqual(os.listdir(self.directory), [])
        shutil.rmtree(self.directory)

    def rss_kib(self):
        with open(f"/proc/{self.server.pid}/status", encoding="ascii") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))

    def until(self, condition, what):
        """The server's word on how many calls sleep and how many were cancelled, once `condition` holds for it."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            reply = self.stub(echo.EchoRequest(), timeout=60)
            if condition(reply):
                return reply
            time.sleep(0.01)
        return self.fail(what)

    def fails(self, code, **fields):
        with self.assertRaises(grpc.RpcError) as caught:
            self.stub(echo.EchoRequest(**fields), timeout=120)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        return caught.exception.details()

    def raw(self, handshake=True):
        connection = Raw(self.path, handshake)
        self.addCleanup(connection.close)
        return connection

    def status(self, *frames):
        """grpc-status of stream 1 for what is sent, or the name of what comes instead."""
        connection = self.raw()
        connection.send(b"".join(frames))
        got = connection.until(HEADERS, RST, GOAWAY)
        if got is None or got[0] != HEADERS:
            return "closed" if got is None or got[0] == GOAWAY else "reset"
        text = got[3]
        for status in (b"405", b"415"):
            if status in text:
                return int(status)
        connection.close()
        return find_status(text)


def find_status(block):
    """The server's encoder uses Huffman codes; Debian's Python has no decoder, so it is found by its encoded name."""
    for name in (b"grpc-status", b"\x9a\xca\xc8\xb2\x12\x34\xda\x8f"):
        at = block.find(name)
        if at >= 0:
            value = block[at + len(name):]
            digits = value[1:1 + (value[0] & 0x7f)]
            if not value[0] & 0x80:
                return int(digits)
            return huffman_digits(digits)
    return None


def huffman_digits(data):
    """RFC 7541, appendix B: the ten digits are all that a status needs."""
    codes = {"00000": "0", "00001": "1", "00010": "2", "011001": "3", "011010": "4", "011011": "5", "011100": "6", "011101": "7",
             "011110": "8", "011111": "9"}
    bits, text = "".join(f"{b:08b}" for b in data), ""
    while bits:
        code = next((c for c in codes if bits.startswith(c)), None)
        if code is None:
            break  # padding
        text, bits = text + codes[code], bits[len(code):]
    return int(text)


class Calls(Case):
    def test_messages_of_all_sizes_come_back_whole(self):
        for size in (0, 1, 65535, 65536, 300000, (4 << 20) - 100):
            data = bytes(i % 251 for i in range(size))
            reply = self.stub(echo.EchoRequest(text="ü", data=data, reply_bytes=size, labels={"a": "b"}), timeout=120)
            self.assertEqual((reply.text, reply.sum, len(reply.data)), ("ü", sum(data), size))

    def test_errors_carry_code_and_message(self):
        for number, code in ((errno.EINVAL, CODE.INVALID_ARGUMENT), (errno.ENOENT, CODE.NOT_FOUND), (errno.EEXIST, CODE.ALREADY_EXISTS),
                             (errno.EBUSY, CODE.FAILED_PRECONDITION), (errno.EAGAIN, CODE.UNAVAILABLE), (errno.EALREADY, CODE.ABORTED),
                             (errno.ERANGE, CODE.OUT_OF_RANGE), (errno.ENOSPC, CODE.RESOURCE_EXHAUSTED), (errno.EDQUOT, CODE.RESOURCE_EXHAUSTED), (errno.EIO, CODE.INTERNAL)):
            text = "100 % größer\nals ~ erlaubt"
            self.assertEqual(self.fails(code, fail=number, text=text), text)
        self.assertIn("at most", self.fails(CODE.RESOURCE_EXHAUSTED, reply_bytes=5 << 20))
        self.fails(CODE.RESOURCE_EXHAUSTED, data=b"x" * (5 << 20))

    def test_unknown_methods_and_compression_are_unimplemented(self):
        stub = self.channel.unary_unary("/echo.Echo/None", request_serializer=bytes, response_deserializer=bytes)
        with self.assertRaises(grpc.RpcError) as caught:
            stub(b"", timeout=120)
        self.assertEqual(caught.exception.code(), CODE.UNIMPLEMENTED)
        with self.assertRaises(grpc.RpcError) as caught:
            self.stub(echo.EchoRequest(text="x" * 5000), timeout=120, compression=grpc.Compression.Gzip)
        self.assertEqual(caught.exception.code(), CODE.UNIMPLEMENTED)

    def test_text_is_valid_before_a_handler_sees_it(self):
        stub = self.channel.unary_unary("/echo.Echo/Echo", request_serializer=bytes, response_deserializer=echo.EchoResponse.FromString)
        deep = b""
        for _ in range(40):
            deep = b"\x12" + length_of(deep) + deep
        for body in (b"\x0a\x03a\x00b", b"\x0a\x02\xc3\x28", b"\x0a\x03\xed\xa0\x80", b"\x0a\x02\xc0\xaf", b"\x0a\x05ab", b"\xff",
                     b"\x32\x06\x0a\x01a\x12\x01\x00", b"\x3a\x03\x0a\x01\xff", b"\x3a" + length_of(deep) + deep):
            with self.assertRaises(grpc.RpcError) as caught:
                stub(body, timeout=120)
            self.assertEqual(caught.exception.code(), CODE.INVALID_ARGUMENT, body)

    def test_deadlines_and_cancellations_reach_the_handler(self):  # R1, R2
        left_ms = self.stub(echo.EchoRequest(), timeout=600).left_ms
        self.assertTrue(300000 < left_ms <= 601000, left_ms)  # clients round up, to three digits
        future = self.stub.future(echo.EchoRequest(sleep_ms=600000), timeout=4)
        self.until(lambda now: now.sleeping == 1 or future.done(), "it does not come to its handler")
        with self.assertRaises(grpc.RpcError) as caught:
            future.result()
        self.assertEqual(caught.exception.code(), CODE.DEADLINE_EXCEEDED)
        self.until(lambda now: now.sleeping == 0 and now.cancellations == 1, "the handler goes on")
        future = self.stub.future(echo.EchoRequest(sleep_ms=600000))
        self.until(lambda now: now.sleeping == 1, "it does not come to its handler")
        future.cancel()
        self.until(lambda now: now.sleeping == 0 and now.cancellations == 2, "the handler goes on")

    def test_many_at_once(self):
        futures = [self.stub.future(echo.EchoRequest(text=str(i), sleep_ms=i % 7), timeout=200) for i in range(2000)]
        self.assertEqual([f.result().text for f in futures], [str(i) for i in range(2000)])


def length_of(data):
    n, out = len(data), bytearray()
    while n >= 128:
        out.append(n % 128 + 128)
        n //= 128
    return bytes(out) + bytes([n])


class Frames(Case):
    def test_what_is_no_grpc_is_refused(self):
        body = frame(DATA, END_STREAM, 1, message())
        self.assertEqual(self.status(request(1), body), None)  # a good one: headers without a status
        self.assertEqual(self.status(request(1, path="/nothing"), body), 12)
        self.assertEqual(self.status(request(1), frame(DATA, END_STREAM, 1, b"\x00\x00")), 13)
        self.assertEqual(self.status(request(1), frame(DATA, END_STREAM, 1, message(b"ab", size=9))), 13)
        self.assertEqual(self.status(request(1), frame(DATA, END_STREAM, 1, message() + message())), 13)
        self.assertEqual(self.status(request(1), frame(DATA, 0, 1, message(b"", flag=1))), 12)
        self.assertEqual(self.status(request(1), frame(DATA, 0, 1, message(b"", size=0xffffffff))), 8)
        self.assertEqual(self.status(request(1, flags=END_HEADERS | END_STREAM)), 13)
        self.assertEqual(self.status(request(1, extra=literal("grpc-timeout", "1x")), body), 13)
        self.assertEqual(self.status(request(1, extra=literal(":path", "/echo.Echo/Echo")), body), "reset")
        self.assertEqual(self.status(request(1, path=b"/echo.Echo/Echo\x00"), body), 12)
        self.assertEqual(self.status(request(1, extra=literal("x", "y" * 15500) + 40 * literal("z", "")), body), "reset")

    def test_garbage_ends_the_connection_and_nothing_else(self):
        seed = int(os.environ.get("TIDEMARK_SEED", time.time_ns()))
        print(f"TIDEMARK_SEED={seed}")
        r = random.Random(seed)
        self.assertTrue(self.closed_after(b"GET / HTTP/1.1\r\n\r\n", handshake=False))
        self.assertTrue(self.closed_after(frame(DATA, 0, 0, b"x")))
        self.assertTrue(self.closed_after(frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff")))
        for _ in range(300):
            good = request(1) + frame(DATA, END_STREAM, 1, message(b"\x0a\x02hi"))
            bad = bytearray(good)
            for _ in range(r.randrange(1, 6)):
                bad[r.randrange(len(bad))] = r.randrange(256)
            connection = Raw(self.path)
            connection.send(bytes(bad[:r.randrange(1, len(bad) + 1)]))
            connection.close()

    def closed_after(self, data, handshake=True):
        connection = self.raw(handshake)
        connection.send(data)
        return connection.closed()

    def test_a_client_that_dies_with_calls_under_way(self):  # R1, R4
        for _ in range(30):
            connection = Raw(self.path)
            for i in range(20):
                connection.send(request(2 * i + 1) + frame(DATA, END_STREAM, 2 * i + 1, message(b"\x18\x05")))
            connection.close()

    def flood(self, make, count):
        """Sends until the server hangs up, or all is sent; nothing is read. Returns how much was taken."""
        connection = self.raw()
        connection.socket.settimeout(1)
        sent = 0
        try:
            for i in range(count):
                data = make(i)
                connection.send(data)
                sent += len(data)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            pass
        return sent

    def test_floods_are_bounded(self):  # R3
        before = self.rss_kib()
        self.flood(lambda i: frame(PING, 0, 0, b"12345678") * 100, 5000)
        self.flood(lambda i: frame(SETTINGS, 0, 0) * 100, 5000)
        self.flood(lambda i: request(2 * i + 1) + frame(RST, 0, 2 * i + 1, b"\x00\x00\x00\x08"), 50000)
        self.flood(lambda i: request(1, flags=0) if i == 0 else frame(CONTINUATION, 0, 1, b"\x10\x01x\x7e" + b"y" * 126), 50000)
        self.flood(lambda i: request(2 * i + 1) + frame(DATA, END_STREAM, 2 * i + 1, message(b"\x28\x80\x80\x40")), 1000)
        self.assertEqual(self.stub(echo.EchoRequest(text="alive"), timeout=120).text, "alive")
        if "SANITIZED" not in os.environ:
            self.assertLess(self.rss_kib() - before, 160 * 1024)

    def test_a_slow_reader_holds_up_nobody(self):  # R3
        slow = self.raw()
        slow.send(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0x7fffffff)) + frame(WINDOW, 0, 0, struct.pack(">I", 0x7fff0000)))
        for i in range(20):
            slow.send(request(2 * i + 1) + frame(DATA, END_STREAM, 2 * i + 1, message(b"\x28\x80\x80\x40")))
        for _ in range(100):
            self.stub(echo.EchoRequest(), timeout=60)  # it would wait until the slow one reads
        slow.send(request(41) + frame(DATA, END_STREAM, 41, message()))
        self.assertIsNotNone(slow.until(DATA))

    def test_connections_are_limited_and_given_back(self):
        many = [self.raw(handshake=False) for _ in range(80)]
        time.sleep(0.2)
        for connection in many:
            connection.close()
        other = grpc.insecure_channel(f"unix:{self.path}")
        stub = other.unary_unary("/echo.Echo/Echo", request_serializer=bytes, response_deserializer=bytes)
        self.assertIsNotNone(stub(b"", timeout=120, wait_for_ready=True))
        other.close()

    def test_who_says_nothing_is_cut(self):
        silent = self.raw(handshake=False)
        silent.socket.settimeout(90)
        started = time.monotonic()
        self.assertTrue(silent.closed())
        self.assertGreater(time.monotonic() - started, 8)


class Stopping(Case):
    def test_calls_under_way_end_and_new_ones_are_refused(self):
        futures = [self.stub.future(echo.EchoRequest(text="last", sleep_ms=1000), timeout=120) for _ in range(3)]
        self.until(lambda now: now.sleeping == 3 or any(f.done() for f in futures), "they do not begin")  # and one worker answers this
        self.server.send_signal(signal.SIGTERM)
        self.assertEqual([f.result().text for f in futures], ["last"] * 3)
        self.assertEqual(self.server.wait(120), 0)
        self.channel.close()

    def test_who_still_writes_when_all_is_said_is_not_cut_off(self):
        """As gRPC's clients do: one whose writing fails may pass over answers that lie there for it."""
        client = self.raw()
        client.send(request(1) + frame(DATA, END_STREAM, 1, message()))
        self.assertIsNotNone(client.until(DATA))
        self.server.send_signal(signal.SIGTERM)
        self.assertTrue(client.closed())
        for _ in range(3):
            client.send(frame(PING, 0, 0, bytes(8)))
        client.close()
        self.assertEqual(self.server.wait(120), 0)

    def test_who_does_not_close_keeps_nothing_from_ending(self):
        client = self.raw()
        self.server.send_signal(signal.SIGTERM)
        self.assertTrue(client.closed())
        self.assertEqual(self.server.wait(120), 0)

    def test_a_stale_socket_is_replaced_and_a_file_is_not(self):
        self.server.kill()
        self.server.wait()
        self.assertEqual(os.listdir(self.directory), ["echo.sock"])
        stop = threading.Event()
        refused = []

        def dial():
            while not stop.is_set():
                try:
                    with socket.socket(socket.AF_UNIX) as dialled:
                        dialled.connect(self.path)
                    return
                except ConnectionRefusedError:
                    refused.append(1)  # the stale one: nobody listens
                except FileNotFoundError:
                    refused.append("gap")
        thread = threading.Thread(target=dial)
        thread.start()
        self.server.stdout.close()
        self.server = subprocess.Popen([os.environ["ECHO_SERVER"], self.path], stdout=subprocess.PIPE)
        self.assertEqual(self.server.stdout.readline(), b"ready\n")
        stop.set()
        thread.join()
        self.assertNotIn("gap", refused)
        blocked = os.path.join(self.directory, "file")
        with open(blocked, "w", encoding="ascii"):
            pass
        result = subprocess.run([os.environ["ECHO_SERVER"], blocked], check=False, stderr=subprocess.PIPE)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"something else than a socket", result.stderr)
        os.unlink(blocked)
        self.stub = self.fresh()

    def fresh(self):
        self.channel.close()
        self.channel = grpc.insecure_channel(f"unix:{self.path}")
        return self.channel.unary_unary("/echo.Echo/Echo", request_serializer=echo.EchoRequest.SerializeToString,
                                        response_deserializer=echo.EchoResponse.FromString)


if __name__ == "__main__":
    unittest.main(verbosity=2)
