#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The client against a server that does what a real one does seldom: turns away, expires, breaks off, splits frames."""
import base64
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

BUILD = os.environ.get("TIDEMARK_BUILD", "build")
PROBE = f"{BUILD}/tests/integration/kube/kube_probe"
KINDS = {"kind": "APIGroupDiscoveryList", "items": [{"metadata": {}, "versions": [{"version": "v1", "resources": [
    {"resource": "configmaps", "responseKind": {"kind": "ConfigMap"}, "scope": "Namespaced", "verbs": ["get", "list", "watch"]}]}]}]}


class Server:
    """Answers each connection's requests by `handler(method, path, headers, connection)` -> (code, body, headers), or None when it
    has used the connection itself."""

    def __init__(self, handler, kinds=KINDS):
        self.handler = handler
        self.kinds = kinds  # None: the handler tells them, too
        self.requests = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.directory = tempfile.TemporaryDirectory()
        self.kubeconfig = f"{self.directory.name}/config"
        threading.Thread(target=self.serve, daemon=True).start()

    def configure(self, **user):
        with open(self.kubeconfig, "w") as f:
            json.dump({"current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                       "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.socket.getsockname()[1]}"}}],
                       "users": [{"name": "u", "user": user}]}, f)
        return self

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        data = connection.makefile("rwb")
        with connection, data:
            while line := data.readline():
                method, path, _ = line.decode().split(" ", 2)
                headers = {}
                while (h := data.readline().decode().strip()):
                    headers[h.split(":", 1)[0].lower()] = h.split(":", 1)[1].strip()
                data.read(int(headers.get("content-length", 0)))
                self.requests.append((method, path, headers))
                answer = (200, self.kinds, {}) if self.kinds and path in ("/api", "/apis") else self.handler(method, path, headers, data)
                if answer is None:
                    return
                code, body, more = answer
                text = body if isinstance(body, bytes) else json.dumps(body).encode()
                more = {"Content-Length": len(text), "Content-Type": "application/json", **more}
                data.write(f"HTTP/1.1 {code} X\r\n".encode() + "".join(f"{k}: {v}\r\n" for k, v in more.items()).encode() + b"\r\n" + text)
                data.flush()

    def probe(self, *arguments, **environment):
        done = subprocess.run([PROBE, *arguments], stdout=subprocess.PIPE, timeout=100,
                              env={**os.environ, "PROBE_KUBECONFIG": self.kubeconfig, **environment})
        return done.stdout.decode().rstrip("\n").split("\n")

    def calls(self):
        return [r for r in self.requests if r[1] not in ("/api", "/apis")]


def status(code, reason, message="no"):
    return {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}


def answers(*list_of):
    left = list(list_of)
    return lambda *_: left.pop(0)


OBJECT = {"kind": "ConfigMap", "metadata": {"name": "a", "namespace": "n"}}


class Calls(unittest.TestCase):
    def get(self, server):
        return server.probe("get", "configmaps", "n", "a", "-", "-")

    def test_what_the_server_turns_away_is_repeated_after_the_time_it_says(self):
        server = Server(answers((429, status(429, "TooManyRequests"), {"Retry-After": 1}), (503, status(503, "x"), {"Retry-After": 1}),
                                (200, OBJECT, {}))).configure()
        self.assertEqual(self.get(server)[0], "status 200 -")
        self.assertEqual(len(server.calls()), 3)

    def test_a_read_that_breaks_off_is_repeated_and_a_write_is_not(self):
        def half(method, path, headers, data):
            data.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            data.flush()
        left = [half]
        server = Server(lambda *a: left.pop()(*a) if left else (200, OBJECT, {})).configure()
        self.assertEqual(self.get(server)[0], "status 200 -")
        left.append(half)
        made = server.probe("create", "configmaps", "n", "-", "-", json.dumps(OBJECT))
        self.assertTrue(made[-1].startswith("error 104 "), made)  # ECONNRESET: it may have been done
        self.assertEqual([r[0] for r in server.calls()], ["GET", "GET", "POST"])

    def test_a_refused_token_is_read_again_once(self):
        server = Server(lambda m, p, h, d: (200, OBJECT, {}) if h.get("authorization") == "Bearer 2" else (401, status(401, "Unauthorized"), {}))
        server.configure(exec={"apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", (
            'echo x >> $COUNT; echo "{\\"status\\":{\\"token\\":\\"$(grep -c x $COUNT)\\"}}"')],
            "env": [{"name": "COUNT", "value": f"{server.directory.name}/count"}]})
        self.assertEqual(self.get(server)[0], "status 200 -")
        self.assertEqual([r[2]["authorization"] for r in server.calls()], ["Bearer 1", "Bearer 2"])
        third = self.get(server)
        self.assertTrue(third[-1].startswith("error 1 "), third)  # EPERM, and no endless loop
        self.assertIn("refuses the credentials", third[-1])

    def test_what_is_no_api_server_is_said(self):
        server = Server(answers((200, b"<html>", {}))).configure()
        self.assertIn("the answer is not JSON", self.get(server)[-1])


def frame(data, op=2, final=True):
    n = len(data)
    size = bytes([n]) if n < 126 else b"\x7e" + struct.pack(">H", n) if n < 65536 else b"\x7f" + struct.pack(">Q", n)
    return bytes([(128 if final else 0) | op]) + size + data


def read_frame(data):
    head = data.read(2)
    n = head[1] & 127
    n = struct.unpack(">H", data.read(2))[0] if n == 126 else struct.unpack(">Q", data.read(8))[0] if n == 127 else n
    mask, body = data.read(4), data.read(n)
    assert head[1] & 128, "a client masks"
    return head[0] & 15, bytes(b ^ mask[i % 4] for i, b in enumerate(body))


def upgrading(serve, protocol):
    def handler(method, path, headers, data):
        accept = base64.b64encode(hashlib.sha1((headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest())
        data.write(b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept +
                   b"\r\nSec-WebSocket-Protocol: " + protocol.encode() + b"\r\n\r\n")
        data.flush()
        serve(data)
        data.flush()
    return handler


SUCCESS = frame(b'\x03{"status":"Success"}')
FAILURE = frame(b'\x03{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"42"}]}}')


class Exec(unittest.TestCase):
    def test_output_in_parts_with_a_ping_between_and_the_exit_code(self):
        def serve(data):
            data.write(frame(b"\x01he", final=False) + frame(b"?", 9) + frame(b"llo", 0) + frame(b"\x02!") + frame(b"\x01"))
            data.flush()
            self.assertEqual(read_frame(data), (10, b"?"))
            data.write(FAILURE + frame(b"\x03\xe8", 8))
        server = Server(upgrading(serve, "v5.channel.k8s.io")).configure()
        self.assertEqual(server.probe("exec", "n", "p", "ls", "a b&c"), ["exit 42 output hello!"])
        self.assertIn("command=ls&command=a%20b%26c", server.requests[0][1])
        self.assertEqual(server.requests[0][2]["sec-websocket-protocol"], "v5.channel.k8s.io, v4.channel.k8s.io")

    def test_input_and_its_end_where_the_server_knows_it(self):
        for protocol, ends in (("v5.channel.k8s.io", True), ("v4.channel.k8s.io", False)):
            seen = []

            def serve(data):
                seen.append(read_frame(data))
                if ends:
                    seen.append(read_frame(data))
                data.write(SUCCESS)
            server = Server(upgrading(serve, protocol)).configure()
            self.assertEqual(server.probe("exec", "n", "p", "cat", PROBE_INPUT="some text"), ["exit 0 output "])
            self.assertEqual(seen, [(2, b"\x00some text")] + ([(2, b"\xff\x00")] if ends else []))

    def test_a_connection_that_ends_early_is_an_error(self):
        server = Server(upgrading(lambda data: data.write(frame(b"\x01half")), "v5.channel.k8s.io")).configure()
        self.assertIn("the connection ended before the command did", server.probe("exec", "n", "p", "ls")[0])

    def test_a_refusal_is_told_in_the_servers_words(self):
        server = Server(answers((403, status(403, "Forbidden", 'pods "p" is forbidden'), {"Connection": "close"}))).configure()
        self.assertIn('pods "p" is forbidden', server.probe("exec", "n", "p", "ls")[0])


def limit_of(path):
    return int(path.split("limit=")[1].split("&")[0])


def large_objects(method, path, headers, data):
    """More than ten of its objects are more than anybody takes: the first answer is larger than the client's own limit, later ones
    are refused."""
    if "watch=1" in path:
        data.write(b"HTTP/1.1 200 X\r\n\r\n")
        data.flush()
        data.read(1)
        return None
    if limit_of(path) > 100:
        return 200, b" " * ((64 << 20) + 1), {}
    if limit_of(path) > 10:
        return 413, status(413, "RequestEntityTooLarge"), {}
    begin = int(path.split("continue=")[1].split("&")[0]) if "continue=" in path else 0
    items = [{"metadata": {"name": f"c{i}", "namespace": "n", "resourceVersion": "1"}} for i in range(begin, min(begin + limit_of(path), 25))]
    more = {"continue": str(begin + len(items))} if begin + len(items) < 25 else {}
    return 200, {"kind": "ConfigMapList", "metadata": {"resourceVersion": "5", **more}, "items": items}, {}


def large_pages(method, path, headers, data):
    """The same for an informer, which begins with few: it lets the first pass, and asks for fewer."""
    if "watch=1" not in path and limit_of(path) > 20:
        return 200, b" " * (9 << 20), {}
    return large_objects(method, path, headers, data)


class Large(unittest.TestCase):
    def test_a_list_of_large_objects_comes_in_smaller_chunks(self):
        server = Server(large_objects).configure()
        self.assertEqual(server.probe("list", "configmaps", "-", "200")[-1].split(" chunks ")[0], "listed 25")

    def test_so_does_that_of_an_informer(self):
        server = Server(large_pages).configure()
        child = subprocess.Popen([PROBE, "watch", "-", "configmaps"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                 env={**os.environ, "PROBE_KUBECONFIG": server.kubeconfig})
        limit = threading.Timer(90, child.kill)  # or a client that never gets it would be waited for
        limit.start()
        self.assertIn("synced configmaps 25\n", iter(child.stdout.readline, ""))
        limit.cancel()
        child.communicate(input="")


class Foreign(unittest.TestCase):
    """What Go writes and strict readers refuse: a text with NUL, an integer that no int64 holds."""
    ITEM = b'{"metadata":{"namespace":"n","name":"odd","resourceVersion":"4"},"data":{"text":"a\\u0000b"},"most":18446744073709552000}'

    def test_one_object_is_read_and_told_as_it_is(self):
        line = Server(lambda *_: (200, self.ITEM, {})).configure().probe("get", "configmaps", "n", "odd", "-", "-")[1]
        self.assertTrue(line.startswith("answer "), line)
        self.assertEqual(json.loads(line[7:], parse_int=float), json.loads(self.ITEM, parse_int=float))  # as Go reads it

    def test_lists_and_watches_go_on_with_it_among_the_others(self):
        listed = b'{"kind":"ConfigMapList","metadata":{"resourceVersion":"5"},"items":[%s]}' % self.ITEM
        change = b'{"type":"MODIFIED","object":%s}\n' % self.ITEM.replace(b"odd", b"new").replace(b'"4"', b'"6"').replace(b'"}', b'","kind":"ConfigMap"}', 1)
        server = Server(lambda m, p, h, d: (200, change if "watch=1" in p else listed, {})).configure()
        child = subprocess.Popen([PROBE, "watch", "-", "configmaps"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                 env={**os.environ, "PROBE_KUBECONFIG": server.kubeconfig})
        limit = threading.Timer(60, child.kill)
        limit.start()
        lines = [child.stdout.readline().split() for _ in range(3)]
        self.assertEqual([line[0] for line in lines], ["added", "synced", "added"], lines)
        self.assertIn("n/odd", " ".join(lines[0]))
        self.assertIn("n/new", " ".join(lines[2]))
        limit.cancel()
        child.communicate(input="")


class Deep(unittest.TestCase):
    """One object that is nested too deeply, has no name, or is none at all keeps its kind's others from nobody."""
    DEEP = b'{"metadata":{"namespace":"n","name":"deep","resourceVersion":"4"},"spec":%s1%s}' % (b'{"a":' * 400, b"}" * 400)
    ITEMS = [DEEP, b'{"metadata":{},"spec":1}', b"null", b'{"metadata":{"namespace":"n","name":"plain","resourceVersion":"4"}}']

    def test_lists_and_watches_go_on_with_it_among_the_others(self):
        listed = b'{"kind":"ConfigMapList","metadata":{"resourceVersion":"5"},"items":[%s]}' % b",".join(self.ITEMS)
        line = b'{"type":"%s","object":%s}\n'
        changes = line % (b"ADDED", self.DEEP.replace(b'"deep"', b'"deeper"')) + line % (b"ADDED", self.ITEMS[1]) + \
            line % (b"ADDED", self.ITEMS[3].replace(b"plain", b"new"))
        server = Server(lambda m, p, h, d: (200, changes if "watch=1" in p else listed, {})).configure()
        self.assertEqual(server.probe("list", "configmaps", "-", "200")[-1].split(" chunks ")[0], "listed 4")
        child = subprocess.Popen([PROBE, "watch", "-", "configmaps"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                 env={**os.environ, "PROBE_KUBECONFIG": server.kubeconfig})
        limit = threading.Timer(60, child.kill)
        limit.start()
        lines = [child.stdout.readline().rstrip() for _ in range(5)]
        limit.cancel()
        child.communicate(input="")
        self.assertEqual([(line.split() + [""])[0] for line in lines], ["added", "added", "synced", "added", "added"], lines)
        for line, name in zip((lines[0], lines[1], lines[3], lines[4]), ("n/deep", "n/plain", "n/deeper", "n/new")):
            self.assertIn(name, line)

    def test_one_that_is_asked_for_is_refused_rather_than_cut(self):
        lines = Server(lambda *_: (200, self.DEEP, {})).configure().probe("get", "configmaps", "n", "deep", "-", "-")
        self.assertIn("nested more than 256 deep", " ".join(lines))


class Discovery(unittest.TestCase):
    def test_a_server_that_tells_group_by_group(self):
        """Before 1.26, or where it is switched off: one request for each version, the preferred one first."""
        resource = lambda name, kind, namespaced=True: {"name": name, "kind": kind, "namespaced": namespaced, "verbs": ["get", "list", "watch"]}
        paths = {
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/api/v1": {"kind": "APIResourceList", "resources": [resource("pods", "Pod"), resource("pods/log", "Pod"), resource("nodes", "Node", False)]},
            "/apis": {"kind": "APIGroupList", "groups": [
                {"name": "x.example.com", "versions": [{"version": "v1beta1"}, {"version": "v1"}], "preferredVersion": {"version": "v1"}},
                {"name": "away.example.com", "versions": [{"version": "v1"}], "preferredVersion": {"version": "v1"}}]},
            "/apis/x.example.com/v1": {"kind": "APIResourceList", "resources": [resource("things", "Thing")]},
            "/apis/x.example.com/v1beta1": {"kind": "APIResourceList", "resources": [resource("things", "Thing"), resource("olds", "Old")]}}
        server = Server(lambda m, p, h, d: (200, paths[p], {}) if p in paths else (404, status(404, "NotFound"), {}), kinds=None).configure()
        lines = [line.split()[:4] for line in server.probe("kinds")]
        self.assertEqual([line for line in lines if line[0][0] in "/x"], [
            ["/v1", "pods", "Pod", "1"], ["/v1", "nodes", "Node", "0"], ["x.example.com/v1", "things", "Thing", "1"], ["x.example.com/v1beta1", "olds", "Old", "1"]])
        self.assertIn("as=APIGroupDiscoveryList", server.requests[0][2]["accept"])


class Watch(unittest.TestCase):
    def test_a_watch_that_ends_at_once_does_not_spin(self):
        listed = {"kind": "ConfigMapList", "metadata": {"resourceVersion": "5"}, "items": None}
        server = Server(lambda m, p, h, d: (200, b"", {}) if "watch=1" in p else (200, listed, {})).configure()
        child = subprocess.Popen([PROBE, "watch", "-", "configmaps"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                 env={**os.environ, "PROBE_KUBECONFIG": server.kubeconfig})
        self.assertEqual(child.stdout.readline(), "synced configmaps 0\n")
        begun, watches = time.monotonic(), []
        while time.monotonic() - begun < 3 or (len(watches) < 2 and time.monotonic() - begun < 60):  # time itself is what is tested
            time.sleep(0.1)
            watches = [r for r in server.calls() if "watch=1" in r[1]]
        child.communicate(input="")
        self.assertTrue(2 <= len(watches) <= 8, len(watches))
        self.assertTrue(all("resourceVersion=5" in r[1] and "allowWatchBookmarks=true" in r[1] for r in watches))


if __name__ == "__main__":
    unittest.main(verbosity=2)
