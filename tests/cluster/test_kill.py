#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Processes are killed under an application that writes, with two replicas of the controller: the leader in the middle of a rewind,
which another one finishes; the node agent in the middle of a rewind, which it carries on once it is back; the engine under load, which
is a pause. What was written down before the point is there, and nothing after.

A pod that does not end until the test says so keeps the rewind in its middle. TIDEMARK_IMAGE: the image's archive. Two replicas need a
class whose volumes two pods of a node can have: TIDEMARK_CONTROLLER_CLASS (shared)."""
import json
import os
import subprocess
import sys
import uuid

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
import test_rewind as base
from test_rewind import NAMESPACE, OTHER, POLICY, SYSTEM, Failed, condition, expect, get, kubectl, within

CLASS = os.environ.get("TIDEMARK_CONTROLLER_CLASS", "shared")
# Each number is on the disk before the next is begun. What the pod found when it started is kept; while "pause" is there it stands still, and
# says so in "paused" in its words; "hold" keeps the pod from ending.
WRITE = """trap 'exit 0' TERM
touch /data/log; cp /data/log /tmp/found; i=$(wc -l </data/log)
while :; do
  if [ -e /tmp/pause ]; then cp /tmp/pause /tmp/paused; sleep 0.05; continue; fi
  i=$((i + 1))
  { echo $i >>/data/log && sync -d /data/log; } || { echo $i >>/tmp/errors; sleep 0.1; continue; }
  echo $i >/tmp/acked.new && mv /tmp/acked.new /tmp/acked
done
"""
APPLICATION = [
    {"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectionPolicy", "metadata": {"name": POLICY}, "spec": {}},
    {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "writer", "namespace": NAMESPACE}, "spec": {
        "serviceName": "writer", "selector": {"matchLabels": {"app": "writer"}}, "template": {"metadata": {"labels": {"app": "writer"}}, "spec": {
            "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 180, "containers": [
                {"name": "writer", "image": "localhost/toolbox:1", "command": ["bash", "-c", WRITE],
                 "lifecycle": {"preStop": {"exec": {"command": ["bash", "-c", "while [ -e /tmp/hold ]; do sleep 0.1; done"]}}},
                 "readinessProbe": {"exec": {"command": ["test", "-s", "/tmp/acked"]}, "periodSeconds": 1},
                 "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
            "storageClassName": "tidemark", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "128Mi"}}}}]}}]


def in_pod(*command, **options):
    return kubectl("-n", NAMESPACE, "exec", "writer-0", "-c", "writer", "--", *command, **options).strip()


def acked():
    """0 while nothing is."""
    return int(in_pod("cat", "/tmp/acked", check=False) or 0)


def make_snipers():
    """A privileged pod on each node, in its process namespace: what kills there, and looks."""
    nodes = [n["metadata"]["name"] for n in json.loads(kubectl("get", "nodes", "-o", "json"))["items"]]
    for node in nodes:
        kubectl("create", "-f", "-", text=json.dumps({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"sniper-{node}", "namespace": OTHER}, "spec": {
                "nodeName": node, "hostPID": True, "terminationGracePeriodSeconds": 0, "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "main", "image": "localhost/toolbox:1", "command": ["sleep", "infinity"],
                                "securityContext": {"privileged": True}}]}}))
    kubectl("-n", OTHER, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=180s")


def on_node(node, script, *arguments, **options):
    return kubectl("-n", OTHER, "exec", f"sniper-{node}", "--", "bash", "-c", script, "sniper", *arguments, **options).strip()


def pid_of(node, pattern, pod=None):
    """The process whose command line has the pattern; of that pod."""
    found = on_node(node, """for p in $(pgrep -f -- "$1"); do
        [ $p != $$ ] && [ "$(cat /proc/$p/comm)" != bash ] && { [ -z "$2" ] || [ "$(cat /proc/$p/root/etc/hostname)" = "$2" ]; } && echo $p
        done; true""", pattern, pod or "").split()
    if len(found) != 1:
        raise Failed(f"{node} has {len(found)} processes {pattern} {pod or ''}")
    return found[0]


def send(node, signal, pid):
    on_node(node, 'kill -"$1" "$2"', signal, pid)


def node():
    return get("pod", "writer-0")["spec"]["nodeName"]


def pod_of(component, on):
    for pod in json.loads(kubectl("-n", SYSTEM, "get", "pods", "-l", f"app.kubernetes.io/component={component}", "-o", "json"))["items"]:
        if pod["spec"].get("nodeName") == on and "deletionTimestamp" not in pod["metadata"]:
            return pod
    return None


def restarts(pod, container):
    states = [s for s in pod["status"]["containerStatuses"] if s["name"] == container]
    return states[0]["restartCount"] if states and states[0]["ready"] else -1


def lease():
    return get("lease", "tidemark-controller", SYSTEM)["spec"].get("holderIdentity", "")


def stream():
    """It is named after its first volume, and has but one."""
    claim = get("pvc", "data-writer-0")
    return get("pv", claim["spec"]["volumeName"])["spec"]["csi"]["volumeHandle"]


def gate(on):
    """What the node agent has written down of the rewind."""
    text = on_node(on, 'cat "/proc/1/root/var/lib/tidemark/node/node/gates/$1.json"', stream(), check=False)
    try:
        return (json.loads(text).get("rewind") or {}).get("state", "")
    except ValueError:  # it is written anew
        return ""


def stand_still():
    """What "paused" says of an earlier time is not taken for this one."""
    word = uuid.uuid4().hex
    in_pod("sh", "-c", f"echo {word} >/tmp/pause.new && mv /tmp/pause.new /tmp/pause")
    within(30, "the writer stands still", lambda: in_pod("cat", "/tmp/paused", check=False) == word)


def settle():
    """(the point, how many lines there were); lines go on being written after it."""
    stand_still()
    lines = int(in_pod("sh", "-c", "wc -l </data/log"))
    point = in_pod("date", "-u", "+%Y-%m-%dT%H:%M:%S.%6NZ")
    in_pod("rm", "/tmp/pause")
    within(30, "it writes on", lambda: acked() > lines + 20)
    return point, lines


def begin(name):
    """A rewind that is in its middle until `let_go`. (how many lines the point has, the node)"""
    on = node()
    point, lines = settle()
    in_pod("touch", "/tmp/hold")
    base.recover(name, point)
    within(60, "the rewind waits for the pod", lambda: base.status(name).get("step", {}).get("name") == "RewindData" and gate(on) == "waiting")
    return lines, on


def let_go():
    in_pod("rm", "/tmp/hold")


def check(name, lines):
    base.completed(name)
    within(60, "the pod writes again", lambda: condition("pod", "writer-0", "Ready").get("status") == "True" and acked() > lines)
    found = in_pod("cat", "/tmp/found").split()
    expect(f"the {lines} lines of the point are there, and none after", found == [str(i + 1) for i in range(lines)],
           f"{len(found)}: {found[-3:]}")


def leader_is_killed():
    lines, _ = begin("leader-killed")
    before = lease()
    on = get("pod", before.rsplit("_", 1)[0], SYSTEM)["spec"]["nodeName"]
    send(on, "KILL", pid_of(on, "tidemark controller --csi-socket", before.rsplit("_", 1)[0]))
    within(60, "another replica has the lease", lambda: lease() not in ("", before))
    expect("the rewind is not over", base.status("leader-killed")["phase"] == "Running")
    let_go()
    check("leader-killed", lines)
    print(f"leader {before}, then {lease()}", flush=True)


def kill_agent(on):
    pod = pod_of("node", on)
    send(on, "KILL", pid_of(on, "tidemark node --state", pod["metadata"]["name"]))
    return restarts(pod, "node")


def agent_is_back(on, before):
    within(60, "the node agent is back", lambda: restarts(pod_of("node", on), "node") > before)


def agent_is_killed_while_it_waits():
    lines, on = begin("agent-waiting")
    before = kill_agent(on)
    agent_is_back(on, before)
    expect("the rewind is not over", base.status("agent-waiting")["phase"] == "Running")
    let_go()
    check("agent-waiting", lines)


def agent_is_killed_with_the_volumes_unmounted():
    """The data plane stands still, so that the agent cannot get further than asking it."""
    lines, on = begin("agent-busy")
    data = pid_of(on, "tidemark data --state", pod_of("data", on)["metadata"]["name"])
    send(on, "STOP", data)
    try:
        let_go()
        within(90, "the rewind is under way", lambda: gate(on) in ("resolving", "rewinding"))
        before = kill_agent(on)
    finally:
        send(on, "CONT", data)
    agent_is_back(on, before)
    check("agent-busy", lines)


def engine_is_killed():
    on = node()
    pod = get("pod", "writer-0")["metadata"]["uid"]
    for i in range(3):
        before = acked()
        send(on, "KILL", pid_of(on, f"tidemark-engine .*{stream()}"))
        within(60, f"the writer goes on after the engine's end {i + 1}", lambda: acked() > before + 20)
    stand_still()
    expect("no write has failed", in_pod("sh", "-c", "cat /tmp/errors 2>/dev/null; true") == "")
    lines = in_pod("cat", "/data/log").split()
    expect("all is there", lines == [str(i + 1) for i in range(acked())], f"{len(lines)} of {acked()}")
    in_pod("rm", "/tmp/pause")
    now = get("pod", "writer-0")
    expect("it is the same pod, and was not restarted", now["metadata"]["uid"] == pod and now["status"]["containerStatuses"][0]["restartCount"] == 0)


def two_replicas():
    kubectl("-n", SYSTEM, "rollout", "status", "deployment/tidemark-controller", "--timeout=270s")
    pods = json.loads(kubectl("-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=controller", "-o", "json"))["items"]
    expect("there are two replicas", len(pods) == 2)
    within(60, "one leads", lease)


def run():
    base.install("--set", "controller.replicas=2", "--set", f"controller.storage.className={CLASS}", "--set", "controller.storage.size=256Mi")
    kubectl("create", "namespace", NAMESPACE)
    kubectl("create", "namespace", OTHER)
    make_snipers()
    two_replicas()
    kubectl("annotate", "namespace", NAMESPACE, f"tidemark.io/policy={POLICY}")
    kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": APPLICATION}))
    within(180, "the application runs", lambda: condition("pod", "writer-0", "Ready").get("status") == "True")
    within(60, "its volumes are captured", lambda: condition("papp", NAMESPACE, "Protected").get("reason") == "AllVolumesCaptured")
    within(60, "its objects are journaled", lambda: condition("papp", NAMESPACE, "Ready").get("status") == "True")
    engine_is_killed()
    agent_is_killed_while_it_waits()
    agent_is_killed_with_the_volumes_unmounted()
    leader_is_killed()


def main():
    failure = None
    if os.environ.get("TIDEMARK_INSTALLED"):
        print("skipped: it installs Tidemark with two replicas of the controller, and TIDEMARK_INSTALLED says that it is there")
        return 0
    try:
        run()
    except (Failed, subprocess.TimeoutExpired, KeyError, TypeError, ValueError) as e:
        failure = repr(e) if not isinstance(e, Failed) else e
        base.show()
        print(kubectl("-n", SYSTEM, "logs", "-l", "app.kubernetes.io/component=controller", "-c", "controller", "--tail=40", "--prefix", check=False),
              file=sys.stderr)
    finally:
        in_pod("rm", "-f", "/tmp/hold", check=False)
        kubectl("delete", "namespace", NAMESPACE, "--wait", "--timeout=600s", check=False)
        kubectl("delete", "namespace", OTHER, "--wait", "--timeout=180s", check=False)
        kubectl("delete", "protectionpolicy", POLICY, check=False)
        base.uninstall()
    if failure:
        print(f"NOT OK: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
