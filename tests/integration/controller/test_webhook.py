#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The admission webhook against a real API server: with the roles, the webhooks and the policy of packaging/manifests, and the
controller as the service account that they are for. Users are those that kubectl acts as."""
import datetime
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import shutil
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../kube"))
from apiserver import KUBECTL, ROOT, ApiServer, free_ports, release_manifests, until

TIDEMARK = os.environ.get("TIDEMARK", "build/src/cli/tidemark")
SYSTEM = "tidemark-system"
SERVER = CONTROLLER = None
DONE = ("Planned", "Completed", "Failed", "Cancelled")
FORGED = json.dumps({"username": "admin", "groups": ["system:masters", "system:authenticated"]})


def manifests(*kinds):
    """Those objects of the plain manifests, as JSON."""
    parts = [p for p in re.split(r"(?m)^---$", release_manifests()) if re.search(r"(?m)^kind: (\S+)$", p)]
    chosen = [p for p in parts if re.search(r"(?m)^kind: (\S+)$", p).group(1) in kinds]
    if not chosen:
        return []
    text = SERVER.kubectl("create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-", stdin="---".join(chosen))
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        found += value.get("items", [value])
        text = text[end:]
    return found


def webhooks(port):
    """The API server of the test reaches the controller by its address, not by a Service."""
    found = manifests("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
    for configuration in found:
        for hook in configuration["webhooks"]:
            hook["timeoutSeconds"] = 30  # a machine under load shall not let by what the test wants refused
            hook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{hook['clientConfig']['service'].get('path', '/mutate')}"}
    return found


def recovery(name, namespace, annotations=None, **spec):
    return {"apiVersion": "tidemark.io/v1alpha1", "kind": "Recovery", "metadata": {"name": name, "namespace": namespace, "annotations": annotations or {}},
            "spec": {"application": namespace, "mode": "rewind", "point": "latest", **spec}}


def tidemark_object(kind, name, namespace=None, **spec):
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": "tidemark.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def config_map(name, namespace, value):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": {"value": value}}


def claim(name, namespace, **metadata):
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace, **metadata},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}}


def workload(kind, name, namespace, volumes=(), annotations=None):
    more = {"serviceName": name} if kind == "StatefulSet" else {}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": namespace, "annotations": annotations or {}},
            "spec": {**more, "replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "containers": [{"name": "c", "image": "none"}], "volumes": list(volumes)}}}}


def create(thing, user=None, verb="create"):
    """What kubectl said: the object's name, or the refusal. A warning stands before it."""
    command = [KUBECTL, f"--kubeconfig={SERVER.kubeconfig}", verb, "-f", "-"]
    if user:
        command += [f"--as={user}", "--as-group=system:authenticated", "--as-group=team"]
    done = subprocess.run(command, input=json.dumps(thing), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return done.returncode, (done.stderr + done.stdout).strip()


class Controller:
    """`tidemark controller` with a token of its service account, so that it may what the manifests let it."""

    def __init__(self, *more):
        self.more = more
        self.state = tempfile.mkdtemp(prefix="tidemark-webhook-")
        self.port = free_ports(1)
        token = SERVER.kubectl("-n", SYSTEM, "create", "token", "tidemark-controller", "--duration=24h")
        self.kubeconfig = f"{self.state}/kubeconfig"
        config = json.loads(SERVER.kubectl("config", "view", "--raw", "-o", "json"))
        config["users"] = [{"name": u["name"], "user": {"token": token}} for u in config["users"]]
        with open(self.kubeconfig, "w", encoding="utf-8") as f:
            json.dump(config, f)
        self.child = None
        self.rings = set()

    def start(self):
        SERVER.kubectl("-n", SYSTEM, "delete", "lease", "tidemark-controller", "--ignore-not-found")
        self.log = open(f"{self.state}/log", "a", encoding="utf-8")
        self.child = subprocess.Popen([TIDEMARK, "controller", f"--csi-socket={self.state}/csi.sock", f"--state={self.state}/state",
                                       f"--kubeconfig={self.kubeconfig}", f"--webhook-listen=127.0.0.1:{self.port}", *self.more],
                                      stdout=self.log, stderr=self.log)
        until("the webhook answers", self.answers)

    def answers(self):
        done = subprocess.run(["curl", "-sk", f"https://127.0.0.1:{self.port}/healthz"], stdout=subprocess.PIPE, text=True)
        return '"ok"' in done.stdout

    def kill(self):
        with open(f"/proc/{self.child.pid}/maps", encoding="utf-8") as f:
            self.rings |= {line.split()[-1] for line in f if line.rstrip().endswith(".ring")}
        self.child.kill()
        self.child.wait()
        self.log.close()

    def close(self):
        if self.child and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(timeout=180)
            except subprocess.TimeoutExpired:
                self.kill()
        for ring in self.rings:
            if os.path.exists(ring):
                os.unlink(ring)
        shutil.rmtree(self.state)


def bundles():
    found = SERVER.json("get", "mutatingwebhookconfiguration,validatingwebhookconfiguration")["items"]
    return {h["clientConfig"].get("caBundle") for c in found if c["metadata"]["name"] == "tidemark" for h in c["webhooks"]}


class Webhook(unittest.TestCase):
    def namespace(self, name, owner=None, protected=True, **labels):
        annotations = {"tidemark.io/policy": "gold"} if protected else {}
        SERVER.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations, "labels": labels}})
        if owner:
            SERVER.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "admin", "namespace": name},
                          "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
                          "subjects": [{"kind": "User", "name": owner, "apiGroup": "rbac.authorization.k8s.io"}]})
            # the role is aggregated by a controller
            until(f"{owner} may", lambda: SERVER.kubectl("-n", name, "auth", "can-i", "create", "recoveries.tidemark.io", f"--as={owner}", check=False) == "yes")
        if protected:
            until("it is protected", lambda: SERVER.kubectl("-n", name, "get", "papp", name, "-o",
                  "jsonpath={.status.conditions[?(@.type=='ObjectsCaptured')].status}", check=False) == "True")
        return name

    def accepted(self, thing, user=None, verb="create"):
        code, text = create(thing, user, verb)
        self.assertEqual(code, 0, text)
        return text

    def refused(self, because, thing, user=None, verb="create"):
        code, text = create(thing, user, verb)
        self.assertNotEqual(code, 0, f"not refused: {text}")
        self.assertIn(because, text)

    def get(self, namespace, name):
        return SERVER.json("-n", namespace, "get", "recovery", name)

    def finish(self, namespace, name):
        return until(f"the end of {name}", lambda: (lambda s: s if s.get("phase") in DONE else None)(self.get(namespace, name).get("status", {})))

    def run_recovery(self, namespace, name, user=None, **spec):
        self.accepted(recovery(name, namespace, **spec), user)
        return self.finish(namespace, name)


class Requester(Webhook):
    def test_a1_nobody_can_forge_who_asked(self):
        ns = self.namespace("forge", "ann")
        name = lambda r: json.loads(self.get(ns, r)["metadata"]["annotations"]["tidemark.io/requested-by"])
        for number, annotations in enumerate((None, {"tidemark.io/requested-by": FORGED}, {"other": "x"})):
            self.accepted(recovery(f"r{number}", ns, annotations, dryRun=True), "ann")
            said = name(f"r{number}")
            self.assertEqual((said["username"], sorted(said["groups"])), ("ann", ["system:authenticated", "team"]))
        ann = ("--as=ann", "--as-group=system:authenticated")
        SERVER.kubectl("-n", ns, "annotate", "recovery", "r0", "--overwrite", f"tidemark.io/requested-by={FORGED}", *ann)
        self.assertEqual(name("r0")["username"], "ann")
        SERVER.kubectl("-n", ns, "annotate", "recovery", "r0", "tidemark.io/requested-by-", "another=one", *ann)
        self.assertEqual(name("r0")["username"], "ann")
        self.assertEqual(self.get(ns, "r0")["metadata"]["annotations"]["another"], "one")
        # nor by an administrator: it is who made it
        SERVER.kubectl("-n", ns, "annotate", "recovery", "r1", "--overwrite", f"tidemark.io/requested-by={FORGED}")
        self.assertEqual(name("r1")["username"], "ann")
        status = ("-n", ns, "patch", "recovery", "r0", "--subresource=status", "--type=merge", "-p", '{"status":{"phase":"Completed"}}')
        self.assertIn("forbidden", SERVER.kubectl(*status, *ann, check=False))

    def test_a1_nobody_but_the_controller_writes_the_status(self):
        """Whoever may do anything in a namespace may not say which streams a Recovery is about: that is done with the controller's rights."""
        if not manifests("ValidatingAdmissionPolicy"):  # older servers have none: there the roles count
            self.skipTest("before 1.30")
        ns = self.namespace("wild")
        SERVER.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "all", "namespace": ns},
                      "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]},
                     {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "all", "namespace": ns},
                      "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "all"},
                      "subjects": [{"kind": "User", "name": "bob", "apiGroup": "rbac.authorization.k8s.io"}]})
        self.assertEqual(self.run_recovery(ns, "own", dryRun=True)["phase"], "Planned")
        forged = ("-n", ns, "patch", "recovery", "own", "--subresource=status", "--type=merge", "-p",
                  '{"status":{"phase":"Running","step":{"name":"RewindData"},"streams":[{"stream":"tm-of-another","node":"node-1","targetLsn":1}]}}')
        until("it is refused", lambda: "written by the controller alone" in SERVER.kubectl(*forged, "--as=bob", "--as-group=system:authenticated", check=False))
        self.assertIn("written by the controller alone", SERVER.kubectl(*forged, check=False))
        self.assertEqual(self.run_recovery(ns, "again", dryRun=True)["phase"], "Planned")

    def test_what_was_made_while_nobody_vouched_is_not_carried_out(self):
        ns = self.namespace("before", "ann")
        SERVER.kubectl("delete", "mutatingwebhookconfiguration,validatingwebhookconfiguration", "tidemark")
        try:
            until("the API server asks nobody", lambda: create(recovery("first", ns, {"tidemark.io/requested-by": FORGED}), "ann")[0] == 0)
            status = self.finish(ns, "first")
            self.assertEqual((status["phase"], status["conditions"][0]["reason"]), ("Failed", "RequesterUnknown"), status)
            self.assertIn("nobody vouches", status["message"])
            CONTROLLER.kill()
            until("it is taken", lambda: create(recovery("second", ns, {"tidemark.io/requested-by": FORGED}), "ann")[0] == 0)
        finally:
            if CONTROLLER.child.poll() is not None:
                CONTROLLER.start()
            install()
        status = self.finish(ns, "second")
        self.assertEqual((status["phase"], status["conditions"][0]["reason"]), ("Failed", "RequesterUnknown"), status)

    def test_certificates_that_are_broken_are_made_anew(self):
        ns = self.namespace("certificates")
        old = bundles()
        self.assertEqual(len(old), 1)
        certificate = lambda: SERVER.json("-n", SYSTEM, "get", "secret", "tidemark-webhook-tls")["data"]
        before = certificate()
        SERVER.kubectl("-n", SYSTEM, "patch", "secret", "tidemark-webhook-tls", "--type=merge", "-p", json.dumps({"data": {"tls.crt": ""}}))
        until("a new certificate", lambda: certificate()["tls.crt"] not in ("", before["tls.crt"]))
        self.assertEqual(certificate()["ca.crt"], before["ca.crt"], "the CA is still good")
        until("Recoveries are taken", lambda: create(recovery("a", ns, dryRun=True))[0] == 0)
        SERVER.kubectl("-n", SYSTEM, "delete", "secret", "tidemark-webhook-tls")
        until("a new CA everywhere", lambda: len(bundles()) == 1 and bundles() != old)
        self.assertEqual(bundles(), {certificate()["ca.crt"]})
        until("Recoveries are taken", lambda: create(recovery("b", ns, dryRun=True))[0] == 0)


class Tenants(Webhook):
    def test_a_tenant_restores_her_own_namespace_and_reaches_no_other(self):
        own, other = self.namespace("tenant-own", "ann"), self.namespace("tenant-other", "bob")
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": other}, "stringData": {"password": "theirs"}}
        # of a class, at which she may not look
        classed = claim("data", own)
        classed["spec"]["storageClassName"] = "tenants"
        SERVER.apply({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "tenants"}, "provisioner": "foreign.example.com"},
                     classed, config_map("c", own, "good"), config_map("c", other, "good"), secret)
        point = self.settled(own, "good")
        self.settled(other, "good")
        SERVER.apply(config_map("c", own, "bad"))
        status = self.run_recovery(own, "mine", "ann", point=point)
        self.assertEqual(status["phase"], "Completed", status)
        self.assertEqual(SERVER.json("-n", own, "get", "configmap", "c")["data"]["value"], "good")
        # RBAC
        self.refused("cannot create resource", recovery("theirs", other), "ann")
        # what RBAC cannot see: the history is read by the controller
        self.refused("ann may not get secrets in the namespace tenant-other",
                     recovery("steal", own, application=other, sourceNamespace=other, mode="clone", targetNamespace=own), "ann")
        self.refused("ann may not get secrets in the namespace tenant-other", recovery("afar", own, application=other, sourceNamespace=other), "ann")
        # Somebody who may read there may still not put it back.
        SERVER.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "read", "namespace": other},
                      "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]},
                     {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "read", "namespace": other},
                      "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "read"},
                      "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}]})
        self.refused("ann may not create recoveries in the namespace tenant-other",
                     recovery("afar", own, application=other, sourceNamespace=other), "ann")
        self.accepted(recovery("look", own, application=other, sourceNamespace=other, mode="clone", targetNamespace=own, dryRun=True), "ann")

    def test_a_broken_kind_of_somebody_else_keeps_the_rest_from_nobody(self):
        ns = self.namespace("ill", "ann")
        version = lambda name, storage: {"name": name, "served": True, "storage": storage, "schema": {"openAPIV3Schema": {
            "type": "object", "x-kubernetes-preserve-unknown-fields": True}}}
        crd = lambda newer, conversion: {
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "gadgets.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget"},
                     "conversion": conversion, "versions": [version("v1", not newer)] + ([version("v2", True)] if newer else [])}}
        SERVER.apply(crd(False, {"strategy": "None"}))
        SERVER.kubectl("wait", "--for=condition=Established", "crd/gadgets.example.com")
        until("the kind", lambda: not SERVER.kubectl("get", "gadgets", check=False).startswith("error"))
        SERVER.apply({"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "g", "namespace": ns}, "size": 1}, config_map("c", ns, "good"))
        point = self.settled(ns, "good")
        # A bad release of its operator: nothing converts.
        by = lambda port: {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": f"https://127.0.0.1:{port}/convert"}}}
        SERVER.apply(crd(True, by(1)))
        try:
            until("it is broken", lambda: "conversion webhook" in SERVER.kubectl("-n", ns, "get", "gadgets.v2.example.com", check=False))
            SERVER.apply(config_map("c", ns, "bad"))
            self.run_recovery(ns, "back", point=point)
            self.assertEqual(SERVER.json("-n", ns, "get", "configmap", "c")["data"]["value"], "good", self.get(ns, "back").get("status"))
            with socket.create_server(("127.0.0.1", 0)) as silent:  # its node has died: nobody says no
                SERVER.apply(crd(True, by(silent.getsockname()[1])))
                until("it hangs", lambda: "deadline exceeded" in SERVER.kubectl("-n", ns, "get", "gadgets.v2.example.com", "--request-timeout=3s", check=False))
                SERVER.apply(config_map("c", ns, "bad"))
                self.run_recovery(ns, "back-again", point=point)
                self.assertEqual(SERVER.json("-n", ns, "get", "configmap", "c")["data"]["value"], "good", self.get(ns, "back-again").get("status"))
        finally:
            SERVER.apply(crd(True, {"strategy": "None"}))
            SERVER.kubectl("delete", "crd", "gadgets.example.com")

    def settled(self, ns, value):
        """The point at which the journal has the config map like that."""
        for number in range(300):
            status = self.run_recovery(ns, f"settled-{number}", dryRun=True)
            plan = status.get("plan", {})
            if status["phase"] == "Planned" and plan.get("create") == plan.get("change") == plan.get("recreate") == plan.get("delete") == 0:
                return f"lsn:{status['point']['objectsLsn']}"
        raise AssertionError(f"{ns} is not journaled: {status}")


class Refusals(Webhook):
    def test_recoveries_that_cannot_work(self):
        ns = self.namespace("refusals")
        self.refused("point", recovery("r", ns, point="2026-13-45T99:00:00Z"))
        self.refused("kubectl -n refusals get papp", recovery("r", ns, application="nosuch"))
        self.refused("beside the application", recovery("r", ns, mode="clone", targetNamespace=ns))
        self.refused("transform", recovery("r", ns, mode="clone", targetNamespace="x", transforms=[{"image": {"from": "", "to": "b"}}]))
        self.refused("transform", recovery("r", ns, mode="clone", targetNamespace="x",
                                           transforms=[{"patch": [{"op": "sing", "path": "/a"}], "target": {"kind": "Service"}}]))
        self.assertNotIn("refusals", SERVER.kubectl("get", "recoveries", "-A"))

    def test_applications_policies_and_checkpoints_that_cannot_work(self):
        ns = self.namespace("kinds", protected=False)
        SERVER.apply(tidemark_object("ProtectionPolicy", "bounded", overrides={"minHistory": "1d", "maxHistory": "30d"}),
                     tidemark_object("ProtectionPolicy", "child", extends="bounded"), claim("data", ns))
        gold = {"policyRef": {"name": "gold"}}
        papp = lambda name, **spec: tidemark_object("ProtectedApplication", name, ns, **{**gold, **spec})
        self.refused("tidemark.io/application alone", papp("a", selector={"matchLabels": {"app": "web"}}))
        self.refused("lets no application choose", papp("a", overrides={"history": "2d"}))
        for history, fits in (("12h", False), ("31d", False), ("2d", True)):
            (self.accepted if fits else lambda t: self.refused("at least 1d, at most 30d", t))(
                papp("bound", policyRef={"name": "child"}, overrides={"history": history}))
        self.refused("the volume data belongs to the ProtectedApplication bound already", papp("second"))
        SERVER.kubectl("-n", ns, "delete", "papp", "bound")
        self.assertIn("Warning: there is no ProtectionPolicy nosuch", self.accepted(papp("early", policyRef={"name": "nosuch"})))
        SERVER.kubectl("label", "namespace", ns, "tidemark.io/require-policy=true")
        SERVER.kubectl("-n", ns, "delete", "papp", "early")
        self.refused("there is no ProtectionPolicy nosuch, and the namespace kinds requires one", papp("late", policyRef={"name": "nosuch"}))
        self.accepted(papp("under"))
        self.refused("under the policy gold", tidemark_object("ProtectionPolicy", "gold"), verb="delete")
        self.refused("in a ring", tidemark_object("ProtectionPolicy", "bounded", extends="child"), verb="apply")
        self.refused("minHistory 9d is more than maxHistory 2d", tidemark_object("ProtectionPolicy", "p", overrides={"minHistory": "9d", "maxHistory": "2d"}))
        self.refused("the checkpoint's name is the tag", tidemark_object("Checkpoint", "c" * 70, ns, application="under"))
        self.refused("only the present moment can be tagged", tidemark_object("Checkpoint", "c", ns, application="under", point="-5m"))
        self.refused("there is no ProtectedApplication nosuch", tidemark_object("Checkpoint", "c", ns, application="nosuch"))
        annotate = lambda where, policy: create({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": where, "labels": {"tidemark.io/require-policy": "true"} if where == ns else {}, "annotations": {"tidemark.io/policy": policy}}}, verb="apply")
        code, text = annotate(ns, "typo")
        self.assertTrue(code and "there is no ProtectionPolicy typo, and the namespace kinds requires one" in text, text)
        code, text = annotate("kinds-free", "typo")
        self.assertTrue(code == 0 and "Warning: there is no ProtectionPolicy typo" in text, text)

    def is_there(self, kind, ns, name):
        return "NotFound" not in SERVER.kubectl("-n", ns, "get", kind, name, check=False)

    def test_a_namespace_that_requires_a_policy_takes_no_state_without(self):
        ns = self.namespace("strict", protected=False, **{"tidemark.io/require-policy": "true"})
        mounts = [{"name": "d", "persistentVolumeClaim": {"claimName": "d"}}]
        until("the policy is in force", lambda: create(claim("d", ns))[0] != 0 or SERVER.kubectl("-n", ns, "delete", "pvc", "d") is None)
        say = "takes nothing with state that no policy covers: annotate it"
        self.refused(say, claim("d", ns))
        self.refused(say, workload("StatefulSet", "s", ns))
        self.refused(say, workload("Deployment", "d", ns, mounts))
        self.accepted(workload("Deployment", "stateless", ns))
        self.accepted(workload("Deployment", "d", ns, mounts, {"tidemark.io/policy": "gold"}))
        self.accepted(claim("d", ns, annotations={"tidemark.io/policy": "gold"}))
        SERVER.kubectl("annotate", "namespace", ns, "tidemark.io/policy=gold")
        until("the API server has seen it", lambda: create(workload("StatefulSet", "s", ns))[0] == 0)
        if not manifests("ValidatingAdmissionPolicy"):  # the webhook did that, and its application says what that means
            found = until("the finding", lambda: next((f for f in SERVER.json("-n", ns, "get", "papp", ns).get("status", {}).get("findings", [])
                                                       if f["type"] == "require-policy"), None) if self.is_there("papp", ns, ns) else None)
            self.assertIn("let in while that is away", found["message"])
            self.assertEqual(found["object"], f"core/v1/Namespace/_/{ns}")
        other = self.namespace("lenient", protected=False)
        self.accepted(claim("d", other))


class Checkpoints(Webhook):
    def finish_checkpoint(self, ns, name):
        status = until(f"the end of {name}", lambda: (lambda s: s if s.get("phase") in ("Ready", "Failed") else None)(
            SERVER.json("-n", ns, "get", "checkpoint", name).get("status", {})))
        return status, {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}

    def test_a_tag_can_be_gone_back_to_and_a_name_is_given_once(self):
        ns = self.namespace("tags", "ann")
        SERVER.apply(config_map("c", ns, "good"))
        for number in range(100):  # until it is journaled
            status = self.run_recovery(ns, f"settled-{number}", dryRun=True)
            if not any(status["plan"][action] for action in ("create", "change", "recreate", "delete")):
                break
        self.accepted(tidemark_object("Checkpoint", "release-1", ns, application=ns), "ann")
        status, conditions = self.finish_checkpoint(ns, "release-1")
        self.assertEqual(conditions, {"Ready": ("True", "Tagged")}, status)
        SERVER.apply(config_map("c", ns, "bad"))
        status = self.run_recovery(ns, "back", "ann", point="tag:release-1")
        self.assertEqual(status["phase"], "Completed", status)
        self.assertEqual(SERVER.json("-n", ns, "get", "configmap", "c")["data"]["value"], "good")
        SERVER.kubectl("-n", ns, "delete", "checkpoint", "release-1")
        self.accepted(tidemark_object("Checkpoint", "release-1", ns, application=ns), "ann")
        status, conditions = self.finish_checkpoint(ns, "release-1")
        self.assertEqual(conditions, {"Ready": ("False", "TagFailed")})
        self.assertIn("choose another", status["conditions"][0]["message"])

    def test_a_consistent_one_needs_hooks_that_can_be_run(self):
        ns = self.namespace("hooks")
        self.accepted(tidemark_object("Checkpoint", "none", ns, application=ns, consistent=True))
        self.assertEqual(self.finish_checkpoint(ns, "none")[1]["ApplicationConsistent"], ("False", "NoHooks"))
        SERVER.apply(*manifests("ConfigMap"), tidemark_object("ProtectionPolicy", "hooked", hooks=[{"name": "h", "blueprint": "postgresql"}]),
                     tidemark_object("ProtectionPolicy", "hooked-wrongly", hooks=[{"name": "h", "blueprint": "nosuch"}]))
        SERVER.kubectl("annotate", "namespace", ns, "--overwrite", "tidemark.io/policy=hooked-wrongly")
        policy = lambda: SERVER.json("-n", ns, "get", "papp", ns)["spec"]["policyRef"]["name"]
        until("the other policy", lambda: policy() == "hooked-wrongly")
        self.accepted(tidemark_object("Checkpoint", "typo", ns, application=ns, consistent=True))
        status, conditions = self.finish_checkpoint(ns, "typo")
        self.assertEqual(conditions["Ready"], ("False", "HookFailed"))
        self.assertIn("there is no blueprint nosuch", json.dumps(status))
        # A pod that runs, as far as the API server knows, on a node that is not there: exec fails, and nothing is said to be consistent.
        SERVER.kubectl("annotate", "namespace", ns, "--overwrite", "tidemark.io/policy=hooked")
        until("the third policy", lambda: policy() == "hooked")
        SERVER.kubectl("-n", ns, "run", "db", "--image=registry.example.com/library/postgres:15")
        SERVER.kubectl("-n", ns, "patch", "pod", "db", "--subresource=status", "--type=merge", "-p", '{"status":{"phase":"Running"}}')
        self.accepted(tidemark_object("Checkpoint", "unreachable", ns, application=ns, consistent=True))
        hook = until("the hook", lambda: SERVER.json("-n", ns, "get", "checkpoint", "unreachable").get("status", {}).get("hooks"))[0]
        self.assertEqual((hook["hook"], hook["pod"], hook["container"]), ("h", "db", "db"))
        SERVER.kubectl("-n", ns, "delete", "pod", "db", "--grace-period=0", "--force")
        status, conditions = self.finish_checkpoint(ns, "unreachable")
        self.assertEqual(conditions["ApplicationConsistent"][0], "False", status)
        self.assertNotIn("time", status)


class Away(Webhook):
    def test_without_the_controller_only_recoveries_wait(self):
        ns = self.namespace("away")
        self.accepted(recovery("old", ns, dryRun=True))
        self.finish(ns, "old")
        CONTROLLER.kill()
        try:
            self.refused("failed calling webhook", recovery("r", ns))
            self.accepted(tidemark_object("ProtectionPolicy", "made-away"))
            self.accepted(tidemark_object("ProtectedApplication", "made-away", ns, policyRef={"name": "nosuch"}, selector={
                "matchLabels": {"tidemark.io/application": "x"}}))
            self.accepted(workload("Deployment", "d", ns, annotations={"tidemark.io/policy": "nosuch"}))
            self.accepted(claim("c", ns))
            SERVER.kubectl("delete", "protectionpolicy", "made-away")
            SERVER.kubectl("annotate", "namespace", ns, "tidemark.io/policy=nosuch", "--overwrite")
            SERVER.kubectl("-n", ns, "delete", "deployment", "d")
            SERVER.kubectl("-n", ns, "delete", "recovery", "old")
            SERVER.kubectl("delete", "namespace", ns, "--wait=false")
            # The claim's protection waits for no pod; Recoveries and applications go with their namespace.
            until("the namespace is gone", lambda: "NotFound" in SERVER.kubectl("get", "namespace", ns, check=False))
        finally:
            CONTROLLER.start()
        back = self.namespace("back")
        until("Recoveries are taken again", lambda: create(recovery("r", back, dryRun=True))[0] == 0)


def install():
    """The webhooks; until the API server asks them."""
    SERVER.apply(*webhooks(CONTROLLER.port))
    until("they know the CA", lambda: None not in bundles())
    # One that is older than the margin vouches; a probe that is refused by the webhook's own words says that it is asked.
    until("the API server asks", lambda: "kubectl -n default get papp" in create(recovery("probe", "default", application="nosuch"))[1])
    until("it is old enough", lambda: SERVER.kubectl("-n", "default", "create", "configmap", "clock", "--dry-run=server") and older_than(3))


def older_than(seconds):
    """Whether the API server's clock, which stamps both, says that the configuration is older."""
    stamp = lambda text: datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    now = json.loads(SERVER.kubectl("create", "configmap", "clock", "--dry-run=server", "-o", "json"))["metadata"]["creationTimestamp"]
    made = SERVER.json("get", "mutatingwebhookconfiguration", "tidemark")["metadata"]["creationTimestamp"]
    return (stamp(now) - stamp(made)).total_seconds() >= seconds


if __name__ == "__main__":
    SERVER = ApiServer()
    try:
        SERVER.kubectl("apply", "-f", f"{ROOT}/packaging/crds")
        SERVER.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=180s")
        SERVER.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
        SERVER.apply(*manifests("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"))
        policies = manifests("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
        if policies:  # not before 1.30
            SERVER.apply(*policies)
        until("the policy", lambda: create(tidemark_object("ProtectionPolicy", "gold"))[0] == 0)
        CONTROLLER = Controller()
        try:
            CONTROLLER.start()
            install()
            result = unittest.main(exit=False, verbosity=2).result
            if not result.wasSuccessful():
                with open(f"{CONTROLLER.state}/log", encoding="utf-8") as f:
                    print("".join(f.readlines()[-60:]), file=sys.stderr)
        finally:
            CONTROLLER.close()
    finally:
        SERVER.close()
    sys.exit(not result.wasSuccessful())
