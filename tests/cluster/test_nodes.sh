#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Nodes of the test cluster: one that is gone at once is noticed and boots again with what ran on it; a kubelet that is
# restarted leaves its pods alone. Only for the cluster that cluster.sh made.
set -euo pipefail
cd "$(dirname "$0")"
source lib/test.sh

if [[ $(kubectl get node node2 -o jsonpath='{.status.addresses[0].address}' 2>/dev/null) != 10.250.0.2 ]]; then
    echo "not the cluster of cluster.sh: nothing is tested here"
    exit 0
fi
namespace_for_test nodes
kubectl apply -f - >/dev/null <<EOF
apiVersion: v1
kind: Pod
metadata: {name: resident, namespace: $NAMESPACE}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers: [{name: main, image: localhost/toolbox:1, command: [sleep, "3600"]}]
EOF
ready() { kubectl wait --for="condition=Ready=$2" "$1" --timeout="$3" ${4:-} >/dev/null; }
started() { kubectl -n "$NAMESPACE" get pod resident -o jsonpath='{.status.containerStatuses[0].containerID}'; }
ready pod/resident True 180s "-n$NAMESPACE"
before=$(started)

./cluster.sh kubelet-stop 2 2>/dev/null
./cluster.sh kubelet-start 2 2>/dev/null
answers() { kubectl -n "$NAMESPACE" exec resident -- true 2>/dev/null; }
expect "a restarted kubelet serves its pods again" within 30 answers
expect "and left them running" test "$(started)" = "$before"

./cluster.sh node-kill 2
expect "a lost node is noticed" ready node/node2 Unknown 180s
expect "it boots again" ./cluster.sh up
expect "and is ready" ready node/node2 True 90s
restarted() { answers && [[ $(started) != "$before" ]]; }
expect "with what ran there" within 60 restarted
