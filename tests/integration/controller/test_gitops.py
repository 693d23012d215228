#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rewinds of what Argo CD, Flux and KEDA rule, and quotas in the way, against a real API server. The kinds are made here, in the shape
that those projects document; what their controllers would do, the test does."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import test_controller as base
from test_controller import ControllerTest, config_map, make_namespace
from apiserver import CACHE, until

TIDEMARK = os.path.abspath(os.environ.get("TIDEMARK", "build/src/cli/tidemark"))
KINDS = [("kustomize.toolkit.fluxcd.io", "v1", "Kustomization"), ("source.toolkit.fluxcd.io", "v1", "GitRepository"),
         ("helm.toolkit.fluxcd.io", "v2", "HelmRelease"), ("argoproj.io", "v1alpha1", "Application"), ("keda.sh", "v1alpha1", "ScaledObject")]
ADMIN = {"username": "admin", "groups": ["system:masters", "system:authenticated"]}
FLUX = {"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}


def plural(kind):
    return "gitrepositories" if kind == "GitRepository" else kind.lower() + "s"


def make_kinds():
    base.SERVER.apply(*[{
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": f"{plural(kind)}.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": {"kind": kind, "plural": plural(kind), "singular": kind.lower(), "listKind": kind + "List"},
                 "versions": [{"name": version, "served": True, "storage": True, "subresources": {"status": {}} if kind != "Application" else {},
                               "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}]}}
        for group, version, kind in KINDS])
    base.SERVER.kubectl("wait", "--for=condition=Established", "crd", *[f"{plural(k)}.{g}" for g, _, k in KINDS])


def thing(group, version, kind, namespace, name, spec, **metadata):
    return {"apiVersion": f"{group}/{version}", "kind": kind, "metadata": {"name": name, "namespace": namespace, **metadata}, "spec": spec}


def get(*arguments):
    return base.SERVER.json(*arguments)


def status_of(resource, namespace, name, status):
    base.SERVER.kubectl("-n", namespace, "patch", resource, name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))


class GitOpsTest(ControllerTest):
    recoveries = 0

    @classmethod
    def setUpClass(cls):
        if getattr(base, "kinds_made", False):
            return
        base.kinds_made = True
        make_kinds()
        for name in ("flux-system", "argocd"):
            base.SERVER.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def application(self, name, *objects, manager="kubectl-patch"):
        """Protected, with the objects as of the Checkpoint `good`, and the ConfigMap c changed since."""
        ns = make_namespace(name, **{"tidemark.io/policy": "gold"})
        if objects:
            base.SERVER.apply(*objects)
        if not any(c.child.poll() is None for c in self.controllers):
            self.start()
        self.captured(ns)  # all that is there now is in the journal
        base.SERVER.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "tidemark.io/v1alpha1", "kind": "Checkpoint",
                                                                  "metadata": {"name": "good", "namespace": ns}, "spec": {"application": ns}}))
        base.SERVER.kubectl("-n", ns, "wait", "--for=condition=Ready", "checkpoint/good", "--timeout=60s")
        base.SERVER.kubectl("-n", ns, "patch", "configmap", "c", "--type=merge", "-p", '{"data": {"value": "bad"}}', f"--field-manager={manager}")
        return ns

    def recover(self, ns, user=ADMIN, mode="rewind", target=None, **spec):
        GitOpsTest.recoveries += 1
        name = f"r{GitOpsTest.recoveries}"
        base.SERVER.kubectl("create", "-f", "-", stdin=json.dumps({
            "apiVersion": "tidemark.io/v1alpha1", "kind": "Recovery",
            "metadata": {"name": name, "namespace": ns, "annotations": {"tidemark.io/requested-by": json.dumps(user)}},
            "spec": {"application": ns, "mode": mode, "point": "tag:good", **({"targetNamespace": target} if target else {}), **spec}}))
        until("its end", lambda: self.status(ns, name).get("phase") in ("Planned", "Completed", "Failed"))
        return name, self.status(ns, name)

    def status(self, ns, name):
        return get("-n", ns, "get", "recovery", name).get("status", {})

    def value(self, ns):
        return get("-n", ns, "get", "configmap", "c")["data"]["value"]

    def condition(self, status, kind):
        return next(((c["status"], c["reason"], c["message"]) for c in status["conditions"] if c["type"] == kind), None)

    def plugin(self, *arguments):
        with tempfile.TemporaryDirectory() as directory:
            os.symlink(TIDEMARK, f"{directory}/kubectl-tidemark")
            done = subprocess.run([f"{directory}/kubectl-tidemark", *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  env=dict(os.environ, KUBECONFIG=base.SERVER.kubeconfig, TERM="dumb"), timeout=180)
        return done.returncode, done.stdout, done.stderr


class Flux(GitOpsTest):
    def make(self, revision):
        base.SERVER.apply(thing("source.toolkit.fluxcd.io", "v1", "GitRepository", "flux-system", "repo", {"url": "https://git.example.com/apps"}),
                          thing("kustomize.toolkit.fluxcd.io", "v1", "Kustomization", "flux-system", "apps",
                                {"path": "./apps", "prune": True, "sourceRef": {"kind": "GitRepository", "name": "repo"}}))
        status_of("gitrepositories.source.toolkit.fluxcd.io", "flux-system", "repo", {"artifact": {"revision": revision}})
        status_of("kustomizations.kustomize.toolkit.fluxcd.io", "flux-system", "apps", {"lastAppliedRevision": revision})

    def kustomization(self):
        return get("-n", "flux-system", "get", "kustomizations.kustomize.toolkit.fluxcd.io", "apps")

    def test_it_is_suspended_stays_so_and_goes_on_once_git_has_changed(self):
        self.make("main@sha1:bad")
        ns = self.application("flux", config_map("c", "flux", "good", labels=FLUX))
        self.until_journaled(ns)  # what is undone below
        name, plan = self.recover(ns, dryRun=True)
        self.assertEqual([(r["reconciler"], r["state"]) for r in plan["reconcilers"]], [("Flux Kustomization", "ToSuspend")])
        self.assertNotIn("suspend", self.kustomization()["spec"], "a dry run changes nothing")
        lines = get("-n", ns, "get", "configmap", plan["plan"]["configMap"])["data"]["objects"].splitlines()
        self.assertEqual([json.loads(l).get("by") for l in lines if "/ConfigMap/flux/c" in l], ["Flux Kustomization flux-system/apps"])
        name, status = self.recover(ns)
        self.assertEqual(status["phase"], "Completed", status)
        self.assertEqual(self.value(ns), "good")
        self.assertTrue(self.kustomization()["spec"]["suspend"])
        diverged = self.condition(status, "GitDiverged")
        self.assertEqual(diverged[:2], ("True", "Suspended"))
        for part in ("flux-system/apps", "main@sha1:bad", "core/v1/ConfigMap/flux/c", "kubectl tidemark resume flux/flux"):
            self.assertIn(part, diverged[2])
        self.assertIn("main@sha1:bad", self.plugin("status", "-n", ns)[1])
        # A second rewind while it is suspended: it is known, and stays so.
        _, again = self.recover(ns, point="before:" + name)
        self.assertEqual(again["phase"], "Completed", again)
        self.assertEqual(self.value(ns), "bad")
        self.assertTrue(self.kustomization()["spec"]["suspend"])
        code, _, err = self.plugin("resume", f"{ns}/{ns}")
        self.assertEqual(code, 4, err)
        self.assertIn("main@sha1:bad", err)
        self.assertTrue(self.kustomization()["spec"]["suspend"])
        status_of("gitrepositories.source.toolkit.fluxcd.io", "flux-system", "repo", {"artifact": {"revision": "main@sha1:reverted"}})
        code, out, err = self.plugin("resume", f"{ns}/{ns}")
        self.assertEqual(code, 0, err)
        self.assertIn("Flux Kustomization flux-system/apps goes on", out)
        after = self.kustomization()
        self.assertNotIn("suspend", after["spec"])
        self.assertNotIn("tidemark.io/suspended", after["metadata"].get("annotations", {}))
        until("the condition's end", lambda: self.condition(self.status(ns, name), "GitDiverged")[:2] == ("False", "Resumed"))
        self.assertEqual(self.plugin("resume", f"{ns}/{ns}")[0], 0, "twice is once")

    def test_who_may_not_suspend_it_is_refused_and_nothing_is_changed(self):
        self.make("main@sha1:1")
        ns = make_namespace("tenant")
        rbac = "rbac.authorization.k8s.io"
        self.application(ns, config_map("c", ns, "good", labels=FLUX),
                         {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "all", "namespace": ns},
                          "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]},
                         {"apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": {"name": "ann", "namespace": ns},
                          "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "all"}, "subjects": [{"apiGroup": rbac, "kind": "User", "name": "ann"}]})
        ann = {"username": "ann", "groups": ["system:authenticated"]}
        _, status = self.recover(ns, user=ann)
        self.assertEqual((status["phase"], self.condition(status, "Ready")[1]), ("Failed", "ReconcilerWouldRevert"), status)
        self.assertIn("forbidden", status["message"])
        self.assertEqual(self.value(ns), "bad")
        self.assertNotIn("suspend", self.kustomization()["spec"])
        _, status = self.recover(ns, user=ann, force=True)
        self.assertEqual(status["phase"], "Completed", status)
        self.assertEqual(self.value(ns), "good")
        self.assertIsNone(self.condition(status, "GitDiverged"))

    def test_one_that_left_no_name_is_known_by_its_fields_and_refused(self):
        ns = make_namespace("unnamed")
        base.SERVER.kubectl("apply", "--server-side", "--field-manager=kustomize-controller", "-f", "-", stdin=json.dumps(config_map("c", ns, "good")))
        self.application("unnamed", manager="kustomize-controller")
        _, status = self.recover(ns)
        self.assertEqual((status["phase"], self.condition(status, "Ready")[1]), ("Failed", "ReconcilerWouldRevert"), status)
        self.assertIn("Flux Kustomization", status["message"])
        self.assertEqual(self.value(ns), "bad")

    def test_one_that_is_part_of_the_application_is_put_back_suspended(self):
        labels = {"kustomize.toolkit.fluxcd.io/name": "own", "kustomize.toolkit.fluxcd.io/namespace": "inside"}
        own = thing("kustomize.toolkit.fluxcd.io", "v1", "Kustomization", "inside", "own", {"path": "./a"})
        ns = make_namespace("inside")
        self.application("inside", config_map("c", ns, "good", labels=labels), own)
        base.SERVER.kubectl("-n", ns, "patch", "kustomizations.kustomize.toolkit.fluxcd.io", "own", "--type=merge", "-p", '{"spec": {"path": "./b"}}')
        _, status = self.recover(ns)
        self.assertEqual(status["phase"], "Completed", status)
        after = get("-n", ns, "get", "kustomizations.kustomize.toolkit.fluxcd.io", "own")
        self.assertEqual(after["spec"], {"path": "./a", "suspend": True})
        self.assertEqual(self.plugin("resume", f"{ns}/{ns}", "--force")[0], 0)
        self.assertEqual(get("-n", ns, "get", "kustomizations.kustomize.toolkit.fluxcd.io", "own")["spec"], {"path": "./a"})


class Others(GitOpsTest):
    def test_argo_gets_back_exactly_what_was_taken(self):
        automated = {"prune": True, "selfHeal": True}
        base.SERVER.apply({**thing("argoproj.io", "v1alpha1", "Application", "argocd", "shop", {"syncPolicy": {"automated": automated, "retry": {"limit": 3}}}),
                           "status": {"sync": {"status": "Synced", "revision": "abc123"}}})
        ns = self.application("argo", config_map("c", "argo", "good", annotations={"argocd.argoproj.io/tracking-id": "shop:/ConfigMap:argo/c"}))
        _, status = self.recover(ns)
        self.assertEqual(status["phase"], "Completed", status)
        application = lambda: get("-n", "argocd", "get", "applications.argoproj.io", "shop")
        self.assertEqual(application()["spec"]["syncPolicy"], {"retry": {"limit": 3}})
        self.assertIn("abc123", self.condition(status, "GitDiverged")[2])
        patch = lambda sync, more={}: base.SERVER.kubectl("-n", "argocd", "patch", "applications.argoproj.io", "shop", "--type=merge", "-p", json.dumps(
            {"status": {"sync": {"status": sync, "revision": "abc123"}, **more}}))
        patch("OutOfSync", {"resources": [{"kind": "ConfigMap", "name": "c", "status": "OutOfSync"}]})
        code, _, err = self.plugin("resume", f"{ns}/{ns}")
        self.assertEqual(code, 4, err)
        self.assertIn("ConfigMap c", err)
        patch("Synced")
        self.assertEqual(self.plugin("resume", f"{ns}/{ns}")[0], 0)
        self.assertEqual(application()["spec"]["syncPolicy"]["automated"], automated)
        # Without automated sync it puts nothing back.
        base.SERVER.kubectl("-n", "argocd", "patch", "applications.argoproj.io", "shop", "--type=json", "-p", '[{"op": "remove", "path": "/spec/syncPolicy/automated"}]')
        base.SERVER.kubectl("-n", ns, "patch", "configmap", "c", "--type=merge", "-p", '{"data": {"value": "worse"}}')
        _, status = self.recover(ns)
        self.assertEqual((status["phase"], status["reconcilers"][0]["state"]), ("Completed", "Stopped"), status)

    def test_keda_pauses_meanwhile_and_goes_on(self):
        ns = make_namespace("keda")
        scaled = thing("keda.sh", "v1alpha1", "ScaledObject", ns, "web", {"scaleTargetRef": {"name": "web"}, "maxReplicaCount": 5})
        self.application("keda", config_map("c", ns, "good"), scaled)
        base.SERVER.kubectl("-n", ns, "patch", "scaledobjects.keda.sh", "web", "--type=merge", "-p", '{"spec": {"maxReplicaCount": 50}}')
        _, status = self.recover(ns)
        self.assertEqual(status["phase"], "Completed", status)
        self.assertEqual([(r["reconciler"], r["state"]) for r in status["reconcilers"]], [("KEDA", "Resumed")])
        after = get("-n", ns, "get", "scaledobjects.keda.sh", "web")
        self.assertEqual(after["spec"]["maxReplicaCount"], 5)
        self.assertNotIn("autoscaling.keda.sh/paused", after["metadata"].get("annotations", {}))
        self.assertIsNone(self.condition(status, "GitDiverged"))


class Quota(GitOpsTest):
    def quota(self, ns, name, hard):
        base.SERVER.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name, "namespace": ns}, "spec": {"hard": hard}})
        until("the quota's count", lambda: get("-n", ns, "get", "resourcequota", name).get("status", {}).get("used"))

    def test_a_clone_that_does_not_fit_is_refused_with_what_lacks(self):
        pod = {"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [{"name": "w", "image": "w", "resources": {
            "requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}}]}}
        ns = make_namespace("fits")
        self.application("fits", config_map("c", ns, "good"), config_map("d", ns, "1"),
                         {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "w", "namespace": ns},
                          "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "w"}}, "template": pod}})
        target = make_namespace("fits-clone")
        there = lambda: {o["metadata"]["name"] for o in get("-n", target, "get", "configmaps")["items"]}
        before = there()
        for hard, parts in (({"requests.memory": "2Gi"}, ("3Gi more of requests.memory", "2Gi of 2Gi are left")), ({"requests.cpu": "500m"}, ("0.75 more of requests.cpu",)),
                            ({"pods": "2"}, ("3 more of pods",)), ({"count/deployments.apps": "0"}, ("1 more of count/deployments.apps",))):
            self.quota(target, "small", hard)
            _, status = self.recover(ns, mode="clone", target=target)
            self.assertEqual((status["phase"], self.condition(status, "Ready")[1]), ("Failed", "QuotaExceeded"), status)
            for part in parts + ("ResourceQuota small", f"kubectl -n {target} edit resourcequota small"):
                self.assertIn(part, status["message"])
            self.assertEqual(there(), before, "nothing was made")
            base.SERVER.kubectl("-n", target, "delete", "resourcequota", "small")
        base.SERVER.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits", "namespace": target},
                           "spec": {"limits": [{"type": "Container", "max": {"memory": "512Mi"}}]}})
        _, status = self.recover(ns, mode="clone", target=target)
        self.assertEqual((status["phase"], self.condition(status, "Ready")[1]), ("Failed", "QuotaExceeded"), status)
        for part in ("LimitRange limits", "1Gi of memory, and at most 512Mi is allowed", f"apps/v1/Deployment/{target}/w"):
            self.assertIn(part, status["message"])
        base.SERVER.kubectl("-n", target, "delete", "limitrange", "limits")
        self.quota(target, "enough", {"requests.memory": "3Gi", "requests.cpu": "750m", "pods": "3", "count/deployments.apps": "1"})
        _, status = self.recover(ns, mode="clone", target=target, dryRun=True)
        self.assertEqual(status["phase"], "Planned", status)

    def secret_quota(self, ns, hard):
        return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight", "namespace": ns}, "spec": {"hard": {"secrets": hard}}}

    def until_counted(self, ns, hard, used):
        status = lambda: get("-n", ns, "get", "resourcequota", "tight").get("status", {})
        until("the count", lambda: [status().get(field, {}).get("secrets") for field in ("hard", "used")] == [hard, used])

    def test_what_a_rewind_takes_away_counts(self):
        secret = lambda name: {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "exchange"}}
        ns = make_namespace("exchange")
        self.application("exchange", config_map("c", ns, "good"), secret("old"), self.secret_quota(ns, "1"))
        base.SERVER.kubectl("-n", ns, "delete", "secret", "old")
        self.until_counted(ns, "1", "0")
        base.SERVER.apply(secret("new"))
        self.until_counted(ns, "1", "1")
        _, status = self.recover(ns, dryRun=True)
        self.assertEqual(status["phase"], "Planned", status)
        # nor does what the quota has become meanwhile: it is put back first, by whoever may
        base.SERVER.kubectl("-n", ns, "delete", "secret", "new")
        base.SERVER.apply(self.secret_quota(ns, "0"))
        self.until_counted(ns, "0", "0")
        base.SERVER.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "bob", "namespace": ns},
                           "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
                           "subjects": [{"kind": "User", "name": "bob", "apiGroup": "rbac.authorization.k8s.io"}]})
        _, status = self.recover(ns, user={"username": "bob", "groups": ["system:authenticated"]})
        self.assertEqual((status["phase"], self.condition(status, "Ready")[1]), ("Failed", "QuotaExceeded"), status)
        _, status = self.recover(ns)
        self.assertEqual(status["phase"], "Completed", status)

    def test_a_rewind_that_a_quota_of_then_has_no_room_for_is_refused(self):
        ns = make_namespace("full")
        self.application("full", config_map("c", ns, "good"), {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "older", "namespace": ns}}, self.secret_quota(ns, "0"))
        base.SERVER.kubectl("-n", ns, "delete", "secret", "older")
        self.until_counted(ns, "0", "0")
        _, status = self.recover(ns)
        self.assertEqual((status["phase"], self.condition(status, "Ready")[1]), ("Failed", "QuotaExceeded"), status)
        self.assertEqual(self.value(ns), "bad", "nothing was changed")


if __name__ == "__main__":
    base.main("__main__")
