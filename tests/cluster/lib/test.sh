# SPDX-License-Identifier: Apache-2.0
# For tests/cluster/test_*.sh: the cluster of KUBECONFIG, a namespace that is removed at the end, expectations with names.

: "${KUBECONFIG:=${TIDEMARK_CLUSTER_STATE:-/var/lib/tidemark-cluster}/kubeconfig}"
export KUBECONFIG
PATH=${TIDEMARK_CLUSTER_CACHE:-/var/cache/tidemark-cluster}/bin:$PATH

# expect WHAT COMMAND...: the test ends at the first expectation that is not met.
expect() {
    local what=$1
    shift
    if "$@"; then
        echo "ok: $what"
    else
        echo "NOT OK: $what: $*" >&2
        exit 1
    fi
}
not() { ! "$@"; }

# within SECONDS COMMAND...: the command succeeds before the time is over; that is for an idle machine, a busy one has three times as long.
within() {
    local deadline=$((SECONDS + 3 * $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}

# namespace_for_test NAME: sets NAMESPACE. What a failed test leaves is shown before it is removed.
namespace_for_test() {
    NAMESPACE=test-$1-$$
    kubectl create namespace "$NAMESPACE" >/dev/null
    trap 'status=$?
        if ((status)); then
            kubectl -n "$NAMESPACE" get pods,pvc,events -o wide >&2 || true
        fi
        kubectl delete namespace "$NAMESPACE" --wait=true --timeout=270s >/dev/null || true
        exit $status' EXIT
}
