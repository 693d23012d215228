#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What other people's objects do to a recovery, against a real API server: owners that are made again, doors that refuse, objects that are
being deleted, fields that hang together, quotas that begin empty; and histories by chance (TIDEMARK_SEED, TIDEMARK_ROUNDS) against a model."""
import base64
import json
import os
import random
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import test_manifests as manifests
import test_recovery as recoveries
from test_recovery import ROOT, ApiServer, base, service, until

SERVER = None
RBAC = "rbac.authorization.k8s.io"


def obj(kind, name, ns=None, version="v1", meta=None, **more):
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **({"namespace": ns} if ns else {}), **(meta or {})}, **more}


def owner_of(o, **more):
    return {"apiVersion": o["apiVersion"], "kind": o["kind"], "name": o["metadata"]["name"], "uid": o["metadata"]["uid"], **more}


class Trials(recoveries.Recoveries):
    maxDiff = 4000

    def get(self, ns, what, name):
        text = SERVER.kubectl("-n", ns, "get", what, name, "-o", "json", check=False)
        return json.loads(text) if text.startswith("{") else None

    def create(self, *objects):
        SERVER.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def replace(self, o):
        """By a client that writes whole objects, as `kubectl replace` does."""
        SERVER.kubectl("replace", "-f", "-", stdin=json.dumps(o))

    def mark(self, ns):
        """The point of now."""
        self.marks = getattr(self, "marks", 0) + 1
        SERVER.apply(base.config_map("mark", ns, value=f"mark {self.marks}"))
        try:
            return until("the journal", lambda: self.journaled(ns))
        except AssertionError as e:
            name = f"probe-{self.count}"
            plan = {k: v for k, v in self.plan(ns, name).items() if v["a"] not in ("same", "keep")}
            live = {k: self.get(ns, k.split("/")[2], k.split("/")[-1]) for k in plan}
            raise AssertionError(f"{e}: {json.dumps(self.status(ns, name))}\n{json.dumps(plan, indent=1)}\n{json.dumps(live, indent=1)}") from None

    def no_failures(self, status):
        self.assertEqual((status["phase"], status.get("failures", [])), ("Completed", []), json.dumps(status, indent=1))

    def rewind(self, ns, name, point, **more):
        status = self.recover(ns, name, mode="rewind", point=point, **more)
        self.no_failures(status)
        return status

    def define(self, kind, group="trials.example.com"):
        plural = kind.lower() + "s"
        SERVER.apply(obj("CustomResourceDefinition", f"{plural}.{group}", version="apiextensions.k8s.io/v1", spec={
            "group": group, "scope": "Namespaced", "names": {"plural": plural, "singular": kind.lower(), "kind": kind}, "versions": [{
                "name": "v1", "served": True, "storage": True, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}]}))
        SERVER.kubectl("wait", "--for=condition=Established", f"crd/{plural}.{group}")
        until("the kind", lambda: not SERVER.kubectl("get", f"{plural}.{group}", "-A", check=False).startswith("error"))
        return f"{group}/v1"

    def settled_gc(self, ns, o):
        """Once the garbage collector has dealt with something that came later, it has dealt with what went before."""
        name = f"gc-{time.monotonic_ns()}"
        self.create(obj("ConfigMap", name, ns, meta={"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "nobody", "uid": "0-0-0"}]}))
        until("the garbage collector was here", lambda: self.get(ns, "configmap", name) is None)

    # ---- owners ----

    def test_what_an_owner_has_does_not_go_when_it_is_made_again(self):
        ns = self.make("owners")
        self.start()
        self.captured(ns)
        self.create(recoveries.deployment("operator", ns, label="old"), base.config_map("switch", ns))
        owner = self.get(ns, "deployment", "operator")
        ref = {"ownerReferences": [owner_of(owner)]}
        self.create(obj("ConfigMap", "settings", ns, meta=ref, data={"a": "1"}), obj("Secret", "certificate", ns, meta=ref, stringData={"k": "v"}),
                    obj("Service", "metrics", ns, meta=ref, spec={"ports": [{"port": 8080}]}),
                    {**base.claim("cache", ns), "metadata": {"name": "cache", "namespace": ns, **ref}})
        point = self.mark(ns)
        names = (("configmap", "settings"), ("secret", "certificate"), ("service", "metrics"), ("pvc", "cache"))
        before = {n: self.get(ns, *n) for n in names}
        # the bad release has another selector, and keeps what the operator had
        SERVER.kubectl("-n", ns, "delete", "deployment", "operator", "--cascade=orphan")
        self.create(recoveries.deployment("operator", ns, label="new"))
        new = self.get(ns, "deployment", "operator")
        until("it is an orphan", lambda: not any(self.get(ns, *n)["metadata"].get("ownerReferences") for n in names))
        for n in names:
            SERVER.kubectl("-n", ns, "patch", *n, "--type=merge", "-p", json.dumps({"metadata": {"ownerReferences": [owner_of(new)]}}))
        self.mark(ns)
        status = self.rewind(ns, "back", point)
        owner = self.get(ns, "deployment", "operator")
        self.assertEqual(owner["spec"]["selector"]["matchLabels"], {"app": "old"})
        self.settled_gc(ns, owner)
        for n in names:
            now = self.get(ns, *n)
            self.assertIsNotNone(now, f"{n} is gone: {json.dumps(self.plan(ns, 'back'), indent=1)}")
            self.assertNotIn("deletionTimestamp", now["metadata"], n)
            self.assertEqual([r["uid"] for r in now["metadata"].get("ownerReferences", [])], [owner["metadata"]["uid"]], n)
            self.assertEqual(now["metadata"]["uid"], before[n]["metadata"]["uid"], f"{n} was made again")
        self.assertEqual(status["verdicts"]["failed"], 0)

    def test_an_owner_that_she_may_not_look_at_is_kept(self):
        ns = self.make("unseen")
        version = self.define("Shop")
        self.start()
        self.captured(ns)
        self.create(obj("Shop", "main", ns, version))
        SERVER.apply(obj("ClusterRole", "see-namespaces-2", version=RBAC + "/v1", rules=[{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}]),
                     obj("ClusterRoleBinding", "see-namespaces-2", version=RBAC + "/v1", roleRef={"apiGroup": RBAC, "kind": "ClusterRole", "name": "see-namespaces-2"},
                         subjects=[{"kind": "User", "name": "ann", "apiGroup": RBAC}]),
                     obj("RoleBinding", "ann", ns, RBAC + "/v1", roleRef={"apiGroup": RBAC, "kind": "ClusterRole", "name": "edit"},
                         subjects=[{"kind": "User", "name": "ann", "apiGroup": RBAC}]))
        shop = self.get(ns, "shop", "main")
        web = recoveries.deployment("web", ns)
        web["metadata"]["ownerReferences"] = [owner_of(shop, controller=True)]
        self.create(web, obj("ConfigMap", "gone", ns, meta={"ownerReferences": [owner_of(shop)]}))
        point = self.mark(ns)
        SERVER.kubectl("-n", ns, "set", "image", "deployment/web", "c=shop:bad")
        SERVER.kubectl("-n", ns, "delete", "configmap", "gone")
        status = self.recover(ns, "ann", mode="rewind", point=point, requester={"username": "ann", "groups": ["system:authenticated"]})
        web = self.get(ns, "deployment", "web")
        self.assertEqual(web["spec"]["template"]["spec"]["containers"][0]["image"], "shop:1", json.dumps(status, indent=1))
        self.assertEqual([r["uid"] for r in web["metadata"].get("ownerReferences", [])], [shop["metadata"]["uid"]])
        gone = self.get(ns, "configmap", "gone")
        line = self.plan(ns, "ann")[f"core/v1/ConfigMap/{ns}/gone"]
        self.assertTrue(gone is None or not gone["metadata"].get("ownerReferences"))
        self.assertNotIn("is not there", line["r"], "it is there, and she may not see it")

    # ---- doors ----

    def refuse(self, name, ns, expression, message, kinds):
        version = "admissionregistration.k8s.io/v1"
        SERVER.apply(obj("ValidatingAdmissionPolicy", name, version=version, spec={
            "failurePolicy": "Fail", "matchConstraints": {"resourceRules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"], "resources": kinds}]},
            "validations": [{"expression": expression, "message": message}]}),
            obj("ValidatingAdmissionPolicyBinding", name, version=version, spec={"policyName": name, "validationActions": ["Deny"], "matchResources": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ns}}}}))

    def await_door(self, o):
        until("the door is shut", lambda: "denied request" in SERVER.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(o), check=False))

    def test_what_a_policy_refuses_is_left_as_it_was(self):
        """Its words are its own: 'immutable' in them is no reason to delete what is there."""
        ns = self.make("door")
        self.start()
        self.captured(ns)
        deployment = recoveries.deployment
        self.create(deployment("web", ns, "shop:1"), deployment("moved", ns, "shop:1", label="old"))
        point = self.mark(ns)
        SERVER.kubectl("-n", ns, "set", "image", "deployment/web", "c=shop@sha256:" + "a" * 64)
        SERVER.kubectl("-n", ns, "delete", "deployment", "moved")
        self.create(deployment("moved", ns, "shop@sha256:" + "b" * 64, label="new"))
        self.addCleanup(SERVER.kubectl, "delete", "validatingadmissionpolicy,validatingadmissionpolicybinding", "trials-images", "--ignore-not-found")
        self.refuse("trials-images", ns, "object.spec.template.spec.containers.all(c, c.image.contains('@'))",
                    "updates to images need an immutable digest", ["deployments"])
        self.await_door(deployment("probe", ns))
        before = {n: self.get(ns, "deployment", n) for n in ("web", "moved")}
        status = self.recover(ns, "back", mode="rewind", point=point)
        self.assertEqual(status["phase"], "Failed")
        for n, was in before.items():
            now = self.get(ns, "deployment", n)
            self.assertIsNotNone(now, f"{n} is gone: {json.dumps(status['failures'], indent=1)}")
            self.assertEqual(now["spec"], was["spec"], n)
            self.assertEqual(now["metadata"]["uid"], was["metadata"]["uid"], n)
        reasons = {f["object"].split("/")[-1]: f["reason"] for f in status["failures"]}
        self.assertEqual(set(reasons), {"web", "moved"})
        for reason in reasons.values():
            self.assertIn("immutable digest", reason)

    def test_what_a_webhook_that_is_down_keeps_from_being_made_is_not_deleted(self):
        ns = self.make("down")
        self.start()
        self.captured(ns)
        frozen = lambda value: obj("Secret", "frozen", ns, immutable=True, stringData={"value": value})
        self.create(frozen("good"), recoveries.deployment("web", ns, label="old"), base.config_map("c", ns, "good"))
        point = self.mark(ns)
        SERVER.kubectl("-n", ns, "delete", "secret/frozen", "deployment/web")
        self.create(frozen("bad"), recoveries.deployment("web", ns, label="new"))
        SERVER.apply(base.config_map("c", ns, "bad"))
        before = {n: self.get(ns, *n)["metadata"]["uid"] for n in (("secret", "frozen"), ("deployment", "web"))}
        self.addCleanup(SERVER.kubectl, "delete", "validatingwebhookconfiguration", "trials-down", "--ignore-not-found")
        SERVER.apply(obj("ValidatingWebhookConfiguration", "trials-down", version="admissionregistration.k8s.io/v1", webhooks=[{
            "name": "down.example.com", "clientConfig": {"url": "https://127.0.0.1:1/"}, "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 1,
            "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["secrets", "deployments"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ns}}}]))
        until("the door is shut", lambda: "failed calling webhook" in SERVER.kubectl(
            "create", "--dry-run=server", "-f", "-", stdin=json.dumps(obj("Secret", "probe", ns)), check=False))
        status = self.recover(ns, "back", mode="rewind", point=point)
        for n, uid in before.items():
            now = self.get(ns, *n)
            self.assertTrue(now and now["metadata"]["uid"] == uid and "deletionTimestamp" not in now["metadata"], f"{n}: {json.dumps(status, indent=1)}")
        self.assertEqual({f["object"].split("/")[-1] for f in status["failures"]}, {"frozen", "web"})
        self.assertIn("it is left as it is", status["failures"][0]["reason"])
        self.assertEqual(base.actual(ns)["c"], "good", "the rest is put back")

    def test_an_api_whose_server_is_down_is_in_nobodys_way(self):
        """An APIService without a server: discovery lacks it, or tells of it what it was."""
        ns = self.make("aggregated")
        self.addCleanup(SERVER.kubectl, "delete", "apiservice", "v1.down.example.com", "--ignore-not-found")
        SERVER.apply(obj("APIService", "v1.down.example.com", version="apiregistration.k8s.io/v1", spec={
            "group": "down.example.com", "version": "v1", "groupPriorityMinimum": 10, "versionPriority": 10, "insecureSkipTLSVerify": True,
            "service": {"namespace": ns, "name": "nobody", "port": 443}}))
        until("it is known to be down", lambda: any(c["type"] == "Available" and c["status"] == "False" for c in json.loads(
            SERVER.kubectl("get", "apiservice", "v1.down.example.com", "-o", "json")).get("status", {}).get("conditions", [])))
        self.start()
        self.captured(ns)
        version = self.define("Late")  # a kind that comes while it is down
        self.create(obj("Late", "x", ns, version, spec={"a": 1}), base.config_map("c", ns, "good"))
        until("it is journaled", lambda: self.planned_same(ns, "/Late/"))
        point = self.mark(ns)
        SERVER.kubectl("-n", ns, "patch", "late", "x", "--type=merge", "-p", '{"spec":{"a":2}}')
        SERVER.apply(base.config_map("c", ns, "bad"))
        self.rewind(ns, "back", point)
        self.assertEqual((self.get(ns, "late", "x")["spec"]["a"], base.actual(ns)["c"]), (1, "good"))

    def planned_same(self, ns, part):
        self.plans = getattr(self, "plans", 0) + 1
        self.recover(ns, f"plan-{self.plans}", mode="rewind", point="latest", dryRun=True)
        return any(part in name and line["a"] == "same" for name, line in self.plan(ns, f"plan-{self.plans}").items())

    def test_a_webhook_for_config_maps_that_is_down_stops_no_recovery(self):
        """The plan of each stands in ConfigMaps, where they are taken."""
        ns = self.make("maps")
        self.start()
        self.captured(ns)
        self.create(base.config_map("c", ns, "good"), obj("Secret", "s", ns, stringData={"value": "good"}), recoveries.deployment("web", ns))
        point = self.mark(ns)
        SERVER.apply(base.config_map("c", ns, "bad"), obj("Secret", "s", ns, stringData={"value": "bad"}), recoveries.deployment("web", ns, "shop:2"))
        self.mark(ns)
        self.addCleanup(SERVER.kubectl, "delete", "validatingwebhookconfiguration", "trials-maps", "--ignore-not-found")
        SERVER.apply(obj("ValidatingWebhookConfiguration", "trials-maps", version="admissionregistration.k8s.io/v1", webhooks=[{
            "name": "maps.example.com", "clientConfig": {"url": "https://127.0.0.1:1/"}, "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 1,
            "rules": [{"apiGroups": [""], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ns}}}]))
        until("the door is shut", lambda: "failed calling webhook" in SERVER.kubectl(
            "create", "--dry-run=server", "-f", "-", stdin=json.dumps(base.config_map("probe", ns)), check=False))
        status = self.recover(ns, "back", mode="rewind", point=point)
        self.assertEqual((status["phase"], {f["object"].split("/")[-1] for f in status.get("failures", [])}), ("Failed", {"c", "mark"}), json.dumps(status, indent=1))
        self.assertIn("failed calling webhook", status["failures"][0]["reason"])
        self.assertEqual(base64.b64decode(self.get(ns, "secret", "s")["data"]["value"]), b"good")
        self.assertEqual(self.get(ns, "deployment", "web")["spec"]["template"]["spec"]["containers"][0]["image"], "shop:1")
        lines = {line["o"].split("/")[-1]: line for line in map(json.loads, status["plan"]["objects"])}
        self.assertEqual((lines["c"]["v"], lines["s"]["v"], lines["web"]["v"]), ("failed", "changed", "changed"))
        self.assertNotIn("configMap", status["plan"])

    def test_what_a_killed_controller_had_deleted_and_may_not_be_made_is_there_as_it_was(self):
        """What is made again for a field that cannot be changed, when the door is shut between its end and its beginning."""
        ns = self.make("between")
        controller = self.start("first")
        self.captured(ns)
        hold = {"finalizers": ["example.com/hold"]}
        frozen = lambda value, **meta: obj("Secret", "frozen", ns, immutable=True, stringData={"value": value}, meta=meta)
        SERVER.apply(frozen("good"), base.config_map("c", ns, "good"))
        point = self.mark(ns)
        SERVER.kubectl("-n", ns, "delete", "secret/frozen")
        SERVER.apply(frozen("newer", **hold), base.config_map("c", ns, "newer"))
        was = self.get(ns, "secret", "frozen")
        self.mark(ns)
        self.start_recovery(ns, "back", mode="rewind", point=point)
        until("it is deleted, and held", lambda: "deletionTimestamp" in self.get(ns, "secret", "frozen")["metadata"])
        controller.kill()
        status = self.status(ns, "back")
        self.assertEqual(status["phase"], "Running", status)
        self.assertNotIn(was["data"]["value"], json.dumps(status), "what is noted is sealed")
        self.addCleanup(SERVER.kubectl, "delete", "validatingadmissionpolicy,validatingadmissionpolicybinding", "trials-between", "--ignore-not-found")
        self.refuse("trials-between", ns, f"object.metadata.name != 'frozen' || object.data['value'] == '{was['data']['value']}'", "what is old is not wanted", ["secrets"])
        self.await_door(frozen("good"))
        SERVER.kubectl("-n", ns, "patch", "secret", "frozen", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        until("it is gone", lambda: self.get(ns, "secret", "frozen") is None)
        self.start("second")
        until("the end", lambda: self.has_ended(ns, "back"), 180)
        status, now = self.status(ns, "back"), self.get(ns, "secret", "frozen")
        self.assertIsNotNone(now, json.dumps(status, indent=1))
        self.assertEqual((now["data"], now["metadata"]["finalizers"]), (was["data"], hold["finalizers"]))
        SERVER.kubectl("-n", ns, "patch", "secret", "frozen", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        self.assertEqual((status["phase"], [f["object"].split("/")[-1] for f in status["failures"]]), ("Failed", ["frozen"]))
        self.assertIn("what is old is not wanted", status["failures"][0]["reason"])
        self.assertIn("what was there was made again as it was", status["failures"][0]["reason"])
        self.assertEqual(base.actual(ns)["c"], "good", "the rest is put back")
        self.assertNotIn("replacing", status)

    # ---- objects that are on their way out ----

    def test_what_is_being_deleted_is_there_at_the_end(self):
        ns = self.make("leaving")
        version = self.define("Tenant")
        self.start()
        self.captured(ns)
        self.create(obj("Tenant", "t", ns, version, meta={"finalizers": ["trials.example.com/release"]}, spec={"a": 1}), base.config_map("c", ns, "1"))
        point = self.mark(ns)
        SERVER.kubectl("-n", ns, "delete", "tenant", "t", "--wait=false")
        until("it leaves", lambda: self.get(ns, "tenant", "t")["metadata"].get("deletionTimestamp"))
        self.start_recovery(ns, "back", mode="rewind", point=point)
        until("it was planned", lambda: self.status(ns, "back").get("plan") and self.status(ns, "back")["step"]["name"] != "Plan" or self.has_ended(ns, "back"))
        SERVER.kubectl("-n", ns, "patch", "tenant", "t", "--type=merge", "-p", '{"metadata":{"finalizers":null}}', check=False)  # its operator, at last
        until("the end", lambda: self.has_ended(ns, "back"))
        status = self.status(ns, "back")
        now = self.get(ns, "tenant", "t")
        self.assertIsNotNone(now, json.dumps(status, indent=1))
        self.assertNotIn("deletionTimestamp", now["metadata"])
        self.no_failures(status)

    # ---- fields that hang together ----

    def test_services_go_back_from_any_type_to_any(self):
        ns = self.make("services")
        self.start()
        self.captured(ns)
        one, two = [{"name": "a", "port": 80}], [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
        forms = {"cluster": {"type": "ClusterIP", "ports": one}, "node": {"type": "NodePort", "ports": two},
                 "balancer": {"type": "LoadBalancer", "ports": two, "externalTrafficPolicy": "Local"},
                 "plain": {"type": "LoadBalancer", "ports": one, "allocateLoadBalancerNodePorts": False},
                 "headless": {"clusterIP": "None", "ports": two}, "name": {"type": "ExternalName", "externalName": "db.example.com"}}
        make = lambda n, form: obj("Service", n, ns, spec={**({} if form == "name" else {"selector": {"app": "web"}}), **forms[form]})
        pairs = [(a, b) for a in forms for b in forms if a != b]
        self.create(*(make(f"{a}-{b}", a) for a, b in pairs))
        point = self.mark(ns)
        shape = lambda s: {**{k: v for k, v in s.items() if k not in ("ports", "clusterIP", "clusterIPs", "healthCheckNodePort")}, "headless": s.get("clusterIP") == "None",
                           "ports": [{k: v for k, v in p.items() if k != "nodePort"} for p in s.get("ports", [])], "nodePorts": [bool(p.get("nodePort")) for p in s.get("ports", [])]}
        wanted = {o["metadata"]["name"]: shape(o["spec"]) for o in SERVER.json("-n", ns, "get", "services")["items"]}
        for a, b in pairs:
            name = f"{a}-{b}"
            live = self.get(ns, "service", name)
            changed = {**live, "spec": make(name, b)["spec"]}
            text = SERVER.kubectl("replace", "-f", "-", stdin=json.dumps(changed), check=False)
            if "replaced" not in text:  # what cannot be changed is made anew
                SERVER.kubectl("-n", ns, "delete", "service", name)
                self.create(make(name, b))
        status = self.recover(ns, "back", mode="rewind", point=point)
        self.assertEqual(status.get("failures", []), [])
        for o in SERVER.json("-n", ns, "get", "services")["items"]:
            self.assertEqual(shape(o["spec"]), wanted[o["metadata"]["name"]], o["metadata"]["name"])
        self.no_failures(status)

    def test_what_only_a_watch_tells_of_a_service_is_no_change(self):
        """An ExternalName that was something else: its internalTrafficPolicy is stored and comes with the watch, but not with a get."""
        ns = self.make("external")
        self.start()
        self.captured(ns)
        self.create(obj("Service", "db", ns, spec={"selector": {"app": "web"}, "ports": [{"name": "a", "port": 80}]}))
        self.mark(ns)
        SERVER.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(
            obj("Service", "db", ns, spec={"type": "ExternalName", "externalName": "db.example.com"})))
        point = self.mark(ns)
        self.create(base.config_map("later", ns))
        self.rewind(ns, "back", point)

    def test_a_claim_that_has_grown_stays_as_large_as_it_is(self):
        ns = self.make("grown")
        SERVER.apply(obj("StorageClass", "growing", version="storage.k8s.io/v1", provisioner="x.example.com", allowVolumeExpansion=True),
                     obj("PersistentVolume", "grown", spec={"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "growing",
                                                            "claimRef": {"namespace": ns, "name": "data"}, "csi": {"driver": "x.example.com", "volumeHandle": "1"}}))
        self.start()
        self.captured(ns)
        self.create({**base.claim("data", ns, "growing"), "spec": {**base.claim("data", ns, "growing")["spec"], "volumeName": "grown"}})
        until("it is bound", lambda: self.get(ns, "pvc", "data").get("status", {}).get("phase") == "Bound")
        self.create(base.config_map("c", ns, "good"))
        point = self.mark(ns)
        SERVER.kubectl("-n", ns, "patch", "pvc", "data", "--type=merge", "-p", '{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}')
        SERVER.kubectl("patch", "pv", "grown", "--type=merge", "-p", '{"spec":{"capacity":{"storage":"2Gi"}}}')
        SERVER.kubectl("-n", ns, "patch", "pvc", "data", "--subresource=status", "--type=merge", "-p", '{"status":{"capacity":{"storage":"2Gi"}}}')
        SERVER.kubectl("-n", ns, "label", "pvc", "data", "later=yes")
        SERVER.apply(base.config_map("c", ns, "bad"))
        status = self.rewind(ns, "back", point)
        claim = self.get(ns, "pvc", "data")
        self.assertEqual(claim["spec"]["resources"]["requests"]["storage"], "2Gi")
        self.assertNotIn("later", claim["metadata"].get("labels", {}))
        self.assertIn("2Gi", self.plan(ns, "back")[f"core/v1/PersistentVolumeClaim/{ns}/data"].get("r", ""))
        self.assertEqual(status["verdicts"]["failed"], 0)

    # ---- what runs once ----

    def job(self, name, ns, image="migrate:1"):
        return obj("Job", name, ns, "batch/v1", spec={"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": image}]}}})

    def end_job(self, ns, name):
        """As the kubelet would say it."""
        pods = lambda: [p for p in SERVER.json("-n", ns, "get", "pods", "-l", f"job-name={name}")["items"]]
        until("its pod", pods)
        for pod in pods():
            SERVER.kubectl("-n", ns, "patch", "pod", pod["metadata"]["name"], "--subresource=status", "--type=merge", "-p", '{"status":{"phase":"Succeeded"}}')
        until("its end", lambda: any(c["type"] == "Complete" for c in self.get(ns, "job", name).get("status", {}).get("conditions", [])))

    def test_a_job_that_had_ended_does_not_run_again_and_one_that_ran_does(self):
        ns = self.make("jobs")
        self.start()
        self.captured(ns)
        self.create(self.job("ended", ns), self.job("same", ns), self.job("running", ns), base.config_map("c", ns, "good"))
        self.end_job(ns, "ended")
        self.end_job(ns, "same")
        point = self.mark(ns)
        # the next release makes the hook's job again, and it runs
        SERVER.kubectl("-n", ns, "delete", "job", "ended")
        self.create(self.job("ended", ns, "migrate:2"))
        self.end_job(ns, "running")
        was = {n: self.get(ns, "job", n)["metadata"]["uid"] for n in ("ended", "same", "running")}
        self.mark(ns)
        status = self.rewind(ns, "back", point)
        plan = self.plan(ns, "back")
        ended = self.get(ns, "job", "ended")
        if ended:
            self.assertEqual(ended["spec"]["template"]["spec"]["containers"][0]["image"], "migrate:2", "the old one runs again")
        self.assertIsNone(ended, "what came later would run on the volumes of the point")
        self.assertIn("not run again", plan[f"batch/v1/Job/{ns}/ended"]["r"])
        self.assertEqual(self.get(ns, "job", "same")["metadata"]["uid"], was["same"])
        running = self.get(ns, "job", "running")
        self.assertNotEqual(running["metadata"]["uid"], was["running"], f"its work is undone, and it would not do it again: {plan}")
        self.assertEqual(status["verdicts"]["failed"], 0)

    # ---- a namespace that goes ----

    def test_the_latest_point_of_a_deleted_namespace_is_as_it_was(self):
        """What goes with it goes one after the other, the application among the first; another controller sees the end of it."""
        room, ns = base.make_namespace("last-room"), self.make("last")
        controller = self.start("first")
        self.captured(ns)
        self.create(*(base.config_map(f"c{i}", ns) for i in range(30)), *(obj("Secret", f"s{i}", ns, stringData={"a": "b"}) for i in range(5)),
                    recoveries.deployment("web", ns), service("web", ns), base.claim("data", ns), base.config_map("held", ns, finalizers=["example.com/hold"]))
        self.mark(ns)
        names = lambda: {(o["kind"], o["metadata"]["name"]) for o in SERVER.json("-n", ns, "get", "configmaps,secrets,deployments,services,pvc,serviceaccounts")["items"]
                         if not o["metadata"]["name"].startswith("tidemark-recovery-")}
        before = names()
        SERVER.kubectl("delete", "namespace", ns, "--wait=false")
        until("most of it is gone", lambda: len(names()) < 5 and base.papp(ns) is None)
        controller.kill()
        self.start("second")
        until("it leads", lambda: "second" in SERVER.json("-n", "tidemark-system", "get", "lease", "tidemark-controller")["spec"].get("holderIdentity", ""))
        SERVER.kubectl("-n", ns, "patch", "configmap", "held", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        until("it is gone", lambda: "NotFound" in SERVER.kubectl("get", "namespace", ns, check=False))
        status = self.recover(ns, "again", where=room, mode="restore", point="latest", sourceNamespace=ns)
        self.no_failures(status)
        self.assertEqual(before - names(), set())
        SERVER.kubectl("-n", ns, "patch", "configmap", "held", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        # and its history goes on
        self.captured(ns)
        SERVER.kubectl("-n", ns, "delete", "configmap", "c1")
        point = self.mark(ns)
        SERVER.kubectl("-n", ns, "delete", "configmap", "c2")
        self.rewind(ns, "back", point)
        self.assertEqual({n for _, n in before - names()}, {"c1"})
        self.controllers[-1].stop()
        records = base.history(self.state, ns)
        end = next(i for i, r in enumerate(records) if "the namespace was deleted" in r)
        self.assertEqual([r for r in records[:end] if r.startswith("deleted")], [])

    # ---- a namespace that begins anew ----

    def test_a_namespace_with_quotas_comes_back_whole(self):
        room = base.make_namespace("quotas-room")
        ns = self.make("quotas")
        self.start()
        self.captured(ns)
        hard = {"count/configmaps": "60", "count/secrets": "20", "services": "20", "pods": "20", "requests.cpu": "8", "limits.memory": "64Gi", "persistentvolumeclaims": "5"}
        SERVER.apply(obj("ResourceQuota", "all", ns, spec={"hard": hard}),
                     obj("LimitRange", "defaults", ns, spec={"limits": [{"type": "Container", "default": {"memory": "128Mi"}, "defaultRequest": {"cpu": "10m"}}]}))
        until("the quota is in force", lambda: self.get(ns, "resourcequota", "all").get("status", {}).get("used"))
        self.create(*(base.config_map(f"c{i}", ns) for i in range(40)), *(obj("Secret", f"s{i}", ns, stringData={"a": "b"}) for i in range(10)),
                    *(obj("Service", f"v{i}", ns, spec={"ports": [{"port": 1}]}) for i in range(5)), recoveries.deployment("web", ns),
                    obj("Pod", "bare", ns, spec={"containers": [{"name": "c", "image": "c"}]}), base.claim("data", ns))
        point = self.mark(ns)
        SERVER.kubectl("delete", "namespace", ns)
        status = self.recover(ns, "again", where=room, mode="restore", point=point, sourceNamespace=ns)
        self.assertEqual(status.get("failures", []), [])
        self.no_failures(status)
        self.assertEqual(len([n for n in base.actual(ns) if n.startswith("c")]), 40)

    def limits(self, ns, cpu, storage, maps):
        return (obj("LimitRange", "limits", ns, spec={"limits": [{"type": "Container", "max": {"cpu": cpu}, "default": {"cpu": "200m"}, "defaultRequest": {"cpu": "100m"}},
                                                                 {"type": "PersistentVolumeClaim", "max": {"storage": storage}}]}),
                obj("ResourceQuota", "maps", ns, spec={"hard": {"count/configmaps": maps}}))

    def pod(self, name, ns, cpu):
        return obj("Pod", name, ns, spec={"containers": [{"name": "c", "image": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}}]})

    def await_limits(self, ns, o, word):
        until("they are in force", lambda: word in SERVER.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(o), check=False))

    def test_what_is_older_than_a_limit_comes_back_with_it_and_pods_that_are_made_get_its_defaults(self):
        room, ns = base.make_namespace("older-room"), self.make("older")
        self.start()
        self.captured(ns)
        self.create(self.pod("bare", ns, "2"), base.claim("data", ns), *(base.config_map(f"c{i}", ns) for i in range(5)))
        self.mark(ns)
        self.create(*self.limits(ns, "1", "500Mi", "3"), recoveries.deployment("web", ns))
        self.await_limits(ns, self.pod("probe", ns, "2"), "maximum cpu usage per Container is 1")
        point = until("the journal", lambda: self.journaled(ns))
        SERVER.kubectl("-n", ns, "delete", "pod", "bare", "--grace-period=0", "--force")
        SERVER.kubectl("delete", "namespace", ns)
        status = self.recover(ns, "again", where=room, mode="restore", point=point, sourceNamespace=ns)
        self.assertEqual(status.get("failures", []), [])
        self.no_failures(status)
        self.assertEqual(self.get(ns, "pod", "bare")["spec"]["containers"][0]["resources"], {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}})
        self.assertEqual({n for n in base.actual(ns) if n.startswith("c")}, {f"c{i}" for i in range(5)})
        self.assertIsNotNone(self.get(ns, "pvc", "data"))
        pods = until("its pods", lambda: [p for p in SERVER.json("-n", ns, "get", "pods", "-l", "app=web")["items"]])
        self.assertEqual(pods[0]["spec"]["containers"][0]["resources"]["limits"], {"cpu": "200m"})

    def test_limits_that_came_or_were_tightened_after_the_point_are_in_no_ones_way(self):
        ns = self.make("tightened")
        self.start()
        self.captured(ns)
        self.create(*self.limits(ns, "4", "2Gi", "50"))
        self.await_limits(ns, self.pod("probe", ns, "5"), "maximum cpu usage per Container is 4")
        self.create(self.pod("bare", ns, "2"), base.claim("data", ns), *(base.config_map(f"c{i}", ns) for i in range(5)))
        point = self.mark(ns)
        SERVER.kubectl("-n", ns, "delete", "pod/bare", "pvc/data", "configmap/c0", "configmap/c1", "--grace-period=0", "--force")
        until("they are gone", lambda: not self.get(ns, "pod", "bare") and not self.get(ns, "pvc", "data"))
        later = self.limits(ns, "1", "500Mi", "3")
        SERVER.apply(*later, *({**o, "metadata": {**o["metadata"], "name": "later"}} for o in later))
        self.await_limits(ns, self.pod("probe", ns, "2"), "maximum cpu usage per Container is 1")
        until("it is journaled", lambda: self.journaled(ns))
        status = self.rewind(ns, "back", point)
        self.assertEqual(status["verdicts"]["failed"], 0)
        self.assertEqual(self.get(ns, "pod", "bare")["spec"]["containers"][0]["resources"]["limits"], {"cpu": "2"})
        self.assertEqual({n for n in base.actual(ns) if n.startswith("c")}, {f"c{i}" for i in range(5)})
        self.assertIsNotNone(self.get(ns, "pvc", "data"))
        self.assertEqual([self.get(ns, "resourcequota", n) is not None for n in ("maps", "later")], [True, False])

    # ---- clones ----

    def test_a_clone_knows_nothing_of_the_namespace_that_it_comes_from(self):
        ns = self.make("homely")
        version = self.define("Monitor")
        self.start()
        self.captured(ns)
        web = recoveries.deployment("web", ns)
        web["spec"]["template"]["spec"]["containers"][0].update({"env": [{"name": "WATCH_NAMESPACE", "value": ns}, {"name": "WORD", "value": ns}],
                                                                 "args": [f"--namespace={ns}", "--leader-election-namespace", ns, ns]})
        self.create(web, obj("Monitor", "m", ns, version, spec={"namespaceSelector": {"matchNames": [ns, "other"]}, "watchNamespaces": [ns], "title": ns}),
                    obj("NetworkPolicy", "own", ns, "networking.k8s.io/v1", spec={"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [{}], "ingress": [{"from": [{
                        "namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": [ns, "edge"]}]}}]}]}),
                    obj("Service", "door", ns, meta={"annotations": {"external-dns.alpha.kubernetes.io/hostname": "shop.example.com", "metallb.io/loadBalancerIPs": "192.0.2.1"}},
                        spec={"ports": [{"port": 80}], "externalIPs": ["192.0.2.7"]}))
        point = self.mark(ns)
        self.no_failures(self.recover(ns, "copy", mode="clone", point=point, targetNamespace="homely-clone"))
        to = "homely-clone"
        container = self.get(to, "deployment", "web")["spec"]["template"]["spec"]["containers"][0]
        self.assertEqual(container["env"], [{"name": "WATCH_NAMESPACE", "value": to}, {"name": "WORD", "value": ns}])
        self.assertEqual(container["args"], [f"--namespace={to}", "--leader-election-namespace", to, ns])
        self.assertEqual(self.get(to, "monitor", "m")["spec"], {"namespaceSelector": {"matchNames": [to, "other"]}, "watchNamespaces": [to], "title": ns})
        rule = self.get(to, "networkpolicy", "own")["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchExpressions"][0]
        self.assertEqual(rule["values"], [to, "edge"])
        door = self.get(to, "service", "door")
        self.assertNotIn("externalIPs", door["spec"], "the original's traffic would come to the clone")
        self.assertEqual(door["metadata"].get("annotations", {}), {})
        # isolated: policies add up, so that one of the application's own would open what isolation closes
        self.no_failures(self.recover(ns, "alone", mode="clone", point=point, targetNamespace="homely-alone", isolated=True))
        self.assertEqual([o["metadata"]["name"] for o in SERVER.json("-n", "homely-alone", "get", "networkpolicies")["items"]], ["tidemark-isolated"])
        self.assertIn("isolated", self.plan(ns, "alone")["networking.k8s.io/v1/NetworkPolicy/homely-alone/own"]["r"])

    # ---- rights ----

    def test_somebody_in_many_groups_can_recover(self):
        ns = self.make("groups")
        self.start()
        self.captured(ns)
        point = self.settle(ns, base.config_map("c", ns, "good"))
        SERVER.apply(base.config_map("c", ns, "bad"), obj("ClusterRoleBinding", "many-groups", version=RBAC + "/v1",
                     roleRef={"apiGroup": RBAC, "kind": "ClusterRole", "name": "cluster-admin"}, subjects=[{"kind": "Group", "name": "group-0199", "apiGroup": RBAC}]))
        groups = [f"group-{i:04}" for i in range(200)]
        self.no_failures(self.recover(ns, "many", mode="rewind", point=point, requester={"username": "ümit@example.com", "groups": groups, "extra": {
            "authentication.kubernetes.io/credential-id": ["JTI=1"], "scopes.example.com/a b": ["x, y", "ö"]}}))
        self.assertEqual(base.actual(ns)["c"], "good")


    # ---- histories by chance ----

    def test_histories_by_chance(self):
        seed = int(os.environ.get("TIDEMARK_SEED", "1")) or random.SystemRandom().randrange(1, 1 << 31)
        rounds = int(os.environ.get("TIDEMARK_ROUNDS", "1"))
        version = self.define("Odd")
        room = base.make_namespace("chance-room")
        self.start()
        for number in range(rounds):
            with self.subTest(f"TIDEMARK_SEED={seed + number}"):
                print(f"TIDEMARK_SEED={seed + number}", flush=True)
                try:
                    Chance(self, f"chance-{number}", room, version, random.Random(seed + number)).run()
                except AssertionError as e:
                    print(e, flush=True)  # now, and not after the last round
                    raise


class Chance:
    """Objects of many kinds, changed by several clients in their several ways; what the server has at a point is what has to be there again."""

    def __init__(self, test, ns, room, odd, rnd):
        self.t, self.ns, self.room, self.odd, self.rnd, self.count = test, test.make(ns), room, odd, rnd, 0
        manifests.SERVER = SERVER
        self.t.kinds = manifests.resources()

    def text(self):
        alphabet = "abc XYZ09-_./:äß中🙂\"'\\\n\t{}[]$%&\u0000"
        return "".join(self.rnd.choice(alphabet) for _ in range(self.rnd.choice((0, 1, 5, 40))))

    def json(self, depth=0):
        r = self.rnd
        what = r.randrange(9 if depth < 4 else 6)
        if what == 0:
            return self.text()
        if what == 1:
            return r.choice((0, 1, -1, 2**31, 2**53 + 1, -2**53 - 1, 2**63 - 1, -2**63, 2**63, 2**64, 10**20))
        if what == 2:
            return r.choice((0.1, 1.5, -2.25, 1e-7, 1e21, 3.141592653589793, 5e-324, 1.7976931348623157e308))
        if what in (3, 4, 5):
            return (True, False, None)[what - 3]
        if what == 6:
            return [self.json(depth + 1) for _ in range(r.randrange(4))]
        if what == 7:  # a list that looks like a map
            return [{"name": n, "v": self.json(depth + 1)} for n in r.sample("abcdef", r.randrange(4))]
        return {r.choice(("a", "b", "name", "key", "ä", "a.b/c", "", "$ref", "uid", "status", "namespace")) + r.choice(("", "1")): self.json(depth + 1) for _ in range(r.randrange(5))}

    def labels(self):
        return {k: self.rnd.choice(("", "x", "y")) for k in self.rnd.sample(("app", "tier", "example.com/a", "b.c"), self.rnd.randrange(4))}

    def template(self, app):
        r = self.rnd
        container = {"name": "c", "image": f"registry.invalid/{r.choice('ab')}:{r.randrange(5)}", "env": [{"name": n, "value": self.text().replace("\0", "")} for n in r.sample(("A", "B", "C"), r.randrange(3))],
                     "ports": [{"containerPort": p, **({"name": f"p{p}"} if r.random() < .5 else {})} for p in r.sample((80, 81, 82), r.randrange(3))],
                     "resources": {"requests": {"cpu": r.choice(("1", "0.5", "100m", "1000m"))}} if r.random() < .5 else {}}
        volumes = [{"name": "e", "emptyDir": {}}, {"name": "m", "configMap": {"name": "map-0", "optional": True}}, {"name": "s", "secret": {"secretName": "secret-0", "optional": True}}]
        return {"metadata": {"labels": {"app": app, **({"x": r.choice("12")} if r.random() < .5 else {})}},
                "spec": {"containers": [container], "volumes": r.sample(volumes, r.randrange(4)), "nodeSelector": {"nowhere": "x"}}}

    def spec_of(self, kind, name):
        r, app = self.rnd, f"{name}-{self.rnd.randrange(2)}"
        port = lambda n: {"name": f"p{n}", "port": n, "protocol": r.choice(("TCP", "UDP")), **({"targetPort": r.choice((n, "web"))} if r.random() < .5 else {})}
        if kind == "ConfigMap":
            data = {r.choice(("a", "b.c", "d-e", "F_G")): self.text() for _ in range(r.randrange(4))}
            return {"data": data, **({"binaryData": {"bin": "AAECAwT/"}} if r.random() < .3 else {}), **({"immutable": True} if r.random() < .2 else {})}
        if kind == "Secret":
            return {"data": {k: r.choice(("YQ==", "", "AP8A", "c2hvcA==")) for k in r.sample("abc", r.randrange(3))}, **({"immutable": True} if r.random() < .2 else {}),
                    "type": r.choice(("Opaque", "example.com/x"))}
        if kind == "Service":
            form = r.randrange(4)
            ports = [port(n) for n in r.sample((80, 81, 443), r.randrange(1, 4))]
            return {"spec": [{"ports": ports, "selector": {"app": app}}, {"ports": ports, "type": "NodePort", "selector": {"app": app}}, {"clusterIP": "None", "ports": ports},
                             {"type": "ExternalName", "externalName": "db.example.com"}][form]}
        if kind in ("Deployment", "ReplicaSet"):
            return {"spec": {"replicas": r.randrange(3), "selector": {"matchLabels": {"app": app}}, "template": self.template(app)}}
        if kind == "DaemonSet":
            return {"spec": {"selector": {"matchLabels": {"app": app}}, "template": self.template(app)}}
        if kind == "StatefulSet":
            claims = [{"metadata": {"name": n}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": r.choice(("1Gi", "1024Mi"))}}}} for n in ("data", "wal")[:r.randrange(3)]]
            return {"spec": {"replicas": r.randrange(2), "serviceName": r.choice(("a", "b")), "selector": {"matchLabels": {"app": app}}, "template": self.template(app), "volumeClaimTemplates": claims}}
        if kind == "CronJob":
            return {"spec": {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "c"}]}}}}}}
        if kind == "HorizontalPodAutoscaler":
            return {"spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "absent"}, "maxReplicas": r.randrange(1, 9)}}
        if kind == "Ingress":
            return {"spec": {"tls": [{"hosts": ["a.example.com"], "secretName": "secret-0"}], "rules": [{"host": r.choice("ab") + ".example.com", "http": {"paths": [
                {"path": r.choice(("/", "/a")), "pathType": "Prefix", "backend": {"service": {"name": "service-0", "port": r.choice(({"number": 80}, {"name": "p80"}))}}}]}}]}}
        if kind == "NetworkPolicy":
            return {"spec": {"podSelector": r.choice(({}, {"matchLabels": {"app": app}})), "policyTypes": ["Ingress"], "ingress": r.choice(([], [{}], [{"from": [{"podSelector": {}}]}]))}}
        if kind == "PodDisruptionBudget":
            return {"spec": {"selector": {"matchLabels": {"app": app}}, **r.choice(({"minAvailable": 1}, {"maxUnavailable": "50%"}))}}
        if kind == "Role":
            return {"rules": [{"apiGroups": ["", "apps"][:r.randrange(1, 3)], "resources": r.sample(("pods", "secrets", "*"), 2), "verbs": ["get", "list"]}]}
        if kind == "RoleBinding":
            return {"roleRef": {"apiGroup": RBAC, "kind": r.choice(("Role", "ClusterRole")), "name": r.choice(("view", "edit"))}, "subjects": [{"kind": "User", "name": self.rnd.choice("ab"), "apiGroup": RBAC}]}
        if kind == "ServiceAccount":
            return {"imagePullSecrets": [{"name": n} for n in r.sample(("a", "b"), r.randrange(3))], **({"automountServiceAccountToken": False} if r.random() < .5 else {})}
        if kind == "LimitRange":
            return {"spec": {"limits": [{"type": "PersistentVolumeClaim", "max": {"storage": r.choice(("20Gi", "30Gi"))}}]}}
        if kind == "PersistentVolumeClaim":
            return {"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}}
        if kind == "EndpointSlice":
            return {"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": True}}], "ports": [{"port": r.randrange(1, 99)}]}
        return {"spec": {"x": self.json()}, **({"data": self.json()} if r.random() < .3 else {})}

    KINDS = {"ConfigMap": "v1", "Secret": "v1", "Service": "v1", "Deployment": "apps/v1", "ReplicaSet": "apps/v1", "DaemonSet": "apps/v1", "StatefulSet": "apps/v1",
             "CronJob": "batch/v1", "HorizontalPodAutoscaler": "autoscaling/v2", "Ingress": "networking.k8s.io/v1", "NetworkPolicy": "networking.k8s.io/v1",
             "PodDisruptionBudget": "policy/v1", "Role": RBAC + "/v1", "RoleBinding": RBAC + "/v1", "ServiceAccount": "v1", "LimitRange": "v1",
             "PersistentVolumeClaim": "v1", "EndpointSlice": "discovery.k8s.io/v1", "Odd": None}

    def some(self):
        kind = self.rnd.choice(sorted(self.KINDS) + ["Odd"] * 4 + ["ConfigMap", "Service", "Deployment"])
        suffix = self.rnd.choice(("", ":Odd")) if kind in ("Role", "RoleBinding") else ""
        name = ("map" if kind == "ConfigMap" else kind.lower()) + f"-{self.rnd.randrange(3)}{suffix}"
        meta = {"labels": self.labels(), "annotations": {"example.com/note": self.text()} if self.rnd.random() < .5 else {}}
        return obj(kind, name, self.ns, self.KINDS[kind] or self.odd, meta=meta, **self.spec_of(kind, name.replace(":", "").lower()))

    def feed(self, command, objects):
        if objects:
            SERVER.kubectl(*command, "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}), check=False)

    def change(self, size):
        """Some of it is refused: that, too, is what people do."""
        by = {}
        for _ in range(size):
            o = self.some()
            by.setdefault(self.rnd.choice(("create", "ssa a", "ssa b", "apply", "replace", "delete", "force", "orphan")), {})[(o["kind"], o["metadata"]["name"])] = o
        for way in self.rnd.sample(sorted(by), len(by)):
            command = {"create": ("create",), "ssa a": ("apply", "--server-side", "--field-manager=a", "--force-conflicts"), "ssa b": ("apply", "--server-side", "--field-manager=b"),
                       "apply": ("apply",), "replace": ("replace",), "delete": ("delete", "--wait=false"), "force": ("replace", "--force"), "orphan": ("delete", "--cascade=orphan", "--wait=false")}[way]
            self.feed(command, list(by[way].values()))
        self.own()

    def own(self):
        """Some belong to others."""
        items = [o for o in SERVER.json("-n", self.ns, "get", "configmaps,secrets,deployments,odds.trials.example.com")["items"] if o["metadata"]["name"][-1].isdigit()]
        for _ in range(min(3, len(items) // 2)):
            owner, owned = self.rnd.sample(items, 2)
            if sorted((owner["metadata"]["name"], owned["metadata"]["name"]))[0] == owner["metadata"]["name"]:  # no circles
                SERVER.kubectl("-n", self.ns, "patch", owned["kind"], owned["metadata"]["name"], "--type=merge", "-p", json.dumps(
                    {"metadata": {"ownerReferences": [owner_of(owner)]}}), check=False)

    WORKLOADS = ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet")

    def unsettled(self, ns):
        """What the cluster's own controllers and its garbage collector have still to do, on a busy machine many seconds later."""
        items = SERVER.json("-n", ns, "get", self.t.kinds)["items"]
        uids = {o["metadata"]["uid"] for o in items}
        return [f"{o['kind']}/{o['metadata']['name']}" for o in items if
                any(r["uid"] not in uids and not r["apiVersion"].startswith("tidemark.io/") for r in o["metadata"].get("ownerReferences", [])) or
                (o["kind"] in self.WORKLOADS and o.get("status", {}).get("observedGeneration", 0) < o["metadata"]["generation"])]

    def quiet(self, ns=None):
        self.t.settled_gc(ns or self.ns, None)
        try:
            until("nothing is under way", lambda: not self.unsettled(ns or self.ns), 60)
        except AssertionError:
            pass  # a workload that its controller cannot deal with stays so
        self.until_gone(ns or self.ns)

    def until_gone(self, ns):
        until("nothing leaves", lambda: not any(o["metadata"].get("deletionTimestamp") for o in SERVER.json("-n", ns, "get", self.t.kinds)["items"]))

    def snapshot(self, ns):
        self.until_gone(ns)
        found = manifests.Manifests.snapshot(self.t, ns)
        return {k: v for k, v in found.items() if not k.endswith("ConfigMap/mark") and "/gc-" not in k}

    def differences(self, found, wanted):
        lines = [f"+ {k}" for k in sorted(set(found) - set(wanted))] + [f"- {k}" for k in sorted(set(wanted) - set(found))]
        for k in sorted(set(found) & set(wanted)):
            if json.dumps(found[k], sort_keys=True) != json.dumps(wanted[k], sort_keys=True):
                lines.append(f"~ {k}\n    is     {json.dumps(found[k], sort_keys=True)}\n    wanted {json.dumps(wanted[k], sort_keys=True)}")
        return "\n".join(lines)

    def until_same(self, ns, wanted, rewind=False):
        """The differences that stay: a ReplicaSet, say, is made again by the controller of its Deployment."""
        told = []

        def same():
            found = self.snapshot(ns)  # with a rewind, claims that came later stay
            told[:] = [self.differences(found, {**{k: v for k, v in found.items() if rewind and "/PersistentVolumeClaim/" in k}, **wanted})]
            return not told[0]

        try:
            until("the same", same, 60)
        except AssertionError:
            pass
        return told[0]

    def recover(self, said, wanted, ns=None, where=None, **spec):
        self.count += 1
        name = f"{self.ns}-r{self.count}"
        uids = self.uids(ns or self.ns)
        status = self.t.recover(self.ns, name, where=where, **spec)
        problems = "" if status["phase"] == "Completed" else json.dumps(status.get("failures") or status.get("message"), indent=1) + "\n"
        self.quiet(ns or self.ns)
        problems += self.until_same(ns or self.ns, wanted, spec["mode"] == "rewind")
        if spec["mode"] == "rewind":
            again = self.uids(ns or self.ns)
            actions = {k: v["a"] for k, v in self.t.plan(self.ns, name).items()}
            for key, (uid, o) in uids.items():
                journal = next((k for k in actions if k.split("/")[2] == key[0] and k.endswith("/" + key[1])), None)
                owned = o["metadata"].get("ownerReferences")  # by what came later and goes: the garbage collector is quicker, now and then
                if key in again and again[key][0] != uid and (actions.get(journal) == "same" or (actions.get(journal) == "change" and not owned)) and key[0] not in ("Pod", "ReplicaSet"):
                    problems += f"\n{key} was made again: {actions.get(journal)}"
        if problems:
            raise AssertionError(f"{said}: {json.dumps(spec)}: {name}\n{problems}")

    def uids(self, ns):
        return {(o["kind"], o["metadata"]["name"]): (o["metadata"]["uid"], o) for o in SERVER.json("-n", ns, "get", self.t.kinds)["items"]} if ns == self.ns else {}

    def run(self):
        t = self.t
        t.captured(self.ns)
        points = []
        for number in range(4):
            self.change(60 if number == 0 else 25)
            self.quiet()
            point = t.mark(self.ns)
            points.append((point, self.snapshot(self.ns)))
        t.assertGreater(len(points[0][1]), 15)
        for number in range(4):
            if number < 3:
                self.change(15)
                self.quiet()
                t.mark(self.ns)
            self.quiet()
            before = self.snapshot(self.ns)
            point, wanted = self.rnd.choice(points)
            self.recover("rewind", wanted, mode="rewind", point=point)
            if self.rnd.random() < .7:
                self.recover("undo", before, mode="rewind", point=f"before:{self.ns}-r{self.count}")
        point, wanted = self.rnd.choice(points)
        clone = f"{self.ns}-clone"
        beside = {k: json.loads(json.dumps(v).replace(f'"namespace": "{self.ns}"', f'"namespace": "{clone}"')) for k, v in wanted.items()}
        self.recover("clone", beside, ns=clone, mode="clone", point=point, targetNamespace=clone)
        point, wanted = self.rnd.choice(points)
        SERVER.kubectl("delete", "namespace", self.ns)
        self.count += 1
        status = t.recover(self.ns, f"{self.ns}-r{self.count}", where=self.room, mode="restore", point=point, sourceNamespace=self.ns)
        t.no_failures(status)
        self.quiet()
        problems = self.until_same(self.ns, wanted)
        if problems:
            raise AssertionError(f"restore {point}\n{problems}")


def load_tests(loader, _tests, _pattern):
    """The class's own: those that it inherits are test_recovery's."""
    return unittest.TestSuite(Trials(name) for name in sorted(vars(Trials)) if name.startswith("test_"))


if __name__ == "__main__":
    recoveries.main(sys.modules[__name__])
