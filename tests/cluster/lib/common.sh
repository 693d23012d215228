# SPDX-License-Identifier: Apache-2.0
# Part of cluster.sh: names, messages, processes that are known by id and start time, certificates.

# Where Go is when it is not on the PATH; the system directories, which a user's PATH may lack.
export PATH=$PATH:/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${TIDEMARK_CLUSTER_CACHE:-/var/cache/tidemark-cluster}
BIN=$CACHE/bin
IMAGES=$CACHE/images
# Another release of Kubernetes, as "v1.28.15": its programs stand apart from the others.
KUBE_VERSION=${TIDEMARK_KUBE_VERSION:-}
KUBE_VERSION=${KUBE_VERSION:+v${KUBE_VERSION#v}}
KUBE_BIN=${KUBE_VERSION:+$CACHE/versions/$KUBE_VERSION/bin}
KUBE_BIN=${KUBE_BIN:-$BIN}

say() { echo "[cluster] $*" >&2; }
die() {
    say "ERROR: $*"
    exit 1
}
now_ms() { date +%s%3N; }
seconds_since() { awk -v ms=$(($(now_ms) - $1)) 'BEGIN { printf "%.1f", ms / 1000 }'; }

# until_true SECONDS WHAT COMMAND...: the condition is asked ten times a second. The seconds are for an idle machine: a busy one has three
# times as long.
until_true() {
    local seconds=$((3 * $1)) what=$2 deadline
    shift 2
    deadline=$(($(now_ms) + seconds * 1000))
    until "$@" >/dev/null 2>&1; do
        (($(now_ms) < deadline)) || die "$what: not within $seconds s; the logs are in $LOG$(last_lines "$what")"
        sleep 0.1
    done
}
last_lines() { [[ ! -f $LOG/$1.log ]] || printf ', the last lines of %s:\n%s\n' "$1.log" "$(tail -n 40 "$LOG/$1.log" | cut -c-400)"; } # NAME

# --- processes: a pid file holds "PID STARTTIME", so that a number that was given again is never taken for ours. The caller
# sets RUN (pid files) and LOG.
start_time() { awk '{ sub(/.*\) /, ""); print $20 }' "/proc/$1/stat" 2>/dev/null; }
process_state() { awk '{ sub(/.*\) /, ""); print $1 }' "/proc/$1/stat" 2>/dev/null; }
alive() { # NAME
    local pid started
    read -r pid started 2>/dev/null <"$RUN/$1.pid" || return 1
    [[ -n $pid && -n $started && $(start_time "$pid") == "$started" && $(process_state "$pid") != Z ]]
}
pid_of() { cut -d' ' -f1 "$RUN/$1.pid"; }
remember() { echo "$2 $(start_time "$2")" >"$RUN/$1.pid"; } # NAME PID

# spawn NAME COMMAND...: in a session of its own, output to a log. `nsenter --net` and `env` exec, so the id stays right.
spawn() {
    local name=$1
    shift
    alive "$name" && return 0
    setsid "$@" >>"$LOG/$name.log" 2>&1 </dev/null &
    remember "$name" $!
    disown
}

# serve SECONDS NAME READY COMMAND...: spawned, until the function READY succeeds. A program that ends instead is started again, twice, as a
# kubelet does it with those of a control plane (kube-apiserver ends when its first look at the services' ports fails), and what it said is told.
serve() {
    local seconds=$1 name=$2 ready=$3 attempt
    shift 3
    for attempt in 1 2 3; do
        spawn "$name" "$@"
        until_true "$seconds" "$name" ready_or_ended "$name" "$ready"
        alive "$name" && return 0
        say "WARNING: $name ended when it was started ($attempt of 3)$(last_lines "$name")"
    done
    die "$name ended each time it was started; the logs are in $LOG"
}
ready_or_ended() { ! alive "$1" || "$2"; } # NAME READY

stop() { # NAME [SECONDS]
    local name=$1 seconds=${2:-10} pid deadline
    if alive "$name"; then
        pid=$(pid_of "$name")
        kill -TERM "$pid" 2>/dev/null
        deadline=$(($(now_ms) + seconds * 1000))
        while alive "$name"; do
            if (($(now_ms) >= deadline)); then
                say "$name ($pid) did not stop within $seconds s: SIGKILL"
                kill -KILL "$pid" 2>/dev/null
                deadline=$(($(now_ms) + 5000))
            fi
            sleep 0.05
        done
    fi
    rm -f "$RUN/$name.pid"
}

# --- certificates. The caller sets PKI and STATE.
make_ca() {
    mkdir -p "$PKI"
    chmod 700 "$PKI"
    if [[ ! -s $PKI/ca.crt ]]; then
        openssl ecparam -name prime256v1 -genkey -noout -out "$PKI/ca.key"
        openssl req -x509 -new -key "$PKI/ca.key" -sha256 -days 3650 -subj /CN=tidemark-test-ca -out "$PKI/ca.crt" \
            -addext keyUsage=critical,keyCertSign,cRLSign
    fi
    if [[ ! -s $PKI/sa.pub ]]; then
        openssl genrsa -out "$PKI/sa.key" 2048 2>/dev/null
        openssl rsa -in "$PKI/sa.key" -pubout -out "$PKI/sa.pub" 2>/dev/null
    fi
}
make_cert() { # NAME SUBJECT [SUBJECT-ALTERNATIVE-NAMES]
    local name=$1 subject=$2 names=${3:-}
    [[ -s $PKI/$name.crt ]] && return 0
    {
        echo keyUsage=critical,digitalSignature
        echo extendedKeyUsage=serverAuth,clientAuth
        [[ -z $names ]] || echo "subjectAltName=$names"
    } >"$PKI/$name.ext"
    openssl ecparam -name prime256v1 -genkey -noout -out "$PKI/$name.key" &&
        openssl req -new -key "$PKI/$name.key" -subj "$subject" -out "$PKI/$name.csr" &&
        openssl x509 -req -in "$PKI/$name.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 3650 -sha256 \
            -extfile "$PKI/$name.ext" -out "$PKI/$name.crt" 2>/dev/null || die "certificate $name could not be made"
    rm -f "$PKI/$name.csr" "$PKI/$name.ext"
}
make_kubeconfig() { # FILE CERTIFICATE SERVER: self-contained, so that it can be copied into a pod
    cat >"$1.new" <<EOF
apiVersion: v1
kind: Config
clusters:
- name: tidemark-test
  cluster: {server: "$3", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")}
users:
- name: $2
  user: {client-certificate-data: $(base64 -w0 "$PKI/$2.crt"), client-key-data: $(base64 -w0 "$PKI/$2.key")}
contexts:
- name: tidemark-test
  context: {cluster: tidemark-test, user: $2}
current-context: tidemark-test
EOF
    chmod 600 "$1.new"
    mv "$1.new" "$1"
}
