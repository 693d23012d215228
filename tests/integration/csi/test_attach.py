#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Volumes of backing class in the Controller service, against a real API server: what is made in the cluster, step by step, and what is
refused. The test plays scheduler, kubelet and node agent. Tests name the invariants of src/csi/controller_class.c."""
import http.client
import http.server
import json
import os
import ssl
import subprocess
import sys
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../kube"))
from apiserver import KUBECTL, ApiServer, free_ports, until  # noqa: E402
import grpc  # noqa: E402

from stand import MIB, Stand, csi  # noqa: E402

CODE = grpc.StatusCode
SYSTEM = "tidemark-system"
SERVER = None


class Agent:
    """The node agents, all at one address: they answer a release as they are told."""

    def __init__(self, stand):
        self.asked = []
        openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([*openssl, "-subj", "/CN=ca", "-keyout", stand.path("ca.key"), "-out", stand.path("ca.crt")], **quiet)
        for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
            subprocess.run([*openssl, "-subj", f"/CN={name}", "-CA", stand.path("ca.crt"), "-CAkey", stand.path("ca.key"), "-addext",
                            f"extendedKeyUsage={usage}", "-addext", "subjectAltName=DNS:tidemark-node", "-addext",
                            "basicConstraints=critical,CA:FALSE", "-keyout", stand.path(f"{name}.key"), "-out", stand.path(f"{name}.crt")],
                           **quiet)
        agent = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                agent.asked.append(self.path)
                status, body = agent.answer
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        self.answer = (200, {"name": "", "released": True})
        self.port = free_ports(1)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(stand.path("server.crt"), stand.path("server.key"))
        context.load_verify_locations(stand.path("ca.crt"))
        context.verify_mode = ssl.CERT_REQUIRED
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        if self.server:
            self.server.shutdown()
            self.server.server_close()
        self.server = None


class Proxy:
    """The API server by plain HTTP: a kubectl a call is too slow to be in anybody's way."""

    def __init__(self):
        self.port = free_ports(1)
        self.child = subprocess.Popen([KUBECTL, f"--kubeconfig={SERVER.kubeconfig}", "proxy", f"--port={self.port}"], stdout=subprocess.PIPE, text=True)
        self.child.stdout.readline()

    def call(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found = json.loads(answer.read())
        connection.close()
        return answer.status, found

    def close(self):
        self.child.terminate()
        self.child.wait()
        self.child.stdout.close()


class Carried(unittest.TestCase):
    def setUp(self):
        self.stand = Stand()
        self.addCleanup(self.stand.destroy)
        self.agent = Agent(self.stand)
        self.addCleanup(self.agent.close)
        self.addCleanup(lambda: SERVER.kubectl("-n", SYSTEM, "delete", "pods,pvc,configmaps", "--all", "--force", "--grace-period=0", "--wait=false",
                                               check=False))
        SERVER.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}},
                     {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "fast"}, "provisioner": "other.io",
                      "allowVolumeExpansion": True},
                     {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "own"}, "provisioner": "csi.tidemark.io"},
                     *({"apiVersion": "v1", "kind": "Node", "metadata": {"name": n}} for n in ("n1", "n2")))
        SERVER.kubectl("-n", SYSTEM, "create", "serviceaccount", "default", check=False)
        self.node_agent("n1")
        self.start_controller()

    def start_controller(self):
        s = self.stand
        s.spawn("controller", ["controller", "--state", s.path("c"), "--csi-socket", s.path("controller.sock"), "--kubeconfig", SERVER.kubeconfig,
                               "--attachment-image", "tidemark:test", "--agent-cert", s.path("client.crt"), "--agent-key", s.path("client.key"),
                               "--agent-ca", s.path("ca.crt")], "controller: CSI answers")

    def node_agent(self, node):
        name = f"agent-{node}"
        SERVER.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": SYSTEM, "labels": {
            "app.kubernetes.io/component": "node"}}, "spec": {"nodeName": node, "automountServiceAccountToken": False, "containers": [
                {"name": "node", "image": "any", "ports": [{"name": "agent", "containerPort": self.agent.port}]}]}})
        self.status("pod", name, {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]})

    @staticmethod
    def status(kind, name, status, namespace=SYSTEM):
        SERVER.kubectl("-n", namespace, "patch", kind, name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))

    @staticmethod
    def get(kind, name):
        text = SERVER.kubectl("-n", SYSTEM, "get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text else None

    def fails(self, code, text, function, *arguments, **named):
        with self.assertRaises(grpc.RpcError) as caught:
            function(*arguments, **named)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        self.assertIn(text, caught.exception.details())

    def create(self, name, size=64 * MIB, **parameters):
        return self.stand.create(name, size, parameters={"backing": "class", "backingClass": "fast"} | parameters).volume_id

    def attach(self, volume, node="n1", timeout=2):
        """A short timeout: what is waited for comes by another call."""
        request = csi.ControllerPublishVolumeRequest(volume_id=volume, node_id=node, volume_capability=Stand.capability())
        return dict(self.stand.call("controller", "Controller", "ControllerPublishVolume", request, timeout).publish_context)

    def not_attached(self, volume, node="n1"):
        """What the record of the last call said, or that the caller was gone before."""
        with self.assertRaises(grpc.RpcError) as caught:
            self.attach(volume, node)
        self.assertIn(caught.exception.code(), (CODE.UNAVAILABLE, CODE.DEADLINE_EXCEEDED, CODE.ABORTED), caught.exception.details())
        return caught.exception.details()

    def detach(self, volume, node="n1"):
        self.stand.controller("ControllerUnpublishVolume", volume_id=volume, node_id=node)

    def bind(self, *claims):
        """What provisioner and binder do."""
        for c in claims:
            claim = self.get("pvc", c)
            SERVER.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"pv-{c}"}, "spec": {
                "capacity": claim["spec"]["resources"]["requests"], "accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
                "storageClassName": "fast", "csi": {"driver": "other.io", "volumeHandle": c},
                "claimRef": {"namespace": SYSTEM, "name": c, "uid": claim["metadata"]["uid"]}}})
            self.addCleanup(SERVER.kubectl, "delete", "pv", f"pv-{c}", "--wait=false", check=False)
            until("the claim is bound", lambda: self.get("pvc", c).get("status", {}).get("phase") == "Bound")

    def run_pod(self, stream, node="n1"):
        """What scheduler and kubelet do."""
        name = f"{stream}-attachment"
        until("the attachment pod", lambda: self.get("pod", name))
        self.bind(*(v["persistentVolumeClaim"]["claimName"] for v in self.get("pod", name)["spec"]["volumes"]))
        self.status("pod", name, {"phase": "Running", "containerStatuses": [
            {"name": "hold", "ready": True, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}}]})
        return self.get("pod", name)["metadata"]["uid"]

    def attached(self, volume, node="n1"):
        self.not_attached(volume, node)
        uid = self.run_pod(volume, node)
        context = self.attach(volume, node, 30)
        self.assertEqual(context["attachment"], uid)
        return context

    def test_parameters_that_make_no_sense_are_refused(self):
        refuse = [({"backingClass": ""}, "backingClass of the StorageClass is missing"), ({"backingClass": "none"}, "no StorageClass none"),
                  ({"backingClass": "own"}, "Tidemark's own"), ({"backing": "host"}, "go with backing class"),
                  ({"backing": "cloud"}, "expected host or class"), ({"journalSize": "much"}, "journalSize")]
        for i, (parameters, text) in enumerate(refuse):
            self.fails(CODE.INVALID_ARGUMENT, text, self.create, f"refused-{i}", **parameters)

    def test_two_who_write_a_record_take_nothing_from_each_other(self):
        """The driver grows a volume while a recovery, say, gives it to another claim: each reads the whole record, and writes it."""
        v = self.stand.create("shared", 16 * MIB, parameters={"backing": "host"}).volume_id
        path = f"/api/v1/namespaces/{SYSTEM}/configmaps/{v}"
        proxy = Proxy()
        self.addCleanup(proxy.close)
        ended, sizes = threading.Event(), [16 * MIB]

        def grow():
            while not ended.wait(0.005):
                try:
                    size = sizes[-1] + MIB
                    self.stand.call("controller", "Controller", "ControllerExpandVolume", csi.ControllerExpandVolumeRequest(
                        volume_id=v, capacity_range=csi.CapacityRange(required_bytes=size)), 20)
                    sizes.append(size)
                except grpc.RpcError as e:
                    if e.code() != CODE.UNAVAILABLE or "changed by somebody else" not in e.details():
                        raise
        grower = threading.Thread(target=grow, daemon=True)
        grower.start()
        written, end = 0, time.monotonic() + 30
        try:
            while written < 200:
                self.assertLess(time.monotonic(), end, f"{written} changes")
                _, item = proxy.call("GET", path)
                record = json.loads(item["data"]["record"])
                self.assertEqual(record.get("recovery", ""), f"test/{written}" if written else "", "what was written is lost")
                item["data"]["record"] = json.dumps(record | {"recovery": f"test/{written + 1}"})
                status, _ = proxy.call("PUT", path, item)
                self.assertIn(status, (200, 409))
                written += status == 200
        finally:
            ended.set()
            grower.join(60)
        self.assertGreater(len(sizes), 20)
        self.assertEqual(json.loads(self.get("configmap", v)["data"]["record"])["size_bytes"], sizes[-1])

    def test_a_volume_is_a_claim_and_its_stream_a_pod_with_journal(self):  # K2
        v = self.create("one", journalSize="512Mi")
        self.assertEqual(self.create("one", journalSize="512Mi"), v)
        claim = self.get("pvc", v)["spec"]
        self.assertEqual((claim["storageClassName"], claim["volumeMode"], claim["resources"]["requests"]["storage"]), ("fast", "Block", str(64 * MIB)))
        self.assertIsNone(self.get("pvc", f"{v}-journal"))
        context = self.attached(v)
        self.assertEqual(context["stream"], v)
        self.assertEqual(context["devices"], f"journal=pv-{v}-journal,{v}=pv-{v}")
        self.assertEqual(self.get("pvc", f"{v}-journal")["spec"]["resources"]["requests"]["storage"], str(576 * MIB))
        self.stand.stop("controller", 9)
        self.start_controller()
        self.assertEqual(self.attach(v, timeout=30), context)
        self.fails(CODE.FAILED_PRECONDITION, "attached to node n1", self.attach, v, "n2", 30)
        self.fails(CODE.FAILED_PRECONDITION, "attached to node", self.stand.controller, "DeleteVolume", volume_id=v)
        for _ in range(2):
            self.detach(v)
            self.assertIsNone(self.get("pod", f"{v}-attachment"))
        self.assertEqual(set(self.agent.asked), {f"/v1/streams/{v}/release"})
        self.stand.controller("DeleteVolume", volume_id=v)
        self.assertIsNotNone(self.get("pvc", v), "its history is kept, and its data with it")

    def test_a_node_that_has_not_let_go_keeps_it(self):  # K1
        v = self.create("kept")
        self.attached(v)
        self.agent.answer = (409, {"error": {"code": "EBUSY", "message": "volume tm-x of it is still staged"}})
        self.fails(CODE.FAILED_PRECONDITION, "still staged", self.detach, v)
        self.assertIsNotNone(self.get("pod", f"{v}-attachment"))
        self.fails(CODE.FAILED_PRECONDITION, "attached to node n1", self.attach, v, "n2", 30)
        SERVER.kubectl("-n", SYSTEM, "delete", "pod", "agent-n1", "--force", "--grace-period=0")
        self.agent.close()
        self.fails(CODE.UNAVAILABLE, "out-of-service", self.detach, v)
        self.assertIsNotNone(self.get("pod", f"{v}-attachment"))
        # The pod alone says nothing: somebody may have removed it.
        SERVER.kubectl("-n", SYSTEM, "delete", "pod", f"{v}-attachment", "--force", "--grace-period=0")
        self.fails(CODE.UNAVAILABLE, "out-of-service", self.detach, v)
        SERVER.kubectl("taint", "node", "n1", "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
        self.status("node", "n1", {"conditions": [{"type": "Ready", "status": "Unknown"}]}, "default")
        self.addCleanup(lambda: SERVER.kubectl("taint", "node", "n1", "node.kubernetes.io/out-of-service-", check=False))
        self.detach(v)
        self.attached(v, "n2")

    def test_what_is_still_held_elsewhere_is_not_opened(self):  # K1
        v = self.create("held")
        self.attached(v)
        record = self.get("configmap", v)
        changed = json.loads(record["data"]["record"]) | {"published_node": "", "node": ""}
        SERVER.kubectl("-n", SYSTEM, "patch", "configmap", v, "--type=merge", "-p", json.dumps({"data": {"record": json.dumps(changed)}}))
        self.fails(CODE.UNAVAILABLE, "still attached to node n1", self.attach, v, "n2", 30)

    def record(self, volume, **changes):
        record = json.loads(self.get("configmap", volume)["data"]["record"]) | changes
        if changes:
            SERVER.kubectl("-n", SYSTEM, "patch", "configmap", volume, "--type=merge", "-p", json.dumps({"data": {"record": json.dumps(record)}}))
        return record

    def test_a_stream_of_two_moves_though_one_is_called_for_before_the_other_has_left(self):  # K1, K2
        a, b = self.create("first"), self.create("second")
        self.record(b, stream=a)
        self.attached(a)
        self.attach(b, timeout=30)
        self.detach(a)
        self.assertIsNotNone(self.get("pod", f"{a}-attachment"), "the other one is still there")
        self.not_attached(a, "n2")
        self.detach(b)
        self.assertIsNone(self.get("pod", f"{a}-attachment"))
        self.attached(a, "n2")
        self.attach(b, "n2", timeout=30)
        for volume in (a, b):
            self.assertEqual([self.record(volume)[k] for k in ("node", "published_node")], ["n2", "n2"])

    def test_what_a_recovery_holds_is_waited_for(self):  # K1
        v = self.create("recovered")
        self.attached(v)
        self.record(v, published_node="", node="")

        def say(**annotations):
            SERVER.kubectl("-n", SYSTEM, "patch", "pod", f"{v}-attachment", "--type=merge", "-p", json.dumps({"metadata": {"annotations": {
                f"tidemark.io/{k.replace('_', '-')}": value for k, value in annotations.items()}}}))
        say(held_for="shop/back")
        self.fails(CODE.UNAVAILABLE, "for the Recovery shop/back", self.attach, v, "n2", 30)
        self.detach(v, "n2")
        self.assertEqual(self.agent.asked, [], "whoever holds it closes it")
        self.attach(v, timeout=30)  # a pod on its node uses it at once
        self.detach(v)
        self.assertIsNotNone(self.get("pod", f"{v}-attachment"))
        say(letting_go="true")
        self.fails(CODE.UNAVAILABLE, "still being deleted", self.attach, v, "n1", 30)
        say(letting_go=None, held_for=None)
        self.attach(v, timeout=30)
        self.detach(v)
        self.assertIsNone(self.get("pod", f"{v}-attachment"))

    def test_it_grows_after_what_carries_it(self):
        v = self.create("small")
        self.attached(v)

        def grow():
            request = csi.ControllerExpandVolumeRequest(volume_id=v, capacity_range=csi.CapacityRange(required_bytes=128 * MIB))
            return self.stand.call("controller", "Controller", "ControllerExpandVolume", request, 30)
        self.fails(CODE.UNAVAILABLE, "is not expanded", grow)
        self.assertEqual(self.get("pvc", v)["spec"]["resources"]["requests"]["storage"], str(128 * MIB))
        self.assertEqual(self.attach(v, timeout=30)["size"], str(64 * MIB))
        self.status("pvc", v, {"capacity": {"storage": str(128 * MIB)}})
        self.assertEqual(grow().capacity_bytes, 128 * MIB)
        self.assertEqual(self.attach(v, timeout=30)["size"], str(128 * MIB))


if __name__ == "__main__":
    SERVER = ApiServer()
    try:
        done = unittest.TextTestRunner(verbosity=2).run(unittest.TestLoader().loadTestsFromNames(sys.argv[1:] or ["Carried"], sys.modules[__name__]))
    finally:
        SERVER.close()
    sys.exit(not done.wasSuccessful())
