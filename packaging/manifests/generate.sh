#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Writes tidemark.yaml, the chart with its default values as plain manifests; with --check it says whether it is current.
# The certificates are not among them: certificates.sh makes those.
set -euo pipefail
cd "$(dirname "$0")"

PATH=${TIDEMARK_CLUSTER_CACHE:-/var/cache/tidemark-cluster}/bin:$PATH
command -v helm >/dev/null || { echo "helm is needed; 'tests/cluster/cluster.sh build' makes it" >&2; exit 1; }
new=$(mktemp)
trap 'rm -f "$new"' EXIT
{
    echo "# Made from packaging/helm/tidemark by packaging/manifests/generate.sh: change the chart, not this file."
    echo "# First: kubectl create namespace tidemark-system && ./certificates.sh tidemark-system | kubectl apply -f -"
    helm template tidemark ../helm/tidemark --namespace tidemark-system --include-crds --no-hooks \
        --set tls.controllerSecret=tidemark-controller-tls --set tls.nodeSecret=tidemark-node-tls 2>/dev/null |
        sed '/app.kubernetes.io\/managed-by: Helm/d'
} >"$new"
if [[ ${1:-} == --check ]]; then
    diff -u tidemark.yaml "$new" || { echo "tidemark.yaml is not current: run packaging/manifests/generate.sh" >&2; exit 1; }
else
    cp "$new" tidemark.yaml
fi
