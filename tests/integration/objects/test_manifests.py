#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Other people's manifests against a real API server: what charts and operators put into a namespace (manifests/) comes back as it was,
by a rewind, from a deleted namespace, and beside itself as a clone."""
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import test_recovery as recoveries
from test_recovery import ROOT, ApiServer, base, until

SERVER = None
FILES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "manifests")
FIXED_PORTS = (31987,)


def text_of(name):
    with open(f"{FILES}/{name}.yaml", encoding="utf-8") as f:
        return f.read()


def resources():
    """The namespaced kinds that people or operators make objects of."""
    noise = ("events", "leases.coordination.k8s.io", "endpoints", "endpointslices.discovery.k8s.io", "controllerrevisions.apps")
    names = SERVER.kubectl("api-resources", "--namespaced", "--verbs=list,delete", "-o", "name").split()
    return ",".join(n for n in names if not n.startswith(noise) and not n.endswith((".tidemark.io", "metrics.k8s.io")))


def is_made_again(o):
    owner = next((r["kind"] for r in o["metadata"].get("ownerReferences", []) if r.get("controller")), None)
    return (o["kind"] in ("Pod", "ReplicaSet") and owner) or (o["kind"] == "PersistentVolumeClaim" and owner == "Pod") or (o["kind"] == "ConfigMap" and (
        o["metadata"]["name"] == "kube-root-ca.crt" or "tidemark.io/recovery-plan" in o["metadata"].get("labels", {})))


def cleaned(o):
    """The object without what the cluster gives to each anew."""
    o = json.loads(json.dumps(o))
    o.pop("status", None)
    meta, spec = o["metadata"], o.get("spec", {})
    for key in ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "generateName", "deletionTimestamp"):
        meta.pop(key, None)
    annotations = {k: v for k, v in meta.pop("annotations", {}).items() if not k.startswith((
        "kubectl.kubernetes.io/", "deployment.kubernetes.io/", "deprecated.daemonset", "kubernetes.io/service-account.uid", "volume.", "pv.", "tidemark.io/"))}
    if annotations:
        meta["annotations"] = annotations
    meta["finalizers"] = [f for f in meta.get("finalizers", []) if f.startswith("wild.")]
    for reference in meta.get("ownerReferences", []):
        reference.pop("uid")
    if (o["apiVersion"], o["kind"]) == ("v1", "Service"):
        if spec.get("clusterIP") not in ("None", "10.96.77.77"):
            spec.pop("clusterIP", None), spec.pop("clusterIPs", None)
        spec.pop("healthCheckNodePort", None)
        for port in spec.get("ports", []):
            if port.get("nodePort") not in FIXED_PORTS:
                port.pop("nodePort", None)
    if o["kind"] == "Job":
        spec.pop("selector")
        for key in [k for k in spec["template"]["metadata"]["labels"] if k.endswith(("controller-uid", "job-name"))]:
            del spec["template"]["metadata"]["labels"][key]
    if o["kind"] == "PersistentVolumeClaim":
        for key in ("dataSource", "dataSourceRef"):  # the data comes by Tidemark
            spec.pop(key, None)
    if o["kind"] == "Pod":
        spec["volumes"] = [v for v in spec.get("volumes", []) if not v["name"].startswith("kube-api-access-")]
        for c in spec["containers"]:
            c["volumeMounts"] = [m for m in c.get("volumeMounts", []) if not m["name"].startswith("kube-api-access-")]
    if o.get("type") == "kubernetes.io/service-account-token":
        o.pop("data", None)
    return o


def owned(kind, version, name, owner, controller=True, **more):
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "ownerReferences": [{
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
        "controller": controller, "blockOwnerDeletion": controller}]}, **more}


class Manifests(recoveries.Recoveries):
    maxDiff = 4000

    def snapshot(self, ns):
        objects = {}
        for o in SERVER.json("-n", ns, "get", self.kinds)["items"]:
            if not is_made_again(o):
                objects[f"{o['apiVersion'].rpartition('/')[0]}/{o['kind']}/{o['metadata']['name']}"] = cleaned(o)
        return objects

    def assert_same(self, found, wanted, said):
        self.assertEqual(sorted(found), sorted(wanted), said)
        for name, o in wanted.items():
            self.assertEqual(found[name], o, f"{said}: {name}")

    def assert_ephemeral(self, ns):
        """Ephemeral volumes are those of the pods that are there, and none of pods that were."""
        claims = lambda: [o["metadata"] for o in SERVER.json("-n", ns, "get", "pvc")["items"] if o["metadata"]["name"].endswith("-scratch")]
        until("the pod's own", lambda: len(claims()) == 1 and claims()[0].get("ownerReferences"))

    def no_failures(self, status):
        self.assertEqual((status["phase"], status.get("failures", []), status["verdicts"]["failed"]), ("Completed", [], 0), json.dumps(status, indent=1))

    def apply_text(self, ns, text, *more):
        SERVER.kubectl("-n", ns, "apply", "-f", "-", *more, stdin=text)

    def make_operators_objects(self, ns):
        get = lambda what: SERVER.json("-n", ns, "get", what)
        kafka, pg, service = get("kafkas/bus"), get("clusters.postgresql.cnpg.io/pg"), get("services.serving.knative.dev/edge")
        claim = base.claim("pg-1", ns)
        pod = {"containers": [{"name": "c", "image": "registry.invalid/c"}]}
        SERVER.kubectl("-n", ns, "apply", "--server-side", "--field-manager=operator", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": [
            owned("StrimziPodSet", "core.strimzi.io/v1beta2", "bus-kafka", kafka, spec={"pods": [{"apiVersion": "v1", "kind": "Pod", "spec": pod}]}),
            owned("Secret", "v1", "bus-cluster-ca", kafka, False, data={"ca.key": "QQ=="}),
            owned("ConfigMap", "v1", "bus-kafka-0", kafka, data={"a": "1"}),
            owned("PersistentVolumeClaim", "v1", "pg-1", pg, spec=claim["spec"]),
            owned("Secret", "v1", "pg-app", pg, type="kubernetes.io/basic-auth", data={"username": "YQ==", "password": "Yg=="}),
            owned("Service", "v1", "pg-rw", pg, spec={"selector": {"role": "primary"}, "ports": [{"port": 5432}]}),
            owned("Configuration", "serving.knative.dev/v1", "edge", service, spec={"template": {}}),
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "shop-tls", "annotations": {"cert-manager.io/certificate-name": "shop"}},
             "type": "kubernetes.io/tls", "data": {"tls.crt": "QQ==", "tls.key": "QQ=="}},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "huge", "annotations": {"wild.example.com/state": "x" * 200000}}, "data": {"b": "y" * 400000}},
        ]}))
        SERVER.kubectl("-n", ns, "create", "--raw", f"/api/v1/namespaces/{ns}/pods", "-f", "-", stdin=json.dumps(owned("Pod", "v1", "pg-pod", pg, spec=pod)))

    def spoil(self, ns):
        """A bad hour: what was there is changed, deleted, made anew in a way that cannot be changed back; and there is more."""
        k = lambda *a, **m: SERVER.kubectl("-n", ns, *a, **m)
        replace = lambda o, *more: (k("delete", "--cascade=orphan", "-f", "-", stdin=json.dumps(o)), k("create", "-f", "-", stdin=json.dumps(o)))
        k("set", "image", "deployment/edge", "edge=registry.invalid/edge:bad")
        k("patch", "configmap", "db-binary", "--type=merge", "-p", '{"data":{"with.nul":null,"new":"1"},"binaryData":null}')
        k("delete", "service/edge-fixed", "service/pg-rw", "hpa/edge", "virtualservice/shop", "networkpolicy/db", "pod/bare", "--ignore-not-found")
        k("delete", "jobs", "--all")
        meta = lambda name: {"name": name, "namespace": ns}
        replace({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("db-frozen"), "immutable": True, "data": {"postgresql.conf": "bad"}})
        replace({"apiVersion": "v1", "kind": "Secret", "metadata": meta("db-passwords"), "immutable": True, "stringData": {"postgres-password": "bad"}})
        replace({"apiVersion": "v1", "kind": "Secret", "metadata": meta("shop-tls"), "data": {"a": "QQ=="}})
        replace({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": meta("edge"),
                 "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}, "subjects": []})
        statefulset = SERVER.json("-n", ns, "get", "statefulset", "db")
        replace({**statefulset, "metadata": meta("db"), "spec": {**statefulset["spec"], "serviceName": "other", "podManagementPolicy": "OrderedReady"}})
        k("patch", "service", "edge", "--type=merge", "-p", '{"spec":{"type":"ClusterIP","externalTrafficPolicy":null,"healthCheckNodePort":0,"loadBalancerIP":null,'
          '"loadBalancerSourceRanges":null,"ports":[{"name":"https","port":443,"targetPort":"https"}]}}')
        k("patch", "kafka", "bus", "--type=merge", "-p", '{"spec":{"kafka":{"config":{"log.retention.bytes":1,"negative":null}}}}')
        k("patch", "gauge", "odd", "--type=merge", "-p", '{"spec":{"note":"n","nothing":{"a":1},"none":[1],"zero":null,"template":{"data":null}}}')
        k("annotate", "configmap", "huge", "wild.example.com/state=small", "--overwrite")
        k("label", "certificate", "shop", "later=yes")
        SERVER.apply(base.config_map("later", ns), {"apiVersion": "keda.sh/v1alpha1", "kind": "TriggerAuthentication", "metadata": meta("later"), "spec": {}})

    def delete_namespace(self, ns):
        SERVER.kubectl("delete", "namespace", ns, "--wait=false")
        gone = lambda: "NotFound" in SERVER.kubectl("get", "namespace", ns, check=False)
        # as the operator would
        until("its finalizer is all that holds it", lambda: gone() or SERVER.kubectl(
            "-n", ns, "patch", "kafka", "bus", "--type=merge", "-p", '{"metadata":{"finalizers":null}}', check=False) and gone())

    def test_what_charts_and_operators_make_comes_back(self):
        self.apply_text("default", text_of("definitions"), "--server-side")
        SERVER.kubectl("wait", "--for=condition=Established", "--timeout=180s", "crd", "--all")
        self.kinds = resources()
        room = base.make_namespace("wild-room")
        ns = self.make("wild", **{"linkerd.io/inject": "enabled"})
        controller = self.start()
        self.captured(ns)
        SERVER.kubectl("-n", ns, "create", "-f", "-", stdin=text_of("workloads"))
        SERVER.kubectl("-n", ns, "apply", "-f", "-", stdin=text_of("operators"))
        until("the set's claims", lambda: len(SERVER.json("-n", ns, "get", "pvc", "-l", "app=db")["items"]) == 2)
        until("the token", lambda: "data" in SERVER.json("-n", ns, "get", "secret", "edge-token"))
        self.make_operators_objects(ns)
        point = until("the journal", lambda: self.journaled(ns))
        wanted = self.snapshot(ns)
        self.assertGreaterEqual(len(wanted), 50)
        self.assertEqual(wanted["/ConfigMap/db-binary"]["data"]["with.nul"], "a\0b")

        with self.subTest("rewind"):
            self.spoil(ns)
            status = self.recover(ns, "back", mode="rewind", point=point)
            self.no_failures(status)
            self.assert_same(self.snapshot(ns), wanted, "after the rewind")

        with self.subTest("clone"):
            status = self.recover(ns, "beside", mode="clone", point=point, targetNamespace="wild-clone", isolated=True, transforms=[
                {"host": {"from": "shop.example.com", "to": "clone.example.com"}}, {"replicas": 0, "target": {"kind": "StatefulSet"}},
                {"image": {"from": "registry.invalid/", "to": "mirror.invalid/"}}, {"labels": {"set": {"wild.example.com/clone": "yes"}}}])
            self.no_failures(status)
            clone = self.snapshot("wild-clone")
            self.assertEqual(sorted(set(wanted) - set(clone)), ["networking.k8s.io/NetworkPolicy/db"], "policies add up: it would open what isolation closes")
            self.assertEqual(sorted(set(clone) - set(wanted)), ["networking.k8s.io/NetworkPolicy/tidemark-isolated"])
            self.assert_ephemeral("wild-clone")
            self.assertEqual(clone["networking.istio.io/VirtualService/shop"]["spec"]["hosts"], ["clone.example.com"])
            self.assertEqual(clone["/Service/elsewhere"]["spec"]["externalName"], "db.example.com")
            self.assertNotIn("loadBalancerIP", clone["/Service/edge"]["spec"])
            self.assertEqual(clone["/ConfigMap/db-binary"], {**wanted["/ConfigMap/db-binary"], "metadata": {
                **wanted["/ConfigMap/db-binary"]["metadata"], "namespace": "wild-clone", "labels": {"wild.example.com/clone": "yes"}}})
            for name, o in clone.items():
                self.assertNotIn("registry.invalid/", json.dumps(o) if name.split("/")[-2] in ("Deployment", "StatefulSet", "Pod", "Job", "CronJob") else "", name)

        with self.subTest("restore"):
            self.delete_namespace(ns)
            status = self.recover(ns, "again", where=room, mode="restore", point=point, sourceNamespace=ns)
            self.no_failures(status)
            until("the token", lambda: "data" in SERVER.json("-n", ns, "get", "secret", "edge-token"))
            self.assert_same(self.snapshot(ns), wanted, "after the restore")
            self.assert_ephemeral(ns)
            self.assertEqual(SERVER.json("get", "namespace", ns)["metadata"]["annotations"]["linkerd.io/inject"], "enabled")
        self.assertIsNone(controller.child.poll())

    def define(self, *versions, conversion=None):
        """The kind in these versions, the last one being stored; waits until the API server prefers what it should."""
        SERVER.apply({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "movers.wild.example.com"}, "spec": {
            "group": "wild.example.com", "scope": "Namespaced", "names": {"kind": "Mover", "plural": "movers", "singular": "mover"},
            **({"conversion": conversion} if conversion else {"conversion": {"strategy": "None"}}),
            "versions": [{"name": v, "served": served, "storage": v == versions[-1][0], "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": True}}} for v, served in versions]}})
        served = sorted(v for v, is_served in versions if is_served)

        def known():
            groups = json.loads(SERVER.kubectl("get", "--raw", "/apis/wild.example.com", check=False) or "{}")
            return sorted(v["version"] for v in groups.get("versions", []) if "movers" in SERVER.kubectl(
                "get", "--raw", f"/apis/wild.example.com/{v['version']}", check=False)) == served
        until(f"{served} are served", known)

    def mover(self, ns, value, version="v1beta1", **metadata):
        return {"apiVersion": f"wild.example.com/{version}", "kind": "Mover", "metadata": {"name": "m", "namespace": ns, **metadata}, "spec": {"value": value}}

    def value(self, ns, version="v1"):  # kubectl keeps what it knows of the kinds for some time
        o = json.loads(SERVER.kubectl("get", "--raw", f"/apis/wild.example.com/{version}/namespaces/{ns}/movers/m"))
        return o["spec"]["value"], o["metadata"]["uid"]

    def test_a_kind_that_got_another_version_since_is_put_back_and_not_made_again(self):
        self.define(("v1beta1", True))
        ns = self.make("moved")
        self.start()
        self.captured(ns)
        SERVER.apply(self.mover(ns, "good"))
        until("the mover is known", lambda: any("/Mover/" in name for name in self.planned(ns)))
        point = until("the journal", lambda: self.journaled(ns))
        uid = self.value(ns, "v1beta1")[1]
        for number, (said, versions) in enumerate((("both are served", (("v1beta1", True), ("v1", True))), ("the old one is not", (("v1beta1", False), ("v1", True))))):
            self.define(*versions)
            SERVER.apply({**self.mover(ns, "bad", "v1"), "status": {"more": 1}})
            status = self.recover(ns, f"back-{number}", mode="rewind", point=point)
            self.no_failures(status)
            self.assertEqual(self.value(ns), ("good", uid), said)
            self.assertEqual((status["plan"]["delete"], status["plan"]["create"]), (0, 0), said)
            # It is journaled in the new version, and in no other.
            until("the new version", lambda: [n for n in self.planned(ns) if "/Mover/" in n] == [f"wild.example.com/v1/Mover/{ns}/m"])
        webhook = {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": "https://127.0.0.1:1/convert"}}}
        self.define(("v1beta1", False), ("v1", True), conversion=webhook)
        status = self.recover(ns, "converted", mode="rewind", point=point)
        condition = next(c for c in status["conditions"] if c["type"] == "Ready")
        self.assertEqual((status["phase"], condition["reason"]), ("Failed", "VersionNotServed"), status)
        self.assertIn("serves the kind Mover of wild.example.com as v1, and not as v1beta1 any more", condition["message"])

    def planned(self, ns):
        self.plans = getattr(self, "plans", 0) + 1
        self.recover(ns, f"plan-{self.plans}", mode="rewind", point="latest", dryRun=True)
        return [name for name, line in self.plan(ns, f"plan-{self.plans}").items() if line["a"] == "same"]


def load_tests(loader, _tests, _pattern):
    """The class's own: those that it inherits are test_recovery's."""
    return unittest.TestSuite(Manifests(name) for name in sorted(vars(Manifests)) if name.startswith("test_"))


if __name__ == "__main__":
    recoveries.main(sys.modules[__name__])
