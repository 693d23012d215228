# SPDX-License-Identifier: Apache-2.0
# Part of cluster.sh: etcd, kube-apiserver, kube-controller-manager, kube-scheduler; and an API server alone.

SERVICE_CIDR=10.96.0.0/16
SERVICE_API=10.96.0.1
SERVICE_DNS=10.96.0.10

# control_pki ADDRESS: the certificates of the control plane, for a server at ADDRESS.
control_pki() {
    local domain=kubernetes.default.svc.cluster.local
    make_ca
    make_cert apiserver /CN=kube-apiserver "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:$domain,IP:127.0.0.1,IP:$1,IP:$SERVICE_API"
    make_cert admin /O=system:masters/CN=admin
    make_cert controller-manager /CN=system:kube-controller-manager
    make_cert scheduler /CN=system:kube-scheduler
    make_cert apiserver-kubelet /O=system:masters/CN=apiserver-kubelet-client
    make_cert front-proxy /CN=front-proxy-client
}

# start_etcd PORT: clients at PORT, peers at PORT + 1, on the loopback address. ENTER is the command that enters a namespace.
start_etcd() {
    ETCD=http://127.0.0.1:$1
    mkdir -p "$STATE/etcd"
    chmod 700 "$STATE/etcd"
    # A test's history may be lost with the machine: no fsync.
    serve 30 etcd etcd_is_ready "${ENTER[@]}" "$BIN/etcd" --name=test "--data-dir=$STATE/etcd" --log-level=warn --unsafe-no-fsync \
        "--listen-client-urls=$ETCD" "--advertise-client-urls=$ETCD" \
        "--listen-peer-urls=http://127.0.0.1:$(($1 + 1))" "--initial-advertise-peer-urls=http://127.0.0.1:$(($1 + 1))" \
        "--initial-cluster=test=http://127.0.0.1:$(($1 + 1))" --quota-backend-bytes=2147483648
}
etcd_is_ready() { "${ENTER[@]}" curl -fs "$ETCD/readyz"; }

# start_apiserver ETCD-PORT OPTION...: admission plugins and feature gates are upstream's defaults, and NodeRestriction as
# kubeadm has it.
start_apiserver() {
    local etcd_port=$1
    shift
    serve 90 kube-apiserver apiserver_is_ready "${ENTER[@]}" "$KUBE_BIN/kube-apiserver" "--etcd-servers=http://127.0.0.1:$etcd_port" \
        "--cert-dir=$PKI" "--client-ca-file=$PKI/ca.crt" "--tls-cert-file=$PKI/apiserver.crt" "--tls-private-key-file=$PKI/apiserver.key" \
        "--kubelet-client-certificate=$PKI/apiserver-kubelet.crt" "--kubelet-client-key=$PKI/apiserver-kubelet.key" \
        "--kubelet-certificate-authority=$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
        "--service-account-key-file=$PKI/sa.pub" "--service-account-signing-key-file=$PKI/sa.key" \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        "--service-cluster-ip-range=$SERVICE_CIDR" --enable-aggregator-routing=true \
        "--requestheader-client-ca-file=$PKI/ca.crt" --requestheader-allowed-names=front-proxy-client \
        --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group \
        --requestheader-username-headers=X-Remote-User \
        "--proxy-client-cert-file=$PKI/front-proxy.crt" "--proxy-client-key-file=$PKI/front-proxy.key" "$@"
}
apiserver_is_ready() { "$KUBE_BIN/kubectl" "--kubeconfig=$STATE/kubeconfig" get --raw=/readyz; }

# start_controller_manager KUBECONFIG OPTION...
start_controller_manager() {
    local config=$1
    shift
    spawn kube-controller-manager "${ENTER[@]}" "$KUBE_BIN/kube-controller-manager" \
        "--kubeconfig=$config" "--authentication-kubeconfig=$config" "--authorization-kubeconfig=$config" \
        "--service-account-private-key-file=$PKI/sa.key" "--root-ca-file=$PKI/ca.crt" --use-service-account-credentials=true \
        "--cluster-signing-cert-file=$PKI/ca.crt" "--cluster-signing-key-file=$PKI/ca.key" "--cert-dir=$PKI" \
        --bind-address=127.0.0.1 --leader-elect=false "$@"
}

# --- an API server alone, for tests of a client: etcd, kube-apiserver and the controllers that need no node.
api_paths() { # DIRECTORY
    STATE=$(readlink -f "$1") PKI=$STATE/pki RUN=$STATE/run LOG=$STATE/log ENTER=(env)
}

api_up() { # DIRECTORY PORT
    [[ $# == 2 && $2 =~ ^[0-9]+$ ]] || die "usage: cluster.sh api-up DIRECTORY PORT (it takes PORT to PORT + 3 of 127.0.0.1)"
    local port=$2 started
    started=$(now_ms)
    mkdir -p "$1"
    api_paths "$1"
    mkdir -p "$RUN" "$LOG"
    if [[ ! -x $BIN/etcd || ! -x $KUBE_BIN/kube-apiserver || ! -x $KUBE_BIN/kubectl ]]; then
        "$HERE/cluster.sh" build api || exit 1
    fi
    control_pki 127.0.0.1
    make_kubeconfig "$STATE/kubeconfig" admin "https://127.0.0.1:$port"
    start_etcd $((port + 1))
    # Without nodes nothing can answer at the address of the service "kubernetes": it gets no endpoints.
    start_apiserver $((port + 1)) --bind-address=127.0.0.1 --advertise-address=127.0.0.1 "--secure-port=$port" \
        --endpoint-reconciler-type=none
    if [[ -x $KUBE_BIN/kube-controller-manager ]]; then
        make_kubeconfig "$STATE/controller-manager.kubeconfig" controller-manager "https://127.0.0.1:$port"
        start_controller_manager "$STATE/controller-manager.kubeconfig" "--secure-port=$((port + 3))"
        until_true 60 "the default service account" "$KUBE_BIN/kubectl" "--kubeconfig=$STATE/kubeconfig" get serviceaccount default
    fi
    say "API server ready after $(seconds_since "$started") s: KUBECONFIG=$STATE/kubeconfig"
}

api_down() { # DIRECTORY: stops the processes; the data stays for another api-up, removing DIRECTORY removes it
    [[ $# == 1 ]] || die "usage: cluster.sh api-down DIRECTORY"
    [[ -d $1 ]] || return 0
    api_paths "$1"
    local name
    for name in kube-controller-manager kube-apiserver etcd; do
        stop "$name"
    done
}
