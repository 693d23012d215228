#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Recoveries of objects against a real API server, by the controller and its journals. Invariants R1..R6: controller/recovery.h."""
import json
import os
import signal
import sys
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../kube"))
sys.path.insert(0, os.path.join(HERE, "../controller"))
import test_controller as base
from apiserver import ROOT, ApiServer, until

SERVER = None
ADMIN = {"username": "admin", "groups": ["system:masters"]}
DONE = ("Planned", "Completed", "Failed", "Cancelled")


def deployment(name, namespace, image="shop:1", label="web", **spec):
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": label}},
                     "template": {"metadata": {"labels": {"app": label}}, "spec": {"containers": [{"name": "c", "image": image}]}}, **spec}}


def service(name, namespace, node_port=None, **spec):
    port = {"port": 80, "name": "http", **({"nodePort": node_port} if node_port else {})}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [port], **spec}}


class Recoveries(base.ControllerTest):
    def make(self, name, **annotations):
        return base.make_namespace(name, **{"tidemark.io/policy": "gold", **annotations})

    def settle(self, ns, *objects):
        """Objects that are in the journal; the point after them."""
        SERVER.apply(*objects)
        SERVER.apply(base.config_map("mark", ns, value=str(len(objects))))
        lsn = until("the journal", lambda: self.journaled(ns))
        return lsn

    def journaled(self, ns):
        """A dry run to the latest point finds nothing to do when all is journaled."""
        self.count = getattr(self, "count", 0) + 1
        status = self.recover(ns, f"probe-{self.count}", mode="rewind", point="latest", dryRun=True)
        plan = status.get("plan", {})
        if plan.get("create") == plan.get("change") == plan.get("recreate") == plan.get("delete") == 0:
            return f"lsn:{status['point']['objectsLsn']}"
        return None

    def start_recovery(self, ns, name, where=None, requester=ADMIN, **spec):
        annotations = {"tidemark.io/requested-by": json.dumps(requester)} if requester else {}
        SERVER.kubectl("create", "-f", "-", stdin=json.dumps({
            "apiVersion": "tidemark.io/v1alpha1", "kind": "Recovery", "metadata": {"name": name, "namespace": where or ns, "annotations": annotations},
            "spec": {"application": ns, **spec}}))

    def status(self, ns, name):
        return SERVER.json("-n", ns, "get", "recovery", name).get("status", {})

    def recover(self, ns, name, where=None, requester=ADMIN, **spec):
        self.start_recovery(ns, name, where, requester, **spec)
        until(f"the end of {name}", lambda: self.has_ended(where or ns, name), 180)
        return self.status(where or ns, name)

    def has_ended(self, ns, name):
        """There is no node: workloads are never ready. Once they are awaited, the waiting is ended."""
        status = self.status(ns, name)
        if (status.get("step") or {}).get("name") == "Await" and status["phase"] == "Running":
            SERVER.kubectl("-n", ns, "annotate", "recovery", name, "--overwrite", "tidemark.io/cancel=true")
        return status.get("phase") in DONE

    def plan(self, ns, name):
        text = SERVER.json("-n", ns, "get", "configmap", f"tidemark-recovery-{name}")["data"]["objects"]
        return {line["o"]: line for line in map(json.loads, text.splitlines())}

    def spec(self, kind, ns, name):
        return SERVER.json("-n", ns, "get", kind, name)["spec"]

    def test_rewind_puts_back_what_was_changed_deleted_and_made(self):
        ns = self.make("rewind")
        self.start()
        self.captured(ns)
        SERVER.apply({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "by-hand", "namespace": ns},  # of a kind that is not journaled
                      "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 5432}]}]})
        point = self.settle(
            ns, base.config_map("settings", ns, "good"), base.config_map("gone", ns, "old"), deployment("web", ns),
            deployment("moved", ns, label="old"), service("auto", ns), service("asked", ns, 30123),
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "namespace": ns}, "stringData": {"password": "was-it"}})
        before = self.spec("service", ns, "auto")
        # the bad release, by another client than the one that applied
        SERVER.kubectl("-n", ns, "set", "image", "deployment/web", "c=shop:2")
        SERVER.kubectl("-n", ns, "set", "env", "deployment/web", "ADDED=later")
        SERVER.kubectl("-n", ns, "patch", "configmap", "settings", "--type=merge", "-p", '{"data":{"value":"bad","more":"x"}}')
        SERVER.kubectl("-n", ns, "patch", "secret", "keys", "--type=merge", "-p", '{"stringData":{"password":"changed"}}')
        SERVER.kubectl("-n", ns, "delete", "configmap/gone", "service/asked", "deployment/moved")
        until("the pods' end", lambda: "No resources" in SERVER.kubectl("-n", ns, "get", "deployment", "moved", check=False) or True)
        SERVER.apply(base.config_map("later", ns), deployment("moved", ns, label="new"))
        other = base.make_namespace("rewind-other")
        SERVER.apply(service("thief", other, 30123))
        status = self.recover(ns, "back", mode="rewind", point=point)
        self.assertEqual(status["phase"], "Completed", json.dumps(status, indent=1))
        web = self.spec("deployment", ns, "web")["template"]["spec"]["containers"][0]
        self.assertEqual((web["image"], web.get("env")), ("shop:1", None))
        self.assertEqual(SERVER.json("-n", ns, "get", "configmap", "settings")["data"], {"value": "good"})
        self.assertEqual(SERVER.json("-n", ns, "get", "configmap", "gone")["data"], {"value": "old"})
        self.assertEqual(SERVER.json("-n", ns, "get", "secret", "keys")["data"], {"password": "d2FzLWl0"})
        self.assertIn("NotFound", SERVER.kubectl("-n", ns, "get", "configmap", "later", check=False))
        self.assertEqual(SERVER.json("-n", ns, "get", "endpoints", "by-hand")["subsets"][0]["ports"][0]["port"], 5432)
        self.assertEqual(self.spec("deployment", ns, "moved")["selector"]["matchLabels"], {"app": "old"})
        self.assertEqual(self.spec("service", ns, "auto"), before, "what was allocated stays")
        port = self.spec("service", ns, "asked")["ports"][0]["nodePort"]
        self.assertNotEqual(port, 30123)
        plan = self.plan(ns, "back")
        self.assertEqual(plan[f"apps/v1/Deployment/{ns}/moved"]["a"], "recreate")
        self.assertIn("taken", plan[f"core/v1/Service/{ns}/asked"]["r"])
        self.assertEqual(status["verdicts"]["failed"], 0)
        self.assertEqual(status["before"], "before:back")
        self.assertNotIn("was-it", json.dumps(plan) + json.dumps(status))
        SERVER.kubectl("-n", ns, "wait", "--for=condition=Ready", "recovery/back", "--timeout=5s")
        until("an event", lambda: "Completed" in SERVER.kubectl("-n", ns, "get", "events"))
        # and the undo
        undone = self.recover(ns, "undo", mode="rewind", point=status["before"])
        self.assertEqual(undone["phase"], "Completed", json.dumps(undone, indent=1))
        self.assertEqual(self.spec("deployment", ns, "web")["template"]["spec"]["containers"][0]["image"], "shop:2")

    def test_r1_another_controller_finishes_what_a_killed_one_began(self):
        ns = self.make("killed")
        controller = self.start("first")
        self.captured(ns)
        point = self.settle(ns, *(base.config_map(f"c{i}", ns, "good") for i in range(400)))
        for number in range(10):  # on a busy machine its middle may be seen too late
            name = f"killed-{number}"
            SERVER.apply(*(base.config_map(f"c{i}", ns, "bad") for i in range(400)))
            self.start_recovery(ns, name, mode="rewind", point=point)
            until("the middle", lambda n=name: self.status(ns, n).get("phase") in DONE or any(v == "good" for v in base.actual(ns).values()))
            controller.kill()
            if self.status(ns, name)["phase"] == "Running":
                break
            controller = self.start(f"first-{number}")
        else:
            self.fail("it never was in its middle for long enough for the test to mean anything")
        left = sum(v == "bad" for v in base.actual(ns).values())
        self.start("second")
        until("the end", lambda: self.status(ns, name).get("phase") in DONE)
        status = self.status(ns, name)
        self.assertEqual((status["phase"], status["verdicts"]["changed"], status["verdicts"]["failed"]), ("Completed", 400, 0), status)
        self.assertEqual({v for k, v in base.actual(ns).items() if k.startswith("c")}, {"good"})
        print(f"killed with {left} of 400 objects to do")

    def large(self, ns):
        """Accounts, config maps that belong to them, and services: the point. Each of the three is a wave."""
        accounts = [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": f"a{i}", "namespace": ns}} for i in range(20)]
        SERVER.apply(*accounts)
        uids = {o["metadata"]["name"]: o["metadata"]["uid"] for o in SERVER.json("-n", ns, "get", "serviceaccounts")["items"]}
        owner = lambda i: {"apiVersion": "v1", "kind": "ServiceAccount", "name": f"a{i % 20}", "uid": uids[f"a{i % 20}"]}
        maps = [base.config_map(f"c{i}", ns, str(i), ownerReferences=[owner(i)]) for i in range(500)]
        return self.settle(ns, *maps, *(service(f"s{i}", ns, type="ClusterIP") for i in range(20)))

    def made(self, ns):
        """{kind: {name: metadata}} of what the test has made."""
        items = SERVER.json("-n", ns, "get", "serviceaccounts,configmaps,services")["items"]
        return {kind: {o["metadata"]["name"]: o["metadata"] for o in items if o["kind"] == kind and o["metadata"]["name"][1:].isdigit()}
                for kind in ("ServiceAccount", "ConfigMap", "Service")}

    def in_the_middle(self, ns, name, target):
        """Waits until some config maps are there; false when the recovery was quicker."""
        until("the middle", lambda: self.status(ns, name).get("phase") in DONE or self.made(target)["ConfigMap"])
        return self.status(ns, name)["phase"] == "Running"

    def assert_in_order(self, ns):
        made = self.made(ns)
        self.assertEqual({kind: len(objects) for kind, objects in made.items()}, {"ServiceAccount": 20, "ConfigMap": 500, "Service": 20})
        versions = {kind: [int(o["resourceVersion"]) for o in objects.values()] for kind, objects in made.items()}
        self.assertLess(max(versions["ServiceAccount"]), min(versions["ConfigMap"]))
        self.assertLess(max(versions["ConfigMap"]), min(versions["Service"]))
        for name, metadata in made["ConfigMap"].items():
            owner = made["ServiceAccount"][f"a{int(name[1:]) % 20}"]
            self.assertEqual([(o["name"], o["uid"]) for o in metadata["ownerReferences"]], [(owner["name"], owner["uid"])], name)

    def test_waves_of_many_requests_at_once_keep_their_order_through_a_kill(self):
        ns = self.make("large")
        controller = self.start("first")
        self.captured(ns)
        point = self.large(ns)
        for number in range(10):  # on a busy machine its middle may be seen too late
            name = target = f"large-{number}"
            self.start_recovery(ns, name, mode="restore", point=point, targetNamespace=target)
            seen = self.in_the_middle(ns, name, target)
            controller.kill()
            if seen and self.status(ns, name)["phase"] == "Running":
                break
            controller = self.start(f"first-{number}")
        else:
            self.fail("it never was in its middle for long enough for the test to mean anything")
        left = 500 - len(self.made(target)["ConfigMap"])
        self.start("second")
        until("the end", lambda: self.status(ns, name).get("phase") in DONE)
        status = self.status(ns, name)
        self.assertEqual((status["phase"], status["verdicts"]["failed"]), ("Completed", 0), status)
        self.assert_in_order(target)
        print(f"killed with {left} of 500 config maps to do")

    def test_a_wave_of_many_requests_at_once_ends_when_it_is_cancelled(self):
        ns = self.make("called-off")
        self.start()
        self.captured(ns)
        point = self.large(ns)
        for number in range(10):
            name = target = f"called-off-{number}"
            self.start_recovery(ns, name, mode="restore", point=point, targetNamespace=target)
            self.in_the_middle(ns, name, target)
            SERVER.kubectl("-n", ns, "annotate", "recovery", name, "tidemark.io/cancel=true")
            until("the end", lambda n=name: self.status(ns, n).get("phase") in DONE)
            status = self.status(ns, name)
            if status["phase"] == "Cancelled":
                break
        else:
            self.fail("it never was in its middle for long enough for the test to mean anything")
        made = self.made(target)
        self.assertEqual(made["Service"], {}, "the next wave is not begun")
        others = status["verdicts"]["created"] - sum(map(len, made.values()))
        self.assertIn(others, (2, 3), "each object that was made has its verdict: the namespace, its account default, and perhaps the mark")
        self.assertIn("cancelled in step Apply", status["message"])

    def test_a_namespace_that_is_being_deleted_is_awaited(self):
        ns = self.make("source")
        self.start()
        self.captured(ns)
        point = self.settle(ns, base.config_map("a", ns, "1"))
        SERVER.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "closing"}},
                     base.config_map("stuck", "closing", finalizers=["example.com/hold"]))
        SERVER.kubectl("delete", "namespace", "closing", "--wait=false")
        self.start_recovery(ns, "wait", mode="restore", point=point, targetNamespace="closing")
        status = until("the reason", lambda: (lambda s: s if s.get("conditions") and s["conditions"][0]["reason"] == "NamespaceTerminating" else None)(
            self.status(ns, "wait")))
        self.assertEqual(status["phase"], "Pending")
        self.assertIn("is being deleted", status["message"])
        SERVER.kubectl("-n", "closing", "patch", "configmap", "stuck", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        until("the end", lambda: self.status(ns, "wait").get("phase") in DONE)
        self.assertEqual(self.status(ns, "wait")["phase"], "Completed")
        self.assertEqual(SERVER.json("-n", "closing", "get", "configmap", "a")["data"], {"value": "1"})

    def test_what_comes_due_while_the_lease_has_lapsed_is_done_once_it_is_renewed(self):
        """A process that is stopped for longer than it may lead without a renewal: the Lease is nobody else's, and is renewed by the next try, in the same term."""
        ns = self.make("lapsed")
        controller = self.start()
        self.captured(ns)
        point = self.settle(ns, base.config_map("a", ns, "1"))
        SERVER.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lapsing"}},
                     base.config_map("stuck", "lapsing", finalizers=["example.com/hold"]))
        SERVER.kubectl("delete", "namespace", "lapsing", "--wait=false")
        names = [f"wait-{n}" for n in range(12)]  # each comes again every 100 ms; most are not being worked on at the moment
        for name in names:
            self.start_recovery(ns, name, mode="restore", point=point, targetNamespace="lapsing", dryRun=True)
        until("all wait", lambda: all(self.status(ns, n).get("phase") == "Pending" for n in names))
        lease = lambda: SERVER.json("-n", "tidemark-system", "get", "lease", "tidemark-controller")["spec"]
        controller.child.send_signal(signal.SIGSTOP)
        try:
            stopped, renewed = time.monotonic(), lease()["renewTime"]
            SERVER.kubectl("-n", "lapsing", "patch", "configmap", "stuck", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
            until("the namespace's end", lambda: "NotFound" in SERVER.kubectl("get", "namespace", "lapsing", check=False))
            until("the Lease has lapsed", lambda: time.monotonic() > stopped + 11.5)  # its renew deadline is 10 s
            self.assertEqual(lease()["renewTime"], renewed)
        finally:
            controller.child.send_signal(signal.SIGCONT)
        until("all end", lambda: all(self.status(ns, n).get("phase") in DONE for n in names), 60, lambda: f": {[self.status(ns, n).get('phase') for n in names]}")
        self.assertEqual((controller.log_text().count("holds the lease"), controller.log_text().count("lost the lease")), (1, 0), "it is one term")
        self.assertEqual(lease()["leaseTransitions"], 0)

    def test_r3_what_the_target_lacks_is_told_before_anything_is_changed(self):
        ns = self.make("lacks")
        SERVER.apply({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "lacks-fast"}, "provisioner": "x.example.com"})
        SERVER.kubectl("apply", "-f", "-", stdin="""{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata":
            {"name": "things.lacks.example.com"}, "spec": {"group": "lacks.example.com", "scope": "Namespaced", "names": {"kind": "Thing", "plural": "things"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}}""")
        SERVER.kubectl("wait", "--for=condition=Established", "crd/things.lacks.example.com", "--timeout=180s")
        self.start()
        self.captured(ns)
        with_claim = self.settle(ns, base.claim("data", ns, "lacks-fast"))
        SERVER.apply({"apiVersion": "lacks.example.com/v1", "kind": "Thing", "metadata": {"name": "t", "namespace": ns}, "spec": {"a": 1}})
        self.assertIn(f"/{ns}/t", until("the thing is planned", lambda: self.thing(ns)))
        latest = self.status(ns, f"thing-{self.things}")["point"]["objectsLsn"]
        SERVER.kubectl("delete", "crd", "things.lacks.example.com")
        status = self.recover(ns, "no-kind", mode="clone", point=f"lsn:{latest}", targetNamespace="lacks-clone")
        self.assertEqual((status["phase"], status["conditions"][0]["reason"]), ("Failed", "DefinitionMissing"), status)
        self.assertIn("does not know the kind Thing", status["message"])
        SERVER.kubectl("delete", "storageclass", "lacks-fast")
        status = self.recover(ns, "no-class", mode="clone", point=with_claim, targetNamespace="lacks-clone")
        self.assertEqual((status["phase"], status["conditions"][0]["reason"]), ("Failed", "StorageClassMissing"), status)
        self.assertIn("{storageClass: {from: lacks-fast", status["message"])
        self.assertIn("NotFound", SERVER.kubectl("get", "namespace", "lacks-clone", check=False))

    things = 0

    def thing(self, ns):
        self.things += 1
        self.recover(ns, f"thing-{self.things}", mode="rewind", point="latest", dryRun=True)
        return next((name for name, line in self.plan(ns, f"thing-{self.things}").items() if "/Thing/" in name and line["a"] == "same"), None)

    def test_a_clone_is_beside_and_isolated_and_renamed(self):
        ns = self.make("original")
        self.start()
        self.captured(ns)
        point = self.settle(ns, base.config_map("url", ns, f"http://db.{ns}.svc:5432/"), service("db", ns, 30124), deployment("web", ns))
        before = SERVER.json("-n", ns, "get", "service", "db")
        status = self.recover(ns, "copy", mode="clone", point=point, targetNamespace="the-clone", isolated=True,
                              transforms=[{"replicas": 1, "target": {"kind": "Deployment"}}])
        self.assertEqual(status["phase"], "Completed", json.dumps(status, indent=1))
        self.assertEqual(SERVER.json("-n", "the-clone", "get", "configmap", "url")["data"]["value"], "http://db.the-clone.svc:5432/")
        self.assertEqual(self.spec("deployment", "the-clone", "web")["replicas"], 1)
        self.assertNotEqual(self.spec("service", "the-clone", "db")["ports"][0]["nodePort"], 30124)
        self.assertEqual(self.spec("networkpolicy", "the-clone", "tidemark-isolated")["policyTypes"], ["Ingress", "Egress"])
        self.assertEqual(SERVER.json("-n", ns, "get", "service", "db"), before)
        status = self.recover(ns, "nothing", mode="clone", point=point, targetNamespace="the-clone", transforms=[{"image": {"from": "nowhere/", "to": "x/"}}])
        self.assertEqual(status["conditions"][0]["reason"], "TransformFailed")

    def test_r4_nobody_does_more_than_she_may(self):
        ns = self.make("tenant")
        self.start()
        self.captured(ns)
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": ns}, "stringData": {"a": "1"}}
        point = self.settle(ns, base.config_map("mine", ns, "good"), secret)
        SERVER.apply(base.config_map("mine", ns, "bad"), {**secret, "stringData": {"a": "2"}},
                     {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "maps", "namespace": ns},
                      "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]},
                     {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "maps", "namespace": ns},
                      "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "maps"},
                      "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}]},
                     {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "see-namespaces"},
                      "rules": [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}]},
                     {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "see-namespaces"},
                      "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "see-namespaces"},
                      "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}]})
        status = self.recover(ns, "ann", mode="rewind", point=point, requester={"username": "ann", "groups": ["system:authenticated"]})
        self.assertEqual(status["phase"], "Failed")
        self.assertTrue(any(f["object"] == f"core/v1/Secret/{ns}/s" and "forbidden" in f["reason"] for f in status["failures"]), status)
        self.assertEqual(SERVER.json("-n", ns, "get", "configmap", "mine")["data"]["value"], "good")
        self.assertEqual(SERVER.json("-n", ns, "get", "secret", "s")["data"]["a"], "Mg==")
        status = self.recover(ns, "nobody", mode="rewind", point=point, requester=None)
        self.assertEqual((status["phase"], status["conditions"][0]["reason"]), ("Failed", "RequesterUnknown"))


def main(module):
    """Runs the module's tests against an API server of their own, which has the kinds, the controller's namespace and the policy."""
    global SERVER
    module.SERVER = SERVER = base.SERVER = ApiServer()
    try:
        SERVER.kubectl("apply", "-f", os.path.join(ROOT, "packaging/crds"))
        SERVER.kubectl("wait", "--for=condition=Established", "--timeout=180s", "crd", "--all")
        SERVER.kubectl("create", "namespace", "tidemark-system")
        until("the policy", lambda: SERVER.kubectl("apply", "-f", "-", stdin=json.dumps(base.POLICY), check=False).startswith("protectionpolicy"))
        result = unittest.main(exit=False, verbosity=2).result
    finally:
        SERVER.close()
    sys.exit(not result.wasSuccessful())


if __name__ == "__main__":
    main(sys.modules[__name__])
