#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Questions about the history (src/controller/history.h), and clones of volumes: a real API server, the controller as it is installed, and a node
with a real engine, whose agent the controller finds by its pod. Tests name the invariants."""
import base64
import http.client
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "../kube"))
sys.path.insert(0, os.path.join(HERE, "../control"))
import journal
import test_webhook as base
from apiserver import KUBECTL, ROOT, ApiServer, free_ports, skip, until

TIDEMARK = os.path.abspath(os.environ.get("TIDEMARK", "build/src/cli/tidemark"))
SYSTEM, NODE, MIB = "tidemark-system", "node-1", 1 << 20
SERVER = STAND = None
OK, FAILED, USAGE, NOT_FOUND, REFUSED, UNREACHABLE, DAMAGED = range(7)
SECRET = "c2VjcmV0LXRoYXQtbm9ib2R5LXNlZXM="


class Stand:
    """`tidemark data` and `tidemark node` of one node, with certificates."""

    def __init__(self):
        self.root = tempfile.mkdtemp(prefix="tmk-", dir="/tmp")
        self.children = {}
        self.port = free_ports(1)
        os.symlink(TIDEMARK, self.path("kubectl-tidemark"))
        openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        self.run(*openssl, "-subj", "/CN=ca", "-keyout", self.path("ca.key"), "-out", self.path("ca.crt"))
        for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
            self.run(*openssl, "-subj", f"/CN={name}", "-CA", self.path("ca.crt"), "-CAkey", self.path("ca.key"), "-addext",
                     f"extendedKeyUsage={usage}", "-addext", "subjectAltName=DNS:tidemark-node", "-addext", "basicConstraints=critical,CA:FALSE",
                     "-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.crt"))
        self.start("data", "data: the API answers", "data", "--state", self.path("d"), "--socket", self.path("data.sock"))
        self.start_node()

    def path(self, *parts):
        return os.path.join(self.root, *parts)

    @staticmethod
    def run(*command):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self, name, ready, *arguments):
        log = self.path(f"{name}.log")
        before = os.path.getsize(log) if os.path.exists(log) else 0
        with open(log, "ab") as f:
            self.children[name] = subprocess.Popen([TIDEMARK, *arguments], stdout=f, stderr=f, stdin=subprocess.DEVNULL)

        def answers():
            with open(log, encoding="utf-8", errors="replace") as f:
                text = f.read()[before:]
            assert self.children[name].poll() is None, text
            return ready in text
        until(f"{name} is ready", answers)

    def start_node(self, data_socket="data.sock"):
        self.start("node", "node: CSI answers", "node", "--state", self.path("n"), "--csi-socket", self.path("node.sock"), "--data-socket",
                   self.path(data_socket), "--node-name", NODE, "--listen", f"127.0.0.1:{self.port}", "--tls-cert", self.path("server.crt"),
                   "--tls-key", self.path("server.key"), "--tls-ca", self.path("ca.crt"))

    def stop(self, name, number=signal.SIGTERM):
        child = self.children.pop(name)
        child.send_signal(number)
        child.wait(180)

    def api(self, method, path, body=None):
        command = ["curl", "-sS", "--fail-with-body", "--unix-socket", self.path("data.sock"), "-X", method, f"http://localhost{path}"]
        if body is not None:
            command += ["--data-binary", body if isinstance(body, str) else json.dumps(body)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    def stream(self, name, handles):
        """The devices of its volumes."""
        volumes = "".join(f"  - {{name: {h}, size: 64Mi}}\n" for h in handles)
        self.api("POST", "/v1/apply?file=stream", "apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\n"
                 f"metadata: {{name: {name}}}\nspec:\n  export: fuse\n  volumes:\n{volumes}")
        status = self.api("GET", f"/v1/status?app={name}")["applications"][0]
        return {v["name"]: v["device"] for v in status["volumes"]}

    def destroy(self, streams):
        for name in reversed(streams):  # a clone may still read what was there before it
            try:
                self.api("DELETE", f"/v1/applications/{name}?purge=true")
            except subprocess.CalledProcessError:
                pass
        for name in list(self.children):
            self.stop(name)
        shutil.rmtree(self.root, ignore_errors=True)


class OlderData:
    """The data plane as one from before `at_once` answers: that field it does not know."""

    def __init__(self, path, to):
        plane = self
        self.refused = 0

        class Connection(http.client.HTTPConnection):
            def connect(self):
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.connect(to)

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                while line := self.rfile.readline().decode():
                    method, target, _ = line.split(" ", 2)
                    headers = http.client.parse_headers(self.rfile)
                    body = self.rfile.read(int(headers.get("Content-Length", 0)))
                    if b'"at_once"' in body:
                        plane.refused += 1
                        status, text = 400, json.dumps({"error": {"code": "EINVAL", "message": "unknown field 'at_once'"}}).encode()
                    else:
                        there = Connection("localhost")
                        there.request(method, target, body or None)
                        answered = there.getresponse()
                        status, text = answered.status, answered.read()
                        there.close()
                    self.wfile.write(f"HTTP/1.1 {status} Answer\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self.server = Server(path, Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def read(device):
    with open(device, "rb") as f:
        return f.read()


def write(device, offset, data):
    fd = os.open(device, os.O_RDWR)
    os.pwrite(fd, data, offset)
    os.fsync(fd)
    os.close(fd)


def plugin(*arguments, user=None):
    """(exit status, standard output, standard error)"""
    kubeconfig = SERVER.kubeconfig
    if user:
        kubeconfig = STAND.path(f"kubeconfig-{user}")
        if not os.path.exists(kubeconfig):
            config = json.loads(SERVER.kubectl("config", "view", "--raw", "-o", "json"))
            token = SERVER.kubectl("-n", "default", "create", "token", user, "--duration=24h")
            config["users"] = [{"name": u["name"], "user": {"token": token}} for u in config["users"]]
            with open(kubeconfig, "w", encoding="utf-8") as f:
                json.dump(config, f)
    done = subprocess.run([STAND.path("kubectl-tidemark"), *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=400,
                          stdin=subprocess.DEVNULL, env=dict(os.environ, KUBECONFIG=kubeconfig, TERM="dumb"))
    return done.returncode, done.stdout, done.stderr


def answer(*arguments, code=OK, user=None):
    got, out, err = plugin(*arguments, "-o", "json", user=user)
    assert got == code, (arguments, got, out, err)
    return json.loads(out)


def review(namespace, user=None, dry=True, **spec):
    """What the API server makes of a HistoryReview: (exit status, text or object)."""
    thing = {"apiVersion": "tidemark.io/v1alpha1", "kind": "HistoryReview", "metadata": {"name": "q", "namespace": namespace},
             "spec": {"application": namespace, **spec}}
    command = [KUBECTL, f"--kubeconfig={SERVER.kubeconfig}", "create", "-f", "-", "-o", "json"]
    command += ["--dry-run=server"] if dry else []
    if user:
        command += [f"--as={user}", "--as-group=system:authenticated"]
    done = subprocess.run(command, input=json.dumps(thing), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return done.returncode, json.loads(done.stdout) if done.returncode == 0 else done.stderr


class History(base.Webhook):
    streams = []

    def volume(self, namespace, claim, number, stream):
        """A claim that is bound to a volume of ours: its handle."""
        handle = f"tm-00000000-0000-4000-8000-{number:012d}"
        record = {"handle": handle, "name": f"pvc-{number}", "size_bytes": 64 * MIB, "backing": "host", "backing_class": "", "ack_mode": "",
                  "claim_namespace": namespace, "claim_name": claim, "node": NODE, "published_node": NODE, "stream": stream, "deleted_ns": 0}
        SERVER.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": handle, "namespace": SYSTEM, "labels": {"tidemark.io/volume-record": "true"}},
             "data": {"record": json.dumps(record)}},
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"pvc-{number}"}, "spec": {
                "capacity": {"storage": "64Mi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "tidemark",
                "claimRef": {"namespace": namespace, "name": claim}, "csi": {"driver": "csi.tidemark.io", "volumeHandle": handle}}},
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim, "namespace": namespace}, "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "tidemark", "volumeName": f"pvc-{number}", "resources": {"requests": {"storage": "64Mi"}}}})
        return handle

    def journaled(self, namespace, *objects):
        """Applies them; until the history has them. Its newest record, as a point."""
        SERVER.apply(*objects)
        names = {f"{o['kind']}/{namespace}/{o['metadata']['name']}" for o in objects}

        def there():
            points = answer("points", f"{namespace}/{namespace}", "--limit", "5000")["points"]
            seen = {"/".join(p["name"].split("/")[-3:]) for p in points if p["kind"] == "object" and "name" in p}
            return [p for p in points if p.get("of") == "objects"][0]["point"] if names <= seen else None
        return until("they are journaled", there)

    def captured(self, namespace, count):
        until("the volumes are known", lambda: SERVER.kubectl("-n", namespace, "get", "papp", namespace, "-o", "jsonpath={.status.volumesCaptured}",
                                                              check=False) == str(count))

    def application(self, name, owner=None):
        """One with two claims in one stream: its devices."""
        self.namespace(name, owner)
        first = 100 * (1 + len(self.streams))
        handles = [self.volume(name, claim, first + i, f"stream-{name}") for i, claim in enumerate(("data", "wal"))]
        self.streams.append(f"stream-{name}")
        devices = STAND.stream(f"stream-{name}", handles)
        self.captured(name, 2)
        return [devices[h] for h in handles]


class Points(History):
    def test_every_second_of_every_stream_is_listed_with_the_objects_and_nothing_is_stored(self):
        data, wal = self.application("shop")
        app = "shop/shop"
        self.journaled("shop", base.config_map("settings", "shop", "1"))
        write(data, 0, b"a" * MIB)
        write(wal, 4096, b"b" * 8192)
        found = answer("points", app)
        activity = [p for p in found["points"] if p["kind"] == "activity"]
        self.assertGreaterEqual(sum(p["bytes"] for p in activity), MIB + 8192)
        self.assertEqual({(p["of"], tuple(sorted(p["claims"])), p["stream"]) for p in activity}, {("volumes", ("data", "wal"), "stream-shop")})
        self.assertTrue(any(p["kind"] == "object" and p["name"] == "core/v1/ConfigMap/shop/settings" for p in found["points"]), found)
        times = [p["time"] for p in found["points"]]
        self.assertEqual(times, sorted(times, reverse=True), "newest first")
        stream, = found["streams"]
        self.assertEqual((stream["stream"], stream["node"], sorted(stream["claims"])), ("stream-shop", NODE, ["data", "wal"]))
        # the limit is of all together, and what is given is the newest
        self.assertEqual([p["point"] for p in answer("points", app, "--limit", "2")["points"]], [p["point"] for p in found["points"][:2]])
        # only what came after
        since = activity[0]["time"]
        later = answer("points", app, "--since", since)["points"]
        self.assertTrue(later and all(p["time"] >= since for p in later), later)
        code, text, _ = plugin("points", app)
        self.assertEqual(code, OK)
        self.assertRegex(text, r"(?m)^20\S+Z +20\S+Z .* activity +(data, wal|wal, data) +\d+ writes, ")
        self.assertRegex(text, r"(?m)^lsn:\d+ .* object +objects +core/v1/ConfigMap/shop/settings")
        self.assertEqual(SERVER.json("-n", "shop", "get", "historyreviews")["items"], [])
        # each of them is a point that a recovery takes
        code, text, err = plugin("rewind", app, "--to", activity[0]["point"], "--dry-run")
        self.assertEqual(code, OK, err)

    def test_what_makes_no_sense_is_told(self):
        self.namespace("sense")
        for remedy, arguments in (("goes without --since", ("--last-clean", "--limit", "3")), ("at most 5000", ("--limit", "5001"))):
            code, _, err = plugin("points", "sense/sense", *arguments)
            self.assertNotEqual(code, OK)
            self.assertIn(remedy, err)
        code, _, err = plugin("points", "sense/sense", "--last-clean")
        self.assertEqual(code, NOT_FOUND)
        self.assertIn("no volume that is captured", err)
        for because, spec in (("none of points", {"query": "all"}), ("no name of an application", {"application": "../shop/shop", "query": "points"}),
                              ("spec.from", {"query": "diff", "to": "latest"}), ("yesterday", {"query": "diff", "from": "yesterday", "to": "latest"})):
            code, text = review("sense", **spec)
            self.assertNotEqual(code, 0, spec)
            self.assertIn(because, text, spec)
        code, text = review("sense", dry=False, query="points")
        self.assertNotEqual(code, 0)
        self.assertIn("--dry-run=server", text)
        self.assertEqual(SERVER.json("-n", "sense", "get", "historyreviews")["items"], [])

    def test_a_claim_that_names_the_volume_of_another_gives_nothing_of_it(self):
        self.application("owner")
        volume = SERVER.json("-n", "owner", "get", "pvc", "data")["spec"]["volumeName"]
        self.namespace("thief")
        SERVER.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "thief"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "tidemark", "volumeName": volume, "resources": {"requests": {"storage": "64Mi"}}}})
        self.journaled("thief", base.config_map("settings", "thief", "1"))
        claims = lambda: SERVER.json("-n", "thief", "get", "papp", "thief").get("status", {}).get("volumes", [])
        until("the claim is judged", claims)
        self.assertEqual([(v["claim"], v["captured"]) for v in claims()], [("data", False)])
        self.assertEqual(answer("points", "thief/thief")["streams"], [])
        self.assertEqual(answer("points", "owner/owner")["streams"][0]["stream"], "stream-owner")

    def test_a_review_that_no_api_server_sent_is_not_answered(self):
        self.namespace("forged")
        self.journaled("forged", base.config_map("settings", "forged", "1"))
        thing = {"apiVersion": "tidemark.io/v1alpha1", "kind": "HistoryReview", "metadata": {"name": "q", "namespace": "forged"},
                 "spec": {"application": "forged", "query": "points"}}
        body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "1", "kind": {"group": "tidemark.io", "version": "v1alpha1", "kind": "HistoryReview"}, "namespace": "forged", "name": "q",
            "operation": "CREATE", "dryRun": True, "userInfo": json.loads(base.FORGED), "object": thing}})

        def ask(path):
            done = subprocess.run(["curl", "-sk", "--data-binary", body, f"https://127.0.0.1:{base.CONTROLLER.port}{path}"], stdout=subprocess.PIPE, check=True)
            patch = json.loads(done.stdout).get("response", {}).get("patch")
            return json.loads(base64.b64decode(patch))[0]["value"]["phase"] if patch else None
        for path in ("/mutate", "/mutate/", "/mutate/" + "0" * 64, "/mutate/" + "0" * 6400):
            self.assertIn(ask(path), ("Elsewhere", None), path)
        hooks = SERVER.json("get", "mutatingwebhookconfiguration", "tidemark")["webhooks"]
        url, = [h["clientConfig"]["url"] for h in hooks if h["name"].startswith("historyreviews")]
        self.assertIn(ask(url[url.index("/mutate"):]), ("Answered", "Running"))

    def test_nothing_suspicious_is_told_and_a_node_that_is_away(self):
        data, _ = self.application("calm")
        write(data, 0, b"x" * 4096)
        code, _, err = plugin("points", "calm/calm", "--last-clean")
        self.assertEqual(code, NOT_FOUND, err)
        self.assertIn("every point is clean", err)
        STAND.stop("node")
        try:
            found = answer("points", "calm/calm")
            self.assertIn("node-1", found["streams"][0]["error"])
            self.assertTrue(found["points"], "the objects' are there")
            result = answer("verify", "calm/calm", code=UNREACHABLE)
            self.assertEqual((result["ok"], result["complete"]), (True, False))
        finally:
            STAND.start_node()
        self.assertNotIn("error", answer("points", "calm/calm")["streams"][0])


class Policies(History):
    def test_what_the_policy_says_of_the_journal_reaches_the_streams_and_so_does_a_change(self):
        self.application("ruled")
        SERVER.kubectl("annotate", "namespace", "ruled", "tidemark.io/policy=own", "--overwrite")

        def taken():
            status = STAND.api("GET", "/v1/status?app=stream-ruled")["applications"][0]
            return status["policy"], status["quota_bytes"], status["ack"]

        base_policy = {"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectionPolicy", "metadata": {"name": "own-base"},
                       "spec": {"journal": {"quota": "320Mi"}, "ackMode": "flush"}}
        policy = {"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectionPolicy", "metadata": {"name": "own"}, "spec": {"extends": "own-base"}}
        SERVER.apply(base_policy, policy)
        until("the stream has the inherited quota", lambda: taken() == ("stream-ruled", 320 * MIB, "flush"))
        policy["spec"]["journal"] = {"quota": "400Mi"}
        SERVER.apply(policy)
        until("the stream has the changed quota", lambda: taken() == ("stream-ruled", 400 * MIB, "flush"))
        policy["spec"]["journal"] = {"quota": "1Mi"}  # the API server takes it, the data plane does not
        SERVER.apply(policy)
        until("the application says why", lambda: "quota" in SERVER.kubectl(
            "-n", "ruled", "get", "papp", "ruled", "-o", "jsonpath={.status.streams[0].message}", check=False), 120)
        self.assertEqual(taken()[1], 400 * MIB)


class Diff(History):
    def test_fields_of_objects_and_bytes_of_claims_between_two_points(self):
        data, wal = self.application("two")
        app = "two/two"
        before = self.journaled("two", base.config_map("changed", "two", "old"), base.config_map("goes", "two", "1"))
        write(wal, 0, b"a" * 4096)
        first = answer("points", app, "--limit", "1")["points"][0]["point"]
        write(data, MIB, b"b" * (2 * MIB))
        SERVER.kubectl("-n", "two", "delete", "configmap", "goes")
        self.journaled("two", base.config_map("changed", "two", "new"), base.config_map("comes", "two", "1"))
        found = until("the change is in the history", lambda: (lambda d: d if d["objects"]["changed"] and d["objects"]["deleted"] else None)(
            answer("diff", f"{app}@{first}", f"{app}@latest")))
        objects = {o["object"].split("/")[-1]: o for o in found["objects"]["objects"]}
        self.assertEqual({n: objects[n]["change"] for n in ("changed", "goes", "comes")}, {"changed": "changed", "goes": "deleted", "comes": "created"})
        self.assertEqual(objects["changed"]["fields"], [{"path": "data.value", "from": "old", "to": "new"}])
        self.assertEqual({v["claim"]: v["changedBytes"] for v in found["volumes"]}, {"data": 2 * MIB, "wal": 0})
        code, text, err = plugin("diff", f"{app}@{first}", f"{app}@latest")
        self.assertEqual(code, OK, err)
        self.assertIn('- "old"\n', text)
        self.assertRegex(text, r"(?m)^data +2\.0 MiB ")
        # a record of the objects is a moment of the volumes as well, and the order may be turned round
        turned = answer("diff", f"{app}@latest", f"{app}@{before}")
        self.assertEqual({v["claim"]: v["changedBytes"] for v in turned["volumes"]}["wal"], 4096)
        self.assertEqual(turned["objects"]["changed"], 1)
        code, _, err = plugin("diff", f"{app}@-1m", "calm/calm@latest")
        self.assertEqual((code, "two applications" in err), (USAGE, True), err)
        code, _, err = plugin("diff", f"{app}@2001-01-01T00:00:00Z", f"{app}@latest")
        self.assertEqual(code, REFUSED, err)
        self.assertIn("kubectl tidemark points two/two", err)

    def test_q2_secrets_are_never_told_and_kinds_that_she_may_not_get_only_by_kind(self):
        ns = "hidden"
        SERVER.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "viewer", "namespace": "default"}})
        self.namespace(ns)
        SERVER.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "viewer", "namespace": ns},
                      "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
                      "subjects": [{"kind": "ServiceAccount", "name": "viewer", "namespace": "default"}]})
        until("the role is aggregated", lambda: SERVER.kubectl("-n", ns, "auth", "can-i", "create", "historyreviews.tidemark.io",
                                                               "--as=system:serviceaccount:default:viewer", check=False) == "yes")
        secret = lambda value: {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "token-of-eve", "namespace": ns}, "data": {"key": value}}
        first = self.journaled(ns, secret(SECRET), base.config_map("seen", ns, "1"))
        SERVER.apply(secret("b3RoZXI="), base.config_map("seen", ns, "2"))
        found = until("both changed", lambda: (lambda d: d if d["objects"]["changed"] >= 2 else None)(answer("diff", f"{ns}/{ns}@{first}", f"{ns}/{ns}@latest")))
        fields = [o for o in found["objects"]["objects"] if o["object"].endswith("token-of-eve")][0]["fields"]
        self.assertEqual(fields, [{"path": "data.key", "from": "(hidden)", "to": "(hidden)", "hidden": True}])
        for user in (None, "viewer"):
            for words in (("diff", f"{ns}/{ns}@{first}", f"{ns}/{ns}@latest"), ("points", f"{ns}/{ns}")):
                for form in ("table", "json"):
                    code, text, err = plugin(*words, "-o", form, user=user)
                    self.assertEqual(code, OK, err)
                    self.assertNotIn(SECRET, text)
                    self.assertNotIn("b3RoZXI=", text)
                    self.assertIn("seen", text)
                    self.assertEqual("token-of-eve" in text, user is None, text)

    def test_q1_a_tenant_asks_about_her_namespaces_only(self):
        self.namespace("hers", "ann")
        self.namespace("others")
        until("the role is aggregated", lambda: review("hers", "ann", query="points")[0] == 0)
        code, text = review("hers", "ann", query="lastClean")
        self.assertEqual((code, text["status"]["error"]["code"]), (0, "ENOENT"), text)
        code, text = review("others", "ann", query="points")
        self.assertNotEqual(code, 0)
        self.assertIn("forbidden", text)
        # a job is hers alone
        code, running = review("hers", "ann", query="verify")
        job = running["status"].get("job", "00000000-0000-0000-0000-000000000000")
        code, text = review("hers", query="verify", job=job)
        self.assertEqual(text["status"]["phase"], "Elsewhere", text)


class Gone(History):
    def test_a_namespace_that_is_gone_still_answers_whoever_could_read_all_of_it(self):
        ns, other = self.namespace("gone", "ann"), self.namespace("hers", "ann", protected=False)
        self.journaled(ns, base.config_map("settings", ns, "1"))
        # Before the rest: the history ends with the deletion of the namespace, and what goes then is not journaled as deleted.
        SERVER.kubectl("-n", ns, "delete", "configmap", "settings")
        until("its end is journaled", lambda: any(p["deleted"] for p in answer("points", f"{ns}/{ns}")["points"] if p.get("name", "").endswith("/settings")))
        SERVER.kubectl("delete", "namespace", ns, "--timeout=90s")
        until("it is not there", lambda: "NotFound" in SERVER.kubectl("get", "namespace", ns, check=False))
        code, out, err = plugin("points", f"{ns}/{ns}")
        self.assertEqual(code, OK, err)
        self.assertIn(f"core/v1/ConfigMap/{ns}/settings", out)
        self.assertIn(f"kubectl tidemark restore {ns}/{ns}", err)
        self.assertIn("the namespace was deleted", out)
        found = answer("points", f"{ns}/{ns}")
        self.assertTrue(found["oldestTime"] and found["points"])
        before = [p for p in found["points"] if p.get("name", "").endswith("/settings") and not p["deleted"]][0]["point"]
        diff = answer("diff", f"{ns}/{ns}@{before}", f"{ns}/{ns}@latest")
        self.assertGreater(diff["objects"]["deleted"], 0, diff)
        self.assertTrue(answer("verify", f"{ns}/{ns}")["ok"])
        # Her rights there went with it, and in another namespace of hers she has none to it.
        code, text = review(other, user="ann", application=ns, sourceNamespace=ns, query="points")
        self.assertNotEqual(code, 0)
        self.assertIn("may not get secrets in the namespace gone", text)
        code, _, err = plugin("points", f"{ns}/none")
        self.assertEqual(code, NOT_FOUND, err)

    def test_tags_outlive_their_checkpoints_and_one_that_is_refused_hides_none(self):
        ns = self.namespace("named")
        self.journaled(ns, base.config_map("settings", ns, "1"))
        self.assertEqual(plugin("tag", f"{ns}/{ns}", "first")[0], OK)
        SERVER.kubectl("-n", ns, "delete", "checkpoint", "first")  # as it goes with its namespace

        SERVER.apply(base.config_map("settings", ns, "2"))
        until("something newer is journaled", lambda: answer("points", f"{ns}/{ns}", "--limit", "1")["points"][0]["kind"] == "object")

        def named(*more):
            return sorted((p["point"], "time" in p) for p in answer("points", f"{ns}/{ns}", "--named", *more)["points"])
        self.assertEqual(named("--limit", "1"), [("tag:first", True)])  # what is newer and has no name does not count
        code, _, err = plugin("tag", f"{ns}/{ns}", "first")
        self.assertIn("another moment of the history has the name first", err)
        self.assertEqual(named(), [("tag:first", False), ("tag:first", True)])

    def test_an_application_that_is_not_protected_any_more_still_answers(self):
        ns = self.namespace("former")
        self.journaled(ns, base.config_map("settings", ns, "1"))
        SERVER.kubectl("annotate", "namespace", ns, "tidemark.io/policy-")
        until("it is not protected", lambda: "NotFound" in SERVER.kubectl("-n", ns, "get", "papp", ns, check=False))
        code, out, err = plugin("points", f"{ns}/{ns}")
        self.assertEqual(code, OK, err)
        self.assertIn(f"core/v1/ConfigMap/{ns}/settings", out)
        self.assertIn("not protected any more", err)


class Plans(History):
    def test_the_plan_is_shown_where_no_config_map_is_taken(self):
        ns = self.namespace("maps")
        self.journaled(ns, base.config_map("settings", ns, "1"))
        point = answer("points", f"{ns}/{ns}")["points"][0]["point"]
        self.journaled(ns, base.config_map("settings", ns, "2"))
        SERVER.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": ns}, "spec": {"hard": {"count/configmaps": "0"}}})
        until("nothing more is taken", lambda: "exceeded quota" in SERVER.kubectl(
            "create", "--dry-run=server", "-f", "-", stdin=json.dumps(base.config_map("probe", ns, "1")), check=False))
        code, out, err = plugin("rewind", f"{ns}/{ns}", "--to", point, "--dry-run")
        self.assertEqual(code, OK, err)
        self.assertRegex(out, f"core/v1/ConfigMap/{ns}/settings +change")


class Verify(History):
    def test_damage_is_named_and_what_is_whole_too(self):
        data, _ = self.application("read")
        app = "read/read"
        self.journaled("read", base.config_map("a", "read", "1"))
        write(data, 0, os.urandom(4 * MIB))
        result = answer("verify", app)
        self.assertEqual((result["ok"], result["complete"], result["objects"]["ok"]), (True, True, True), result)
        self.assertGreater(result["streams"][0]["bytes"], 4 * MIB)
        self.assertGreater(result["objects"]["records"], 0)
        code, text, _ = plugin("verify", app)
        self.assertRegex(text, r"(?m)^  stream-read: whole, ")
        path, offset, _ = journal.a_write(STAND.path("d/apps/stream-read/journal"), 1)
        journal.flip(path, offset + 100)
        result = answer("verify", app, code=DAMAGED)
        self.assertEqual((result["ok"], result["objects"]["ok"], result["streams"][0]["ok"]), (False, True, False), result)
        self.assertEqual({d["claim"] for d in result["streams"][0]["damage"] if d.get("claim")}, {"data"})
        path = journal.segments(f"{base.CONTROLLER.state}/state/objects/read/read")[0]
        journal.flip(path, next(journal.frames(path))[0] * journal.BLOCK + 130)  # the first record of the first frame
        result = answer("verify", app, code=DAMAGED)
        self.assertFalse(result["objects"]["ok"])
        self.assertTrue(result["objects"]["damage"][0]["file"])
        code, text, err = plugin("verify", app)
        self.assertEqual(code, DAMAGED)
        self.assertIn("DAMAGED", text)
        self.assertIn("damage was found", err)


class Clones(History):
    """No kubelet: what stands for the clone's pods reads and writes its devices."""

    def policy(self, name, **journal):
        SERVER.apply({"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectionPolicy", "metadata": {"name": name}, "spec": {"journal": journal}})

    def original(self, name, **journal):
        """An application of two claims with some data: its devices, and what they hold."""
        self.policy(name, **journal)
        devices = self.application(name)
        SERVER.kubectl("annotate", "namespace", name, f"tidemark.io/policy={name}", "--overwrite")
        self.stirred()
        until("the stream has the policy", lambda: STAND.api("GET", f"/v1/status?app=stream-{name}")["applications"][0]["policy"] == f"stream-{name}", 120)
        write(devices[0], 0, os.urandom(24 * MIB))
        write(devices[1], 2 * MIB, os.urandom(8 * MIB))
        self.journaled(name, base.config_map("settings", name, "1"))
        return devices, [read(d) for d in devices]

    def recover(self, namespace, name, **spec):
        SERVER.apply(base.recovery(name, namespace, application=spec.pop("application", namespace), mode="clone", **spec))

        def ended():
            status = SERVER.json("-n", namespace, "get", "recovery", name).get("status", {})
            return status if status.get("phase") in ("Completed", "Failed", "Cancelled", "Planned") else None
        return until(f"the recovery {name} ends", ended, 120)

    def stirred(self):
        """The controller looks at all streams again at once, not within 30 s."""
        SERVER.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "stir"}, "spec": {
            "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/nowhere"}, "storageClassName": "nobodys"}})
        SERVER.kubectl("delete", "pv", "stir", "--wait=true")

    @staticmethod
    def filled(namespace, name):
        """(status, reason, message) of the condition, and status.filling."""
        status = SERVER.json("-n", namespace, "get", "recovery", name)["status"]
        condition = next((c for c in status["conditions"] if c["type"] == "Filled"), {"status": "", "reason": "", "message": ""})
        return (condition["status"], condition["reason"], condition["message"]), status.get("filling")

    def reason(self, namespace, name):
        return self.filled(namespace, name)[0][1]

    def copies(self, status):
        """The devices of the clone's data and wal."""
        stream = status["streams"][0]
        self.streams.append(stream["newStream"])
        found = STAND.api("GET", f"/v1/status?app={stream['newStream']}")["applications"][0]
        devices = {v["name"]: v["device"] for v in found["volumes"]}
        return [devices[next(v["handle"] for v in stream["volumes"] if v["claim"] == claim)] for claim in ("data", "wal")], found

    def delete_volumes(self, namespace):
        """What the provisioner does when the claims of the original are deleted; the policy keeps nothing."""
        maps = SERVER.json("-n", SYSTEM, "get", "configmaps", "-l", "tidemark.io/volume-record=true")["items"]
        names = []
        for item in maps:
            record = json.loads(item["data"]["record"])
            if record["claim_namespace"] != namespace:
                continue
            record |= {"published_node": "", "deleted_ns": time.time_ns() - 10 ** 9}
            SERVER.kubectl("-n", SYSTEM, "patch", "configmap", record["handle"], "--type=merge", "-p",
                           json.dumps({"data": {"record": json.dumps(record), "keep": "0"}}))
            names.append(record["handle"])
            SERVER.kubectl("-n", namespace, "delete", "pvc", record["claim_name"], "--wait=false")
            SERVER.kubectl("delete", "pv", record["name"], "--wait=false")
        return names

    def test_a_clone_is_used_before_it_is_copied_and_the_original_can_go_when_it_is(self):
        devices, then = self.original("early", seedRate="1Mi", quota="320Mi")
        dry = self.recover("early", "dry", point="latest", targetNamespace="early-dry", dryRun=True)
        self.assertEqual((dry["phase"], dry["streams"][0]["atOnce"], dry["plan"].get("notes")), ("Planned", True, None), dry)
        self.namespace("elsewhere", protected=False)
        done = self.recover("elsewhere", "now", application="early", sourceNamespace="early", point="latest", targetNamespace="early-clone")
        self.assertEqual(done["phase"], "Completed", done)
        self.assertIn("copied behind", done["message"])
        self.assertLess(done["timings"]["dataMs"], 10000)
        copies, found = self.copies(done)
        self.assertEqual([read(d) for d in copies], then)
        (status, reason, message), filling = self.filled("elsewhere", "now")
        self.assertEqual((status, reason), ("False", "Filling"), message)
        self.assertTrue(0 < filling["leftBytes"] <= filling["totalBytes"] <= 40 * MIB, filling)
        # Its engine is killed, its agent is away and comes again: it goes on, and what is told stays right.
        os.kill(found["engine_pid"], signal.SIGKILL)
        write(copies[0], 5 * MIB + 512, b"own" * 1024)
        then[0] = then[0][:5 * MIB + 512] + b"own" * 1024 + then[0][5 * MIB + 512 + 3072:]
        STAND.stop("node", signal.SIGKILL)
        until("the status says that the node does not answer", lambda: self.reason("elsewhere", "now") == "NodeUnreachable")
        STAND.start_node()
        until("and then that it does", lambda: self.reason("elsewhere", "now") == "Filling")
        until("it goes on", lambda: self.filled("elsewhere", "now")[1]["doneBytes"] > 2 * MIB)
        self.assertEqual([read(d) for d in copies], then)
        # Deleted: what the clone reads stays, and whoever looks is told why.
        handles = self.delete_volumes("early")
        self.stirred()

        def told():
            return [SERVER.kubectl("-n", SYSTEM, "get", "configmap", h, "-o", "jsonpath={.data.kept}", check=False) for h in handles]
        until("it is told why the history is still there", lambda: all("still being copied to its clone" in t for t in told()))
        events = SERVER.json("-n", SYSTEM, "get", "events")["items"]
        self.assertEqual({e["involvedObject"]["name"] for e in events if e["reason"] == "HistoryKept"}, set(handles))
        kept = [v for v in answer("purge") if v["volume"] in handles]
        self.assertEqual(len(kept), 2)
        self.assertTrue(all("still being copied to its clone" in v["keptBecause"] for v in kept), kept)
        self.assertEqual([read(d) for d in copies], then)
        (status, reason, message), filling = self.filled("elsewhere", "now")
        self.assertEqual((status, reason), ("False", "Filling"), (message, filling))
        # Faster.
        STAND.api("POST", "/v1/apply?file=policy", "apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: stream-early}\n"
                  "spec: {journal: {quota: 320Mi}}\n")
        until("the clone is copied", lambda: self.filled("elsewhere", "now")[0][:2] == ("True", "Filled"))
        self.assertEqual(self.filled("elsewhere", "now")[1]["leftBytes"], 0)
        self.stirred()
        until("the history of the original goes", lambda: not any(SERVER.kubectl("-n", SYSTEM, "get", "configmap", h, "--ignore-not-found") for h in handles), 120)
        self.assertNotIn("stream-early", [a["name"] for a in STAND.api("GET", "/v1/status")["applications"]])
        self.assertEqual([read(d) for d in copies], then)
        events = SERVER.json("-n", "elsewhere", "get", "events")["items"]
        self.assertIn("Filled", [e["reason"] for e in events if e["involvedObject"]["name"] == "now"])

    def test_a_quota_that_the_copy_uses_up_is_an_alarm(self):
        devices, then = self.original("narrow", seedRate="1Mi", quota="256Mi")
        done = self.recover("narrow", "now", point="latest", targetNamespace="narrow-clone")
        self.assertEqual(done["phase"], "Completed", done)
        copies, _ = self.copies(done)

        def suspended():
            write(devices[1], 0, os.urandom(32 * MIB))
            return STAND.api("GET", "/v1/status?app=stream-narrow")["applications"][0]["state"] == "suspended"
        until("nothing is journaled any more", suspended)
        until("the Recovery tells it", lambda: self.reason("narrow", "now") == "FillingInTrouble")
        self.assertIn("journaling is suspended", self.filled("narrow", "now")[0][2])
        self.stirred()

        def told():
            status = SERVER.json("-n", "narrow", "get", "papp", "narrow")["status"]
            protected = next(c for c in status["conditions"] if c["type"] == "Protected")
            stream = status["streams"][0]
            return protected["reason"] == "JournalingSuspended" and stream["state"] == "suspended" and "journaling is suspended" in stream["message"]
        until("so does the application", told)
        code, text, _ = plugin("status", "narrow/narrow")
        self.assertIn("journal", text)
        self.assertEqual([read(d) for d in copies], then, "the clone has it all the same")
        STAND.api("POST", "/v1/apply?file=policy", "apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: stream-narrow}\n"
                  "spec: {journal: {quota: 256Mi}}\n")
        until("the clone is copied", lambda: self.reason("narrow", "now") == "Filled")
        self.assertEqual([read(d) for d in copies], then)
        self.policy("narrow", quota="256Mi")
        self.stirred()
        until("the history goes on", lambda: SERVER.kubectl(
            "-n", "narrow", "get", "papp", "narrow", "-o", "jsonpath={.status.conditions[?(@.type=='Protected')].status}") == "True", 120)

    def test_a_node_of_an_older_release_copies_first(self):
        older = OlderData(STAND.path("older.sock"), STAND.path("data.sock"))
        self.addCleanup(older.close)
        devices, then = self.original("older")
        STAND.stop("node")
        STAND.start_node("older.sock")
        try:
            dry = self.recover("older", "dry", point="latest", targetNamespace="older-clone", dryRun=True)
            self.assertEqual(dry["phase"], "Planned", dry)
            self.assertFalse(dry["streams"][0]["atOnce"])
            self.assertIn("older release", dry["plan"]["notes"][0])
            self.assertIn("tidemark-data", dry["plan"]["notes"][0])
            self.assertIn("NotFound", SERVER.kubectl("get", "namespace", "older-clone", check=False))
            code, text, err = plugin("clone", "older/older", "--into", "older-clone", "--dry-run")
            self.assertEqual(code, OK, err)
            self.assertIn("note: ", text)
            self.assertIn("older release", text)
            before = older.refused
            done = self.recover("older", "now", point="latest", targetNamespace="older-clone")
            self.assertEqual(done["phase"], "Completed", done)
            self.assertGreater(older.refused, before)
            copies, found = self.copies(done)
            self.assertIsNone(found["filling"])
            self.assertEqual([read(d) for d in copies], then)
            (status, reason, message), filling = self.filled("older", "now")
            self.assertEqual((status, reason, filling), ("True", "CopiedFirst", None))
            self.assertIn("older release", message)
        finally:
            STAND.stop("node")
            STAND.start_node()


def install_node():
    """The agent of the node, as the controller finds it."""
    SERVER.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}},
                 {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent", "namespace": SYSTEM, "labels": {"app.kubernetes.io/component": "node"}},
                  "spec": {"nodeName": NODE, "tolerations": [{"operator": "Exists"}], "containers": [
                      {"name": "node", "image": "none", "ports": [{"name": "agent", "containerPort": STAND.port}]}]}})
    SERVER.kubectl("-n", SYSTEM, "patch", "pod", "agent", "--subresource=status", "--type=merge", "-p",
                   json.dumps({"status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}}))


if __name__ == "__main__":
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        skip("needs root and /dev/fuse")
    SERVER = base.SERVER = ApiServer()
    STAND = Stand()
    try:
        SERVER.kubectl("apply", "-f", f"{ROOT}/packaging/crds")
        SERVER.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=180s")
        SERVER.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
        SERVER.apply(*base.manifests("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"))
        until("the policy", lambda: base.create(base.tidemark_object("ProtectionPolicy", "gold"))[0] == 0)
        SERVER.apply({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "tidemark"}, "provisioner": "csi.tidemark.io",
                      "volumeBindingMode": "WaitForFirstConsumer"})
        install_node()
        base.CONTROLLER = base.Controller(f"--agent-cert={STAND.path('client.crt')}", f"--agent-key={STAND.path('client.key')}",
                                          f"--agent-ca={STAND.path('ca.crt')}")
        try:
            base.CONTROLLER.start()
            base.install()
            result = unittest.main(exit=False, verbosity=2).result
            if not result.wasSuccessful():
                for log in (f"{base.CONTROLLER.state}/log", STAND.path("data.log"), STAND.path("node.log")):
                    with open(log, encoding="utf-8", errors="replace") as f:
                        print(f"--- {log}\n" + "".join(f.readlines()[-40:]), file=sys.stderr)
        finally:
            base.CONTROLLER.close()
    finally:
        STAND.destroy(History.streams)
        SERVER.close()
    sys.exit(not result.wasSuccessful())
