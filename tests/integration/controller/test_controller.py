#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The controller against a real API server: protection by one line, and a journal of the objects that is exact."""
import base64
import concurrent.futures
import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../kube"))
from apiserver import ROOT, ApiServer, until

BUILD = os.environ.get("TIDEMARK_BUILD", "build")
PROBE = f"{BUILD}/tests/integration/controller/controller_probe"
SERVER = None
POLICY = {"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectionPolicy", "metadata": {"name": "gold"}, "spec": {}}


def config_map(name, namespace, value="1", **metadata):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace, **metadata}, "data": {"value": value}}


def make_namespace(name, **annotations):
    SERVER.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations}})
    until("the namespace's own objects", lambda: SERVER.kubectl("-n", name, "get", "configmap", "kube-root-ca.crt", check=False).startswith("NAME"))
    return name


def claim(name, namespace, storage_class=None, **metadata):
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace, **metadata},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": storage_class or "", "resources": {"requests": {"storage": "1Gi"}}}}


class Controller:
    def __init__(self, state, identity="one"):
        self.state = state
        self.rings = set()
        self.log = open(f"{state}/{identity}.log", "a")
        self.child = subprocess.Popen([PROBE, "run", state, identity], stderr=self.log, env={**os.environ, "KUBECONFIG": SERVER.kubeconfig})

    def log_text(self):
        with open(self.log.name) as f:
            return f.read()

    def memory_kib(self, field="VmRSS"):
        with open(f"/proc/{self.child.pid}/status") as f:
            return int(next(line.split()[1] for line in f if line.startswith(field)))

    def kill(self):
        # A journal that is killed leaves its ring in memory for the next one that opens it; the last one's is removed by the test.
        with open(f"/proc/{self.child.pid}/maps") as f:
            self.rings |= {line.split()[-1] for line in f if line.rstrip().endswith(".ring")}
        self.child.kill()
        self.child.wait()
        self.log.close()

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        try:
            code = self.child.wait(timeout=180)
        finally:
            self.log.close()
        return code


def papp(namespace, name=None):
    text = SERVER.kubectl("-n", namespace, "get", "papp", name or namespace, "-o", "json", check=False)
    return json.loads(text) if text.startswith("{") else None


def condition(namespace, kind, name=None):
    found = [c for c in (papp(namespace, name) or {}).get("status", {}).get("conditions", []) if c["type"] == kind]
    return (found[0]["status"], found[0]["reason"]) if found else None


def history(state, namespace, name=None):
    done = subprocess.run([PROBE, "history", state, namespace, name or namespace], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "KUBECONFIG": SERVER.kubeconfig})
    assert done.returncode == 0, done.stdout
    return list(reversed(done.stdout.splitlines()))


def read(state, namespace, point="latest", name=None):
    done = subprocess.run([PROBE, "read", state, namespace, name or namespace, point], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "KUBECONFIG": SERVER.kubeconfig})
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout)


def config_maps(objects):
    """{name: value} of the test's own config maps."""
    return {key.split("/")[-1]: o["data"]["value"] for key, o in objects.items() if "/ConfigMap/" in key and "value" in o.get("data", {})}


def actual(namespace):
    items = SERVER.json("-n", namespace, "get", "configmaps")["items"]
    return {o["metadata"]["name"]: o["data"]["value"] for o in items if "value" in o.get("data", {})}


class ControllerTest(unittest.TestCase):
    def setUp(self):
        self.state = tempfile.mkdtemp(prefix="tidemark-controller-")
        self.controllers = []
        self.addCleanup(self.clean)

    def start(self, identity="one", state=None):
        # One that was killed left its Lease: as an operator would, the test does not wait for it to expire.
        if not any(c.child.poll() is None for c in self.controllers):
            SERVER.kubectl("-n", "tidemark-system", "delete", "lease", "tidemark-controller", "--ignore-not-found")
        controller = Controller(state or self.state, identity)
        self.controllers.append(controller)
        return controller

    def clean(self):
        for c in self.controllers:
            if c.child.poll() is None:
                c.kill()
            for ring in c.rings:
                if os.path.exists(ring):
                    os.unlink(ring)
        shutil.rmtree(self.state)

    def until_journaled(self, namespace, seconds=300):
        """Until a recovery to the latest point would change nothing: everything that is there, and nothing else, is in the journal."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ControllerTest.probes += 1
            name = f"journaled-{ControllerTest.probes}"
            SERVER.kubectl("create", "-f", "-", stdin=json.dumps({
                "apiVersion": "tidemark.io/v1alpha1", "kind": "Recovery", "metadata": {"name": name, "namespace": namespace, "annotations": {
                    "tidemark.io/requested-by": json.dumps({"username": "admin", "groups": ["system:masters", "system:authenticated"]})}},
                "spec": {"application": namespace, "mode": "rewind", "point": "latest", "dryRun": True}}))
            status = until("the plan", lambda: (lambda s: s if s.get("phase") in ("Planned", "Failed") else None)(
                SERVER.json("-n", namespace, "get", "recovery", name).get("status", {})))
            if status["phase"] == "Planned" and not any(status["plan"][action] for action in ("create", "change", "recreate", "delete")):
                return
        raise AssertionError(f"{namespace}: not journaled within {seconds} s: {status}")

    probes = 0

    def captured(self, namespace, name=None):
        until(f"{namespace} is captured", lambda: condition(namespace, "ObjectsCaptured", name) == ("True", "Journaled"))


class Protection(ControllerTest):
    def test_an_annotation_makes_an_application_and_its_end_ends_it(self):
        ns = make_namespace("line")
        controller = self.start()
        SERVER.kubectl("annotate", "namespace", ns, "tidemark.io/policy=gold")
        until("the application", lambda: papp(ns))
        SERVER.kubectl("-n", ns, "wait", "--for=condition=Ready", f"papp/{ns}", "--timeout=180s")
        status = papp(ns)["status"]
        self.assertEqual(status["observedGeneration"], papp(ns)["metadata"]["generation"])
        self.assertEqual(condition(ns, "Protected"), ("True", "NoVolumes"))
        self.assertGreater(status["objects"]["count"], 1)
        until("an event", lambda: "Reconciled" in SERVER.kubectl("-n", ns, "get", "events"))
        version = papp(ns)["metadata"]["resourceVersion"]
        SERVER.kubectl("annotate", "namespace", ns, "tidemark.io/policy=silver", "--overwrite")
        until("what is wrong", lambda: condition(ns, "Ready") == ("False", "PolicyNotFound"))
        SERVER.kubectl("annotate", "namespace", ns, "tidemark.io/policy-")
        until("the end", lambda: not papp(ns))
        self.assertNotEqual(version, "")
        self.assertEqual(controller.stop(), 0)
        self.assertTrue(history(self.state, ns), "the history stays")

    def test_how_many_objects_there_are_is_not_a_reason_to_count_them_again(self):
        """Its own status comes back to the controller by the watch: while objects were made, each count led to the next."""
        ns = make_namespace("growing", **{"tidemark.io/policy": "gold"})
        self.start()
        self.captured(ns)
        versions, begun = [], time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            making = pool.submit(lambda: SERVER.apply(*(config_map(f"c{i}", ns) for i in range(600))))
            until("the first", lambda: actual(ns))
            SERVER.kubectl("annotate", "protectionpolicy", "gold", f"example.com/touched={begun}", "--overwrite")  # all of its are looked at once
            while not making.done():
                versions.append(papp(ns)["metadata"]["resourceVersion"])
            making.result()
        took, written = time.monotonic() - begun, len(set(versions))
        print(f"its status was seen {len(versions)} times in {took:.0f} s, and was written {written} times")
        self.assertLess(written, 4 + took / 10)  # when it is looked at, and every half a minute
        until("all are counted", lambda: papp(ns)["status"]["objects"]["count"] == 600 + 2)  # the namespace and its account

    def test_what_people_wrote_is_left_alone(self):
        ns = make_namespace("own")
        self.start()
        SERVER.apply({"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectedApplication", "metadata": {"name": "own", "namespace": ns},
                      "spec": {"policyRef": {"name": "gold"}}})
        SERVER.kubectl("-n", ns, "wait", "--for=condition=Ready", "papp/own", "--timeout=180s")
        SERVER.kubectl("annotate", "namespace", ns, "tidemark.io/policy=silver")
        make_namespace("own-after", **{"tidemark.io/policy": "gold"})  # once that is done, so is the other
        until("the application after it", lambda: condition("own-after", "Ready"))
        self.assertEqual(papp(ns)["spec"]["policyRef"]["name"], "gold")

    def test_volumes_that_are_not_captured_are_named_with_reason_and_remedy(self):
        ns = make_namespace("volumes", **{"tidemark.io/policy": "gold"})
        SERVER.apply({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "foreign"}, "provisioner": "foreign.example.com"},
                     {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "tidemark"}, "provisioner": "csi.tidemark.io"},
                     {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "volumes-ours"},
                      "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "tidemark",
                               "claimRef": {"namespace": ns, "name": "ours"}, "csi": {"driver": "csi.tidemark.io", "volumeHandle": "tm-1"}}},
                     claim("other", ns, "foreign"), claim("none", ns), claim("typo", ns, "nosuch"),
                     {**claim("ours", ns, "tidemark"), "spec": {**claim("ours", ns, "tidemark")["spec"], "volumeName": "volumes-ours"}},
                     {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": ns}, "spec": {
                         "containers": [{"name": "c", "image": "none"}], "volumes": [{"name": "h", "hostPath": {"path": "/srv/data"}}]}})
        self.start()
        reasons = lambda: {v["claim"]: (v["captured"], v["reason"]) for v in (papp(ns) or {}).get("status", {}).get("volumes", [])}
        wanted = ({"other": (False, "OtherDriver"), "none": (False, "NoClass"), "typo": (False, "ClassNotFound"),
                                                   "ours": (True, "Captured"), "hostPath:/srv/data": (False, "HostPath")})
        try:
            until("the volumes", lambda: reasons() == wanted)
        except AssertionError:
            self.assertEqual(reasons(), wanted)
        messages = {v["claim"]: v["message"] for v in papp(ns)["status"]["volumes"]}
        self.assertIn("foreign.example.com", messages["other"])
        self.assertIn(f"kubectl tidemark adopt {ns}/other", messages["other"])
        self.assertEqual(condition(ns, "Protected"), ("False", "VolumesNotCaptured"))

    def test_two_applications_cannot_own_one_volume(self):
        ns = make_namespace("twice", **{"tidemark.io/policy": "gold"})
        SERVER.apply(claim("data", ns, None, annotations={"tidemark.io/policy": "gold", "tidemark.io/application": "shop"}))
        self.start()
        for name in (ns, "shop"):
            until(name, lambda n=name: condition(ns, "Ready", n) == ("False", "VolumeClaimedTwice"))
        self.assertEqual(papp(ns, "shop")["spec"]["selector"], {"matchLabels": {"tidemark.io/application": "shop"}})

    def test_state_outside_the_cluster_is_told_without_secrets(self):
        ns = make_namespace("outside", **{"tidemark.io/policy": "gold"})
        SERVER.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": ns},
                      "data": {"DATABASE_URL": "postgres://shop:hunter2@db.example.com:5432/shop"}})
        self.start()
        found = until("the finding", lambda: (papp(ns) or {}).get("status", {}).get("findings"))
        self.assertEqual((found[0]["host"], found[0]["type"]), ("db.example.com", "database"))
        self.assertNotIn("hunter2", json.dumps(papp(ns)["status"]))


    def test_a_name_that_no_application_can_have_keeps_no_other_out(self):
        ns = make_namespace("misnamed")
        annotated = lambda name, **more: claim(name, ns, annotations={"tidemark.io/policy": "gold", **more})
        SERVER.apply(annotated("first", **{"tidemark.io/application": "My App"}), annotated("a"), annotated("b"),
                     {**annotated("last"), "metadata": {**annotated("last")["metadata"], "labels": {"tidemark.io/application": "Shop_1"}}})
        self.start()
        for name in ("a", "b"):
            until(f"{name} is protected", lambda n=name: papp(ns, n))
        for name in ("first", "last"):
            until("an event", lambda n=name: "InvalidApplicationName" in SERVER.kubectl(
                "-n", ns, "get", "events", f"--field-selector=involvedObject.name={n}", check=False))
        SERVER.kubectl("-n", ns, "annotate", "pvc", "first", "tidemark.io/application=my-app", "--overwrite")
        until("it is protected", lambda: papp(ns, "my-app"))
        events = json.loads(SERVER.kubectl("-n", ns, "get", "events", "--field-selector=reason=InvalidApplicationName", "-o", "json"))["items"]
        self.assertEqual(len(events), 2, "each is told once")


class Capture(ControllerTest):
    def test_what_cannot_be_journaled_is_told_and_keeps_no_other_out(self):
        ns, other = make_namespace("deep", **{"tidemark.io/policy": "gold"}), make_namespace("deep-other")
        SERVER.apply({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "wells.example.com"},
                      "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "wells", "singular": "well", "kind": "Well"},
                               "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
                                   "type": "object", "x-kubernetes-preserve-unknown-fields": True}}}]}})
        SERVER.kubectl("wait", "--for=condition=Established", "crd/wells.example.com")
        until("the kind", lambda: not SERVER.kubectl("get", "wells", check=False).startswith("error"))

        def well(name, namespace, depth):
            spec = "1"
            for _ in range(depth):
                spec = f'{{"a":{spec}}}'
            SERVER.kubectl("create", "-f", "-", stdin=f'{{"apiVersion":"example.com/v1","kind":"Well","metadata":{{"name":"{name}","namespace":"{namespace}"}},"spec":{spec}}}')
        well("theirs", other, 300)  # somebody else's
        controller = self.start()
        self.captured(ns)
        well("deep", ns, 300)
        well("less", ns, 220)
        well("plain", ns, 5)
        findings = lambda: {f["object"].split("/")[-1]: f["message"] for f in (papp(ns) or {}).get("status", {}).get("findings", []) if f["type"] == "not journaled"}
        until("the findings", lambda: set(findings()) == {"deep", "less"})
        self.assertIn("nested deeper", findings()["deep"])
        self.until_journaled(ns)  # neither is to be deleted because the history does not have it
        SERVER.kubectl("-n", ns, "delete", "well", "deep")
        until("the finding goes with it", lambda: set(findings()) == {"less"})
        controller.stop()
        self.assertEqual([n.split("/")[-1] for n in read(self.state, ns) if "/Well/" in n], ["plain"])
        SERVER.kubectl("delete", "crd", "wells.example.com")

    def test_endpoints_that_a_person_wrote_are_journaled(self):
        ns = make_namespace("written", **{"tidemark.io/policy": "gold"})
        controller = self.start()
        self.captured(ns)
        service = lambda name, **spec: {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": ns}, "spec": {"ports": [{"port": 5432}], **spec}}
        SERVER.apply(service("old"), service("new"), service("made", selector={"app": "x"}),
                     {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "old", "namespace": ns},
                      "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 5432}]}]},
                     {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "new-1", "namespace": ns, "labels": {
                         "kubernetes.io/service-name": "new"}}, "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.8"]}], "ports": [{"port": 5432}]},
                     {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "made-1", "namespace": ns, "labels": {
                         "kubernetes.io/service-name": "made", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
                      "addressType": "IPv4", "endpoints": []})
        self.until_journaled(ns)
        controller.stop()
        stored = read(self.state, ns)
        self.assertEqual({n.split("/", 1)[1] for n in stored if "/Endpoint" in n}, {f"v1/Endpoints/{ns}/old", f"v1/EndpointSlice/{ns}/new-1"})
        self.assertEqual(stored[f"core/v1/Endpoints/{ns}/old"]["subsets"][0]["addresses"], [{"ip": "192.0.2.7"}])

    def test_nothing_is_missed_over_kills_and_each_moment_reads_back_exactly(self):
        seed = int(os.environ.get("TIDEMARK_SEED", time.time_ns() % 10**9))
        print(f"TIDEMARK_SEED={seed}")
        rng = random.Random(seed)
        ns = make_namespace("exact", **{"tidemark.io/policy": "gold"})
        moments = []
        controller = self.start()
        self.captured(ns)
        for step in range(6):
            for _ in range(rng.randrange(3, 8)):
                name = f"c{rng.randrange(8)}"
                if rng.random() < 0.3:
                    SERVER.kubectl("-n", ns, "delete", "configmap", name, "--ignore-not-found")
                else:
                    SERVER.apply(config_map(name, ns, str(rng.randrange(10**6))))
            killed = step % 2 == 1
            if killed:  # in the middle of it
                controller.kill()
                SERVER.apply(config_map(f"away{step}", ns, "1"))
                SERVER.kubectl("-n", ns, "delete", "configmap", f"c{rng.randrange(8)}", "--ignore-not-found")
                controller = self.start()
            self.until_journaled(ns)
            moments.append((datetime.datetime.now(datetime.timezone.utc).isoformat(), actual(ns)))
        controller.kill()
        for moment, wanted in moments:
            self.assertEqual(config_maps(read(self.state, ns, moment)), wanted, moment)
        lines = history(self.state, ns)
        self.assertEqual(len([l for l in lines if l.startswith("gap the controller was not looking")]), 3, lines)
        # S1: no record says what was known already.
        last = {}
        for line in lines:
            kind, rest = line.split(" ", 1)
            if kind != "gap":
                name = rest.rsplit(" ", 1)[0]
                self.assertFalse(kind == "deleted" and last.get(name, "deleted") == "deleted", line)
                last[name] = kind

    def test_secrets_are_sealed_and_read_back(self):
        ns = make_namespace("sealed", **{"tidemark.io/policy": "gold"})
        controller = self.start()
        self.captured(ns)
        # Not even where somebody asks for it.
        system = "tidemark-system"
        SERVER.apply({"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectedApplication", "metadata": {"name": system, "namespace": system},
                      "spec": {"policyRef": {"name": "gold"}}})
        self.captured(system)
        text = "correct-horse-battery-staple"
        SERVER.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": ns},
                                                             "stringData": {"password": text}}))
        self.until_journaled(ns)
        self.assertEqual(controller.stop(), 0)
        stored = read(self.state, ns)[f"core/v1/Secret/{ns}/s"]
        self.assertEqual(base64.b64decode(stored["data"]["password"]).decode(), text)
        for needle in (text, base64.b64encode(text.encode()).decode()):
            found = subprocess.run(["grep", "-rlaF", needle, self.state], stdout=subprocess.PIPE, text=True).stdout
            self.assertEqual(found, "")
        self.assertFalse([n for n in read(self.state, system) if "tidemark-object-key" in n])
        SERVER.kubectl("-n", system, "delete", "papp", system)

    def test_a_kind_that_is_defined_later_is_captured_and_noise_is_not(self):
        ns = make_namespace("later", **{"tidemark.io/policy": "gold"})
        controller = self.start()
        self.captured(ns)
        SERVER.apply({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
                      "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
                               "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
                                   "type": "object", "x-kubernetes-preserve-unknown-fields": True}}}]}})
        SERVER.kubectl("wait", "--for=condition=Established", "crd/widgets.example.com")
        until("the kind", lambda: not SERVER.kubectl("get", "widgets", check=False).startswith("error"))
        SERVER.apply({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "namespace": ns}, "size": 3})
        SERVER.kubectl("-n", ns, "create", "configmap", "after", "--from-literal=value=1")
        self.until_journaled(ns)  # the kind, too
        controller.stop()
        stored = read(self.state, ns)
        self.assertEqual(stored[f"example.com/v1/Widget/{ns}/w"]["size"], 3)
        self.assertFalse([n for n in stored if "/Event/" in n or "/Lease/" in n or "tidemark.io/" in n], stored.keys())
        SERVER.kubectl("delete", "crd", "widgets.example.com")

    def test_versions_that_are_forgotten_are_a_gap_and_the_end_is_exact(self):
        ns = make_namespace("forgotten", **{"tidemark.io/policy": "gold"})
        controller = self.start()
        self.captured(ns)
        SERVER.apply(config_map("a", ns, "1"), config_map("b", ns, "1"))
        self.until_journaled(ns)
        controller.child.send_signal(signal.SIGSTOP)
        try:
            SERVER.kill()  # what it sends now is not in the socket of the one that is stopped
            SERVER.up()
            SERVER.apply(config_map("a", ns, "2"))
            SERVER.kubectl("-n", ns, "delete", "configmap", "b")
            SERVER.compact()
            SERVER.kill()
            SERVER.up()
        finally:
            controller.child.send_signal(signal.SIGCONT)
        until("the gap", lambda: "changes of configmaps may have passed unseen" in controller.log_text())
        SERVER.apply(config_map("c", ns, "3"))
        until("the rest", lambda: controller.log_text().count("may have passed unseen") > 3)
        self.until_journaled(ns)
        controller.stop()
        self.assertEqual(config_maps(read(self.state, ns)), {"a": "2", "c": "3"})
        lines = history(self.state, ns)
        gap = next(i for i, l in enumerate(lines) if l.startswith("gap changes of"))
        change = next(i for i, l in enumerate(lines) if l.startswith(f"deleted core/v1/ConfigMap/{ns}/b"))
        self.assertLess(gap, change, "the gap stands before what was found after it")

    def test_another_replica_goes_on_when_the_leader_is_killed(self):
        ns = make_namespace("replicas", **{"tidemark.io/policy": "gold"})
        first = self.start("one")
        self.captured(ns)
        second = self.start("two")
        first.kill()
        SERVER.apply(config_map("late", ns, "1"))
        until("the second leads", lambda: "two holds the lease" in second.log_text())
        self.until_journaled(ns)
        second.stop()
        self.assertEqual(config_maps(read(self.state, ns)), {"late": "1"})

    def test_a_leader_that_is_stopped_until_another_leads_ends_its_term(self):
        ns = make_namespace("stopped", **{"tidemark.io/policy": "gold"})
        first = self.start("one")
        self.captured(ns)
        other = tempfile.mkdtemp(prefix="tidemark-controller-")
        self.addCleanup(shutil.rmtree, other, ignore_errors=True)
        second = self.start("two", other)
        first.child.send_signal(signal.SIGSTOP)
        try:
            until("the second leads", lambda: "two holds the lease" in second.log_text())
        finally:
            first.child.send_signal(signal.SIGCONT)
        until("the first knows it", lambda: "one lost the lease" in first.log_text(), 30)
        SERVER.kubectl("annotate", "namespace", ns, "tidemark.io/policy-")
        until("the second acts", lambda: not papp(ns))
        self.assertEqual((first.stop(), second.stop()), (0, 0))


@unittest.skipUnless(os.environ.get("TIDEMARK_SCALE"), "TIDEMARK_SCALE=1 runs it (some minutes)")
class Scale(ControllerTest):
    def test_ten_thousand_objects_in_a_hundred_namespaces(self):
        for n in range(100):
            SERVER.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"scale{n}", "annotations": {"tidemark.io/policy": "gold"}}})
        items = lambda n: [{**config_map(f"c{k}", f"scale{n}", "x" * 1000)} for k in range(99)]
        for n in range(100):
            SERVER.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items(n)}))
        started = time.monotonic()
        controller = self.start()
        until("all are captured", lambda: all(condition(f"scale{n}", "ObjectsCaptured") for n in (0, 50, 99)), 300)
        until("all 100", lambda: len([p for p in SERVER.json("get", "papp", "-A")["items"] if any(
            c["type"] == "ObjectsCaptured" and c["status"] == "True" for c in p.get("status", {}).get("conditions", []))]) >= 100, 300)
        first = time.monotonic() - started
        peak = controller.memory_kib("VmHWM")
        self.assertEqual(controller.stop(), 0)
        started = time.monotonic()
        controller = self.start("two")
        until("the second start", lambda: controller.log_text().count("journaled again") >= 100, 300)
        second = time.monotonic() - started
        for n in range(0, 100, 7):
            SERVER.apply(config_map("c0", f"scale{n}", "changed"))
        time.sleep(1)
        resting, peak2 = controller.memory_kib(), controller.memory_kib("VmHWM")
        controller.kill()
        for n in range(0, 100, 7):
            self.assertEqual(config_maps(read(self.state, f"scale{n}"))["c0"], "changed")
            self.assertEqual(len(config_maps(read(self.state, f"scale{n}"))), 99)
        print(f"scale: first_capture_s={first:.1f} restart_s={second:.1f} peak_kib={peak} restart_peak_kib={peak2} rss_kib={resting}")
        self.assertLess(max(peak, peak2), 128 * 1024)


def main(module):
    """Runs the tests of the module with a server of their own."""
    global SERVER
    SERVER = ApiServer()
    try:
        SERVER.kubectl("apply", "-f", f"{ROOT}/packaging/crds")
        SERVER.kubectl("wait", "--for=condition=Established", "--timeout=180s", "crd", "--all")
        SERVER.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tidemark-system"}})
        until("the policy", lambda: SERVER.kubectl("apply", "-f", "-", stdin=json.dumps(POLICY), check=False).startswith("protectionpolicy"))
        result = unittest.main(module, exit=False, verbosity=2).result
    finally:
        SERVER.close()
    sys.exit(not result.wasSuccessful())


if __name__ == "__main__":
    main("__main__")
