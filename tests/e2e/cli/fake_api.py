# SPDX-License-Identifier: Apache-2.0
"""A stand-in for `tidemark up`: HTTP/JSON on a Unix socket, with canned answers and a log of what was asked."""
import http.server
import json
import os
import socketserver
import threading
import time
from urllib.parse import parse_qs, urlsplit

SIGNAL = {"seconds": 9, "high_entropy_bytes": 8192, "high_entropy_rewrites_bytes": 4096, "structured_freed_bytes": 0,
          "structured_bytes": 1 << 20, "score_bytes": 4096, "limit_bytes": 1 << 20, "suspicious": False}
VOLUMES = [
    {"name": "data", "size_bytes": 8 << 30, "device": "/dev/loop0", "mount": "/srv/shop/data", "nbd_uri": None,
     "written_bytes": 1288490189, "fs_type": "ext4", "signal": SIGNAL},
    {"name": "wal", "size_bytes": 2 << 30, "device": None, "mount": None,
     "nbd_uri": "nbd+unix:///wal?socket=/run/shop.sock", "written_bytes": 512, "fs_type": None, "signal": None},
]
SHOP = {
    "name": "shop", "state": "protected", "message": None, "lsn": 1234, "durable_lsn": 1230, "oldest_lsn": 1,
    "oldest_time": "2026-01-01T00:00:00.000Z", "latest_time": "2026-01-02T00:00:00.000Z", "rpo_ms": 12,
    "journal_bytes": 1 << 20, "quota_bytes": 1 << 33, "base_bytes": 0,
    "history": {"limit_seconds": 2592000, "quota_seconds": 7200, "spans": [
        {"from": "2026-11-20T00:00:00Z", "to": "2026-11-21T00:00:00Z", "granularity_seconds": 60},
        {"from": "2026-11-21T00:00:00Z", "to": "2026-11-21T02:00:00Z", "granularity_seconds": 0}]},
    "ack": "write", "export": "fuse",
    "policy": "default", "manifests": None, "encryption": None, "engine_pid": 1, "restarts": 0, "alarms": [], "rewind": None,
    "resync": None, "suspicious_since": None, "operation": None, "views": ["v-1"], "volumes": VOLUMES,
}
BROKEN = dict(SHOP, name="bank", state="suspended", message="journal full", alarms=["journal full"], views=[])
VIEW = {
    "id": "v-1a2b3c", "application": "shop", "lsn": 1200, "time": "2026-01-01T12:00:00.000Z", "note": None, "open_ms": 14,
    "created_time": "2026-01-02T00:00:00.000Z", "state": "open", "overlay_bytes": 4096, "salvage": None,
    "volumes": [{"name": "data", "size_bytes": 8 << 30, "device": "/dev/loop7", "mount": "/mnt/then", "nbd_uri": None,
                 "note": None}],
}
SALVAGE = {"complete": True, "damaged_bytes": 8192, "truncated": False,
           "findings": ["l0-0000000003.idx: is missing", "segment-0000000003.tmj: nothing of it is left"],
           "damage": [{"volume": "data", "offset_bytes": 65536, "length_bytes": 8192, "reason": "segment 3 is lost"}]}
SALVAGED = dict(VIEW, note="the last point before it is taken", salvage=SALVAGE)
# Texts that a careless YAML emitter gets wrong.
POINTS = [
    {"lsn": 1300, "time": "2026-01-02T00:00:00.000Z", "kind": "tag", "name": "before", "labels": {
        "build": "0123", "yes": "no", "empty": "", "when": "2026-01-02", "sexagesimal": "12:30:45", "hex": "0x1F",
        "float": "1e3", "null": "null", "tilde": "~", "colon": "a: b", "hash": "a #b", "lead": "- a", "space": " x ",
        "lines": "one\ntwo\n", "quote": "say \"it\" 'now'", "unicode": "Stand für heute", "esc": "\u001b[31mred", "csi": "\u009b31mred",
        "merge": "<<", "equals": "=", "inf": ".inf", "at": "@x", "bang": "!x", "star": "*x", "bracket": "[x"}},
    {"lsn": 1200, "time": "2026-01-01T12:00:00.000Z", "kind": "activity", "bytes": 4096, "writes": 1, "suspicious": True},
    {"lsn": 1100, "time": "2026-01-01T00:00:00.000Z", "kind": "rewind", "target_lsn": 7, "ratio": 1e20, "half": 0.5},
]
LAST_CLEAN = {"application": "shop", "lsn": 1150, "time": "2026-01-01T11:59:59.000Z", "note": None,
              "suspicious_since": "2026-01-01T12:00:00.000Z"}
PLAN = {
    "to": "-90s", "lsn": 1234, "target_lsn": 1000, "target_time": "2026-01-01T00:00:00.000Z", "note": "the clock was set",
    "changed_bytes": 5242880, "volumes": [{"name": "data", "changed_bytes": 5242880}],
    "manifests": [{"name": "app.yaml", "change": "write"}],
    "lifecycle": {"stop": [["systemctl", "stop", "shop"]], "start": [["systemctl", "start", "shop"]], "probe": []},
}
REWIND = {
    "to": "-90s", "lsn": 1235, "target_lsn": 1000, "target_time": "2026-01-01T00:00:00.000Z", "changed_bytes": 5242880,
    "volumes": PLAN["volumes"], "manifests": PLAN["manifests"], "stop_ms": 100, "engine_ms": 9, "mount_ms": 40,
    "manifests_ms": 1, "start_ms": 900, "probe_ms": 30, "rewind_ms": 50, "total_ms": 1080, "rpo_ms": 3,
}
DIFF = {
    "from_lsn": 1, "from_time": "2026-01-01T00:00:00.000Z", "to_lsn": 9, "to_time": "2026-01-02T00:00:00.000Z",
    "volumes": [{"name": "data", "changed_bytes": 8192, "extents": 2, "ranges": [[0, 4096], [8192, 4096]]}],
    "objects": [{"name": "app.yaml", "change": "changed"}],
}


DAMAGE = {"file": "segment-0000000003.tmj", "what": "payload at block 17 does not match its checksum", "low_lsn": 1200,
          "high_lsn": 1210, "low_time": "2026-01-01T12:00:00.000Z", "high_time": "2026-01-01T12:00:01.000Z", "volume": "data",
          "offset_bytes": 65536, "length_bytes": 4096}


UPGRADE = {"application": "shop", "from_version": "9.8", "to_version": "9.9", "from_pid": 42, "to_pid": 43, "pause_ms": 48.2,
           "disconnected": False}


class Refusal(Exception):
    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.body = status, {"error": {"code": code, "message": message}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass

    def serve(self):
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        self.server.calls.append({"method": self.command, "path": url.path, "query": query, "body": body,
                                  "type": self.headers.get("Content-Type")})
        try:
            status, answer = self.server.answer(self.command, url.path, query, body)
        except Refusal as refusal:
            status, answer = refusal.status, refusal.body
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = serve


class FakeApi(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path):
        super().__init__(path, Handler)
        self.path = path
        self.calls = []
        self.applications = [SHOP]
        self.operations = {}
        self.slow_s = 0.0       # how long an operation runs
        self.delay_s = 0.0      # before any answer
        self.fails = None       # (code, message) of every operation
        self.refuses = None     # (status, code, message) of every call
        self.verify_ok = True
        self.warnings = []
        self.raw = None         # bytes instead of any answer
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def handle_error(self, *_):
        """A client that was interrupted or killed is part of the tests."""

    def stop(self):
        self.shutdown()
        self.server_close()
        os.unlink(self.path)

    def answer(self, method, path, query, body):
        time.sleep(self.delay_s)
        if self.refuses:
            raise Refusal(*self.refuses)
        if self.raw is not None:
            return 200, self.raw
        parts = path.strip("/").split("/")[1:]
        if parts[0] == "applications":
            return self.application(method, parts, query, body)
        if parts[0] == "status":
            chosen = [a for a in self.applications if query.get("app") in (None, a["name"])]
            if not chosen and "app" in query:
                raise Refusal(404, "ENOENT", f"no application '{query['app']}'")
            return 200, {"version": "9.9", "pid": 42, "state_directory": "/s", "warnings": self.warnings,
                         "applications": chosen}
        if parts[0] == "operations":
            return 200, {"operation": self.poll(parts[1], query)}
        if parts[0] == "views":
            if method == "GET":
                return 200, {"views": [VIEW]}
            if parts[1] != VIEW["id"]:
                raise Refusal(404, "ENOENT", f"no view '{parts[1]}'")
            return 200, {"id": parts[1]}
        if parts[0] == "apply":
            if "bad" in body:
                raise Refusal(400, "EINVAL", f"{query['file']}:3:5: unknown field 'bad'")
            return 200, {"results": [{"kind": "ProtectedApplication", "name": "shop", "result": "created",
                                      "message": None}]}
        return 200, {"version": "9.9", "api_version": "v1alpha1", "pid": 42, "state_directory": "/s",
                     "started_time": "2026-01-01T00:00:00Z"}

    def application(self, method, parts, query, body):
        if parts[1] != "shop":
            raise Refusal(404, "ENOENT", f"no application '{parts[1]}'")
        verb = parts[2] if len(parts) > 2 else None
        asked = json.loads(body) if body else {}
        if method == "DELETE":
            purged = query.get("purge") == "true"
            return 200, {"name": "shop", "purged": purged, "journal": None if purged else "/s/journal",
                         "volumes": [{"name": "data", "backing": None if purged else "/s/data.img"}]}
        if verb == "points":
            return 200, {"points": POINTS[:int(query.get("limit", 99))]}
        if verb == "last-clean":
            return 200, LAST_CLEAN
        if verb == "tag":
            return 200, {"name": asked["name"], "lsn": 1301, "time": "2026-01-02T00:00:00.000Z"}
        if verb == "diff":
            return 200, DIFF
        if asked.get("dry_run"):
            return 200, {"plan": PLAN}
        return 202, {"operation": self.begin(verb, asked)}

    def begin(self, verb, asked):
        result = {"open": {"view": SALVAGED if asked.get("salvage") else VIEW}, "rewind": REWIND, "undo": REWIND,
                  "upgrade-engine": dict(UPGRADE, disconnected=bool(asked.get("disconnect"))),
                  "verify": {"ok": self.verify_ok, "records": 1234, "read_bytes": 1 << 20,
                             "damage": [] if self.verify_ok else [DAMAGE]}}[verb]
        ident = f"op-{len(self.operations) + 1}"
        self.operations[ident] = {"start": time.monotonic(), "result": result, "kind": verb}
        return self.poll(ident, {})

    def poll(self, ident, query):
        operation = self.operations[ident]
        end = operation["start"] + self.slow_s
        wait = min(int(query.get("wait_ms", 0)) / 1000, 0.3, max(0.0, end - time.monotonic()))
        time.sleep(wait)
        running = time.monotonic() < end
        answer = {"id": ident, "kind": operation["kind"], "application": "shop", "version": 1,
                  "state": "running" if running else "failed" if self.fails else "succeeded",
                  "started_time": "2026-01-01T00:00:00Z", "duration_ms": 1,
                  "steps": [{"name": "reading", "state": "running" if running else "done", "duration_ms": 1,
                             "detail": None}],
                  "progress": {"done": 1 << 30, "total": 2 << 30, "unit": "bytes"} if running else None,
                  "result": None, "error": None}
        if not running and self.fails:
            answer["error"] = {"code": self.fails[0], "message": self.fails[1]}
        elif not running:
            answer["result"] = operation["result"]
        return answer
