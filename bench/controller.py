#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the controller with many objects, against a real API server without nodes (tests/cluster/cluster.sh api-up): memory, the time
from a change to its record, the requests of an idle cluster, and a restore. Writes bench/results-controller.json and
docs/benchmarks-controller.md. `bench/run.py --only cluster` runs it, too. Root, since the API server's data go where root's go."""
import argparse
import base64
import concurrent.futures
import datetime
import http.client
import json
import os
import platform
import random
import shutil
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(ROOT, "tests/integration/kube"))
from apiserver import ApiServer, until

GROUP = "/apis/tidemark.io/v1alpha1"
ADMIN = json.dumps({"username": "admin", "groups": ["system:masters", "system:authenticated"]})
# A namespace's objects, of a hundred: what a release of a web application consists of, in number.
MIX = [("ConfigMap", 60), ("Secret", 20), ("Service", 10), ("Deployment", 9)]
PATHS = {"ConfigMap": "/api/v1/namespaces/{}/configmaps", "Secret": "/api/v1/namespaces/{}/secrets", "Service": "/api/v1/namespaces/{}/services",
         "Deployment": "/apis/apps/v1/namespaces/{}/deployments"}
TARGETS = [("rss_mib", "controller VmRSS, {objects} objects in {namespaces} namespaces, MiB", 128), ("peak_mib", "controller VmHWM, the same, MiB", 128),
           ("change_p99_ms", "from the request that changes an object to its record, p99, ms", 1000),
           ("restore_s", "restore of {restored} objects of a deleted namespace, s", 60)]


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Api:
    """Requests as administrator, a connection a thread."""

    def __init__(self, server):
        pki = f"{server.directory}/pki"
        self.context = ssl.create_default_context(cafile=f"{pki}/ca.crt")
        self.context.load_cert_chain(f"{pki}/admin.crt", f"{pki}/admin.key")
        self.port = server.port
        self.local = threading.local()

    def call(self, method, path, body=None, kind="application/json", missing=False):
        for _ in range(60):
            # The server ends a connection that was idle for some minutes.
            if getattr(self.local, "until", 0) < time.monotonic():
                self.local.connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self.context, timeout=120)
            self.local.connection.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": kind})
            answer = self.local.connection.getresponse()
            text = answer.read()
            self.local.until = time.monotonic() + 30
            if answer.status != 429:  # too many at once, or a kind that is just being defined
                break
            time.sleep(int(answer.headers.get("Retry-After", 1)))
        if answer.status == 404 and missing:
            return None
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]}")
        return json.loads(text) if text[:1] == b"{" else text.decode()


def make(kind, name, number):
    """An object of about 1 KiB."""
    text = random.Random(number).randbytes(600).hex()[:900]
    meta = {"name": name, "labels": {"app": "bench"}}
    if kind == "ConfigMap":
        return {"apiVersion": "v1", "kind": kind, "metadata": meta, "data": {"value": text}}
    if kind == "Secret":
        return {"apiVersion": "v1", "kind": kind, "metadata": meta, "data": {"value": base64.b64encode(text.encode()).decode()}}
    if kind == "Service":
        return {"apiVersion": "v1", "kind": kind, "metadata": meta, "spec": {"selector": {"app": name}, "ports": [{"port": 80}]}}
    container = {"name": "c", "image": "registry.example.com/shop:1", "env": [{"name": f"V{i}", "value": text[i * 80:i * 80 + 60]} for i in range(8)]}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": meta, "spec": {"replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": {
        "metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}}}


def objects_of(namespace, count, workloads=None):
    """(path, object): in the proportions of MIX; with the two that Kubernetes makes itself, and the namespace, `count`. `workloads`: no more
    of them, and ConfigMaps instead."""
    result = []
    for i in range(count - 3):
        kind = next(k for k, upto in zip([k for k, _ in MIX], [60, 80, 90, 99]) if i * 99 // max(1, count - 3) < upto)
        if kind == "Deployment" and workloads is not None:
            workloads -= 1
            kind = kind if workloads >= 0 else "ConfigMap"
        result.append((PATHS[kind].format(namespace), make(kind, f"o{i}", i)))
    return result


def cpu_s(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Controller:
    def __init__(self, bench):
        self.bench = bench
        self.log = open(f"{bench.state}/log", "a", encoding="utf-8")
        self.child = subprocess.Popen([f"{bench.build}/src/cli/tidemark", "--state", bench.state, "controller", "--csi-socket", f"{bench.state}/csi.sock",
                                       "--kubeconfig", bench.server.kubeconfig, "--trust-requester"], stderr=self.log, stdout=self.log)

    def memory_mib(self, field):
        with open(f"/proc/{self.child.pid}/status", encoding="utf-8") as f:
            return next(int(line.split()[1]) for line in f if line.startswith(field)) / 1024

    def cpu_s(self):
        return cpu_s(self.child.pid)

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(timeout=120)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self.log.close()


class Bench:
    def __init__(self, options):
        self.o = options
        self.build = options.build
        self.controller = None

    def run(self):
        """The result; with --against that of the other build is in it, measured before and after on the same API server."""
        self.server = ApiServer()
        self.api = Api(self.server)
        try:
            self.prepare()
            if not self.o.against:
                return self.measure(self.o.build)
            others = [self.measure(self.o.against)]
            result = self.measure(self.o.build)
            others.append(self.measure(self.o.against))
            return {**result, "against": others}
        finally:
            self.server.close()

    def measure(self, build):
        say(f"the build {build}")
        self.build = build
        self.state = tempfile.mkdtemp(prefix="tidemark-bench-controller-")
        self.result = {"objects": self.o.namespaces * self.o.objects, "namespaces": self.o.namespaces, "restored": self.o.restore}
        try:
            self.capture()
            self.idle()
            self.changes()
            self.restore()
        except Exception:
            if os.path.exists(f"{self.state}/log"):
                with open(f"{self.state}/log", encoding="utf-8") as f:
                    print("".join(f.readlines()[-30:]), file=sys.stderr)
            raise
        finally:
            if self.controller:
                self.controller.stop()
                self.controller = None
            shutil.rmtree(self.state)
        self.forget()
        return self.result

    def forget(self):
        """No application is known any more, and nothing of the restore is there: the next build begins as this one did."""
        self.api.call("DELETE", "/api/v1/namespaces/big")
        self.api.call("DELETE", f"{GROUP}/namespaces/operators/recoveries")
        for papp in self.api.call("GET", f"{GROUP}/protectedapplications")["items"]:
            self.api.call("DELETE", f"{GROUP}/namespaces/{papp['metadata']['namespace']}/protectedapplications/{papp['metadata']['name']}", missing=True)
        until("the namespace is gone", lambda: time.sleep(0.5) or not self.api.call("GET", "/api/v1/namespaces/big", missing=True), 600)

    def many(self, work, items, threads=6):
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(work, *item) for item in items]:
                done.result()

    def namespace(self, name, count, workloads=None):
        """Once it has what Kubernetes puts into each."""
        self.api.call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": name, "annotations": {"tidemark.io/policy": "bench"}}})
        until(f"{name} is usable", lambda: self.api.call("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default", missing=True) and
              self.api.call("GET", f"/api/v1/namespaces/{name}/configmaps/kube-root-ca.crt", missing=True))
        for path, obj in objects_of(name, count, workloads):
            self.api.call("POST", path, obj)

    def prepare(self):
        say(f"{self.o.namespaces * self.o.objects} objects in {self.o.namespaces} namespaces are made")
        self.server.kubectl("apply", "--server-side", "-f", f"{ROOT}/packaging/crds")
        self.server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        self.api.call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tidemark-system"}})
        until("the kinds", lambda: self.api.call("GET", f"{GROUP}/protectionpolicies", missing=True))
        self.api.call("POST", f"{GROUP}/protectionpolicies", {"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectionPolicy",
                                                            "metadata": {"name": "bench"}, "spec": {}})
        begun = time.monotonic()
        self.many(self.namespace, [(f"bench{n}", self.o.objects) for n in range(self.o.namespaces)])
        for n in range(self.o.large):
            text = base64.b64encode(random.Random(n).randbytes(700 << 10)).decode()
            self.api.call("POST", PATHS["ConfigMap"].format(f"bench{n % self.o.namespaces}"), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"large{n}"}, "data": {"value": text}})
        say(f"made in {time.monotonic() - begun:.0f} s")

    def captured(self):
        papps = self.api.call("GET", f"{GROUP}/protectedapplications")["items"]
        return sum(any(c["type"] == "ObjectsCaptured" and c["status"] == "True" for c in p.get("status", {}).get("conditions", [])) for p in papps)

    def capture(self):
        say("the controller starts, and journals all of them")
        begun, server = time.monotonic(), self.server_cpu_s()
        self.controller = Controller(self)
        self.until_captured(self.o.namespaces)
        self.result |= {"first_capture_s": time.monotonic() - begun, "first_capture_cpu_s": self.controller.cpu_s(),
                        "first_capture_server_cpu_s": self.server_cpu_s() - server}

    def until_captured(self, count):
        until(f"{count} applications are captured", lambda: time.sleep(0.5) or self.captured() >= count, 900)

    def requests(self):
        """{(verb, resource): number} that the API server has answered; and the watches that are open."""
        counts, watches = {}, 0
        for line in self.api.call("GET", "/metrics").splitlines():
            if line.startswith("apiserver_request_total{"):
                labels = dict(part.split("=", 1) for part in line[line.index("{") + 1:line.rindex("}")].split(",") if "=" in part)
                key = (labels.get("verb", "").strip('"'), labels.get("resource", "").strip('"'))
                counts[key] = counts.get(key, 0) + int(float(line.rsplit(" ", 1)[1]))
            elif line.startswith("apiserver_longrunning_requests{") and 'verb="WATCH"' in line:
                watches += int(float(line.rsplit(" ", 1)[1]))
        return counts, watches

    def sample(self, seconds):
        before, _ = self.requests()
        cpu = self.controller.cpu_s() if self.controller else 0
        time.sleep(seconds)
        after, watches = self.requests()
        cpu = (self.controller.cpu_s() if self.controller else 0) - cpu
        return {k: (n - before.get(k, 0)) * 60 / seconds for k, n in after.items() if n != before.get(k, 0)}, watches, cpu * 60 / seconds

    def idle(self):
        say(f"nothing happens for {2 * self.o.idle} s, with the controller and without")
        time.sleep(self.o.settle)  # the status of an application follows its objects by half a minute
        self.result["rss_mib"] = self.controller.memory_mib("VmRSS")
        self.result["peak_mib"] = self.controller.memory_mib("VmHWM")
        calls, watches, cpu = self.sample(self.o.idle)
        self.controller.stop()
        self.controller = None
        others, without, _ = self.sample(self.o.idle)
        ours = {f"{verb} {resource}": round(n - others.get((verb, resource), 0), 1) for (verb, resource), n in calls.items()
                if n - others.get((verb, resource), 0) > 0.5}
        self.result |= {"idle_requests_per_minute": round(sum(ours.values()), 1), "idle_requests": ours, "watches": watches - without,
                        "idle_cpu_s_per_minute": round(cpu, 2)}
        begun = time.monotonic()
        self.controller = Controller(self)
        # Both logs are of one file: what the first wrote is there already.
        until("it goes on", lambda: self.log_count("journaled again") >= self.o.namespaces, 900)
        self.result |= {"restart_s": time.monotonic() - begun, "restart_cpu_s": self.controller.cpu_s()}

    def log_count(self, text):
        with open(f"{self.state}/log", encoding="utf-8") as f:
            return f.read().count(text)

    def change(self, namespace, name, sent):
        sent[namespace, name] = time.time_ns()
        self.api.call("PATCH", f"/api/v1/namespaces/{namespace}/configmaps/{name}", {"data": {"value": str(sent[namespace, name])}},
                      "application/merge-patch+json")

    def changes(self):
        """Each of another object, so that the record of a name tells which one it was."""
        rng = random.Random(self.o.seed)
        maps = max(1, (self.o.objects - 3) * 60 // 99)
        names = [(f"bench{n}", f"o{i}") for n in range(self.o.namespaces) for i in range(maps)]
        rng.shuffle(names)
        single, burst = {}, {}
        time.sleep(self.o.settle)  # until all is listed after the restart: what changes before is found by the list
        say(f"{self.o.changes} changes, one every {self.o.every} s")
        for namespace, name in names[:self.o.changes]:
            self.change(namespace, name, single)
            time.sleep(self.o.every)
        time.sleep(self.o.settle)
        rest = {namespace: name for namespace, name in names[self.o.changes:]}
        say(f"{len(rest)} changes at once, one a namespace")
        self.many(self.change, [(namespace, name, burst) for namespace, name in rest.items()])
        time.sleep(self.o.settle)
        self.result |= {"relist_rss_mib": self.controller.memory_mib("VmRSS"), "relist_peak_mib": self.controller.memory_mib("VmHWM")}
        begun = time.monotonic()
        self.controller.stop()
        self.result["stop_s"] = time.monotonic() - begun
        for what, sent in (("change", single), ("burst", burst)):
            took = sorted(self.latencies(sent))
            self.result |= {f"{what}s": len(took), f"{what}_p50_ms": statistics.median(took), f"{what}_p99_ms": took[min(len(took) - 1, len(took) * 99 // 100)],
                            f"{what}_max_ms": took[-1]}
        self.controller = Controller(self)

    def latencies(self, sent):
        probe = f"{self.build}/tests/integration/controller/controller_probe"
        for namespace in sorted({namespace for namespace, _ in sent}):
            text = subprocess.run([probe, "times", self.state, namespace, namespace], check=True, stdout=subprocess.PIPE, text=True,
                                  env={**os.environ, "KUBECONFIG": self.server.kubeconfig}).stdout
            last = {}
            for line in text.splitlines():  # newest first
                name, ns = line.rsplit(" ", 1)
                last.setdefault(name, int(ns))
            for (other, name), at in sent.items():
                if other == namespace:
                    yield (last[f"core/v1/ConfigMap/{namespace}/{name}"] - at) / 1e6

    def recovery(self, name, **spec):
        self.api.call("POST", f"{GROUP}/namespaces/operators/recoveries", {
            "apiVersion": "tidemark.io/v1alpha1", "kind": "Recovery", "metadata": {
                "name": name, "namespace": "operators", "annotations": {"tidemark.io/requested-by": ADMIN}},
            "spec": {"application": "big", "sourceNamespace": "big", **spec}})
        begun = time.monotonic()

        def ended():
            time.sleep(0.1)
            status = self.api.call("GET", f"{GROUP}/namespaces/operators/recoveries/{name}").get("status", {})
            return status if status.get("phase") in ("Planned", "Completed", "Failed", "Cancelled") else None
        return until(f"the end of {name}", ended, 900), time.monotonic() - begun

    def journaled(self):
        """A dry run to the present that finds nothing to do: the point. The plan reads what waits to be written, too."""
        for number in range(200):
            status, _ = self.recovery(f"settled-{number}", mode="rewind", point="latest", dryRun=True)
            plan = status.get("plan", {})
            if status["phase"] == "Planned" and not any(plan.get(k) for k in ("create", "change", "recreate", "delete")):
                return f"lsn:{status['point']['objectsLsn']}"
        raise AssertionError(f"not journaled: {status}")

    def server_cpu_s(self):
        """Of API server, etcd, and the cluster's controllers."""
        total = 0
        for name in ("etcd", "kube-apiserver", "kube-controller-manager"):
            with open(f"{self.server.directory}/run/{name}.pid", encoding="utf-8") as f:
                total += cpu_s(int(f.read().split()[0]))
        return total

    def restore(self):
        say(f"{self.o.restore} objects in one namespace, which is deleted and restored")
        if not self.api.call("GET", "/api/v1/namespaces/operators", missing=True):
            self.api.call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "operators"}})
        # A restore waits for its workloads: of hundreds in one namespace that would be the time that the cluster's controllers take.
        self.namespace("big", self.o.restore, 20)
        self.until_captured(self.o.namespaces + 1)
        point = self.journaled()
        self.api.call("DELETE", "/api/v1/namespaces/big")
        until("the namespace is gone", lambda: time.sleep(0.5) or not self.api.call("GET", "/api/v1/namespaces/big", missing=True), 600)
        before, server, (requests, _) = self.controller.cpu_s(), self.server_cpu_s(), self.requests()
        status, seconds = self.recovery("restored", mode="restore", point=point, targetNamespace="big")
        after, _ = self.requests()
        made = sum(after.values()) - sum(requests.values())
        self.result |= {"restore_requests": made, "restore_requests_per_s": round(made / seconds, 1), "restore_cpu_s": self.controller.cpu_s() - before, "restore_server_cpu_s": self.server_cpu_s() - server}
        if status["phase"] != "Completed":
            raise AssertionError(f"the restore: {json.dumps(status)[:2000]}")
        self.result |= {"restore_s": seconds, "restore_objects_s": status.get("timings", {}).get("objectsMs", 0) / 1e3, "verdicts": status.get("verdicts"),
                        "restore_peak_mib": self.controller.memory_mib("VmHWM")}


def targets(result):
    rows = []
    for key, what, most in TARGETS:
        value = result.get(key)
        rows.append({"what": what.format(**result), "target": f"<= {most}", "value": round(value, 1) if value is not None else None, "spread": None,
                     "result": "FAILED to run" if value is None else "PASS" if value <= most else f"short of {most}"})
    return rows


def document(o, result):
    r = result
    out = ["# Benchmarks of the controller", "", "Generated by `bench/controller.py` (`make bench` runs it, too); do not edit.", "",
           f"{r['date']}; {os.cpu_count()} CPUs, kernel {platform.release()}; API server, etcd (without fsync), controller and load on one machine.", ""]
    if o.quick:
        out += ["**A quick run, good for finding mistakes, not for judging.**", ""]
    out += ["| what | target | measured | result |", "|---|---|---|---|"]
    out += [f"| {t['what']} | {t['target']} | {t['value']} | **{t['result']}** |" for t in targets(r)]
    rows = [(f"first capture of all, from the start of the process", f"{r['first_capture_s']:.0f} s"),
            ("start with all of them journaled", f"{r['restart_s']:.0f} s"),
            (f"change to record: {r['changes']} changes, one every {o.every} s, in random namespaces; p50 / p99 / max",
             f"{r['change_p50_ms']:.0f} / {r['change_p99_ms']:.0f} / {r['change_max_ms']:.0f} ms"),
            (f"change to record: {r['bursts']} changes at once, each in another namespace; p50 / p99 / max",
             f"{r['burst_p50_ms']:.0f} / {r['burst_p99_ms']:.0f} / {r['burst_max_ms']:.0f} ms"),
            ("requests of the controller a minute, idle", f"{r['idle_requests_per_minute']:g} ({', '.join(f'{k} {v:g}' for k, v in r['idle_requests'].items())})"),
            ("watches that it has open", r["watches"]), ("CPU seconds a minute, idle", f"{r['idle_cpu_s_per_minute']:g}"),
            (f"restore: putting the objects back, without plan and waiting", f"{r['restore_objects_s']:.1f} s"),
            ("restore: CPU of the controller / of API server, etcd and the cluster's controllers",
             f"{r['restore_cpu_s']:.1f} / {r['restore_server_cpu_s']:.1f} s"),
            (f"VmHWM after the restore", f"{r['restore_peak_mib']:.0f} MiB")]
    out += ["", "| more | measured |", "|---|---|"] + [f"| {a} | {b} |" for a, b in rows]
    out += ["", "- An object has about 1 KiB: " + ", ".join(f"{n} {k}s" for k, n in MIX) + " of a hundred; the rest is what Kubernetes makes in a namespace.",
            "- The time of a record is that of the journal, from which on a kill of the controller does not lose it; counted from before the request is sent.",
            "- Requests: the difference of the API server's own count with the controller and without, over "
            f"{o.idle} s each. The Lease is renewed every 2 s (a read and a write).",
            "- A restore is from making the Recovery to its phase `Completed`; workloads (20 of its objects) have no replicas, there are no nodes.", ""]
    return "\n".join(out)


def parse(arguments=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=os.environ.get("BUILD", "build"), help="build directory")
    p.add_argument("--quick", action="store_true", help="few objects: does everything run?")
    for name, text in (("namespaces", "100"), ("objects", "a namespace, 100"), ("restore", "objects to restore, 5000"), ("changes", "100")):
        p.add_argument(f"--{name}", type=int, help=text)
    p.add_argument("--large", type=int, default=20, help="and so many config maps of 1 MB, 20")
    p.add_argument("--against", help="another build directory (its tidemark and controller_probe): measured before and after, on the same API server")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--results", help="default: bench/results-controller.json, for --quick in the build directory")
    p.add_argument("--document", help="default: docs/benchmarks-controller.md, for --quick in the build directory")
    o = p.parse_args(arguments)
    o.build = os.path.join(ROOT, o.build)
    o.against = o.against and os.path.abspath(o.against)
    o.idle, o.settle, o.every = (10, 5, 0.1) if o.quick else (60, 40, 0.5)
    for name, value, quick in (("namespaces", 100, 4), ("objects", 100, 30), ("restore", 5000, 200), ("changes", 100, 10),
                               ("results", os.path.join(ROOT, "bench/results-controller.json"), f"{o.build}/bench-controller-quick.json"),
                               ("document", os.path.join(ROOT, "docs/benchmarks-controller.md"), f"{o.build}/bench-controller-quick.md")):
        if getattr(o, name) is None:
            setattr(o, name, quick if o.quick else value)
    return o


def measure(o):
    """The result, also written to its files."""
    if not os.path.exists(f"{o.build}/build.ninja"):
        sys.exit(f"bench: {o.build} is not built: run make first, or give --build")
    subprocess.run(["ninja", "-C", o.build, "src/cli/tidemark", "tests/integration/controller/controller_probe"], check=True, stdout=subprocess.DEVNULL)
    result = Bench(o).run()
    result["date"] = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    with open(o.results, "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    with open(o.document, "w", encoding="utf-8") as f:
        f.write(document(o, result))
    return result


def main():
    o = parse()
    rows = targets(measure(o))
    for r in rows:
        print(f"{r['what']:84} {r['target']:>8} {'-' if r['value'] is None else r['value']:>8}  {r['result']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
