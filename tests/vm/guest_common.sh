# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts that run in the virtual machine: a state directory on its disk, `tidemark up`, waiting, checks.
# shellcheck shell=bash disable=SC2034
set -uo pipefail
state=/mnt/state
api=$state/tidemark.sock
up_pid=

die() {
    echo "FAILED: $*"
    for log in "$state"/up.log "$state"/apps/*/engine.log "$state"/apps/*/views/*/view.log; do
        [[ ! -e $log ]] || { echo "--- $log"; tail -n 30 "$log"; }
    done
    dmesg | tail -n 30
    exit 1
}
say() { echo "ok: $*"; }

# read_parameter NAME DEFAULT: of the kernel's command line (TIDEMARK_VM_PARAMETERS="NAME=VALUE ...").
read_parameter() {
    local word
    printf -v "$1" %s "$2"
    for word in $(</proc/cmdline); do
        [[ $word != "$1"=* ]] || printf -v "$1" %s "${word#*=}"
    done
}

make_disk() {
    mkfs.ext4 -q -F /dev/vda || die "no disk"
    mount /dev/vda /mnt || die "cannot mount the disk"
    mkdir -p "$state"
}

# until SECONDS COMMAND...: waits for a condition.
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}

api_answers() { tidemark --state "$state" status >/dev/null 2>&1; }

start_up() {
    tidemark --state "$state" up >>"$state/up.log" 2>&1 &
    up_pid=$!
    until_true 120 api_answers || die "tidemark up does not answer"
}

stop_up() {
    kill -TERM "$up_pid"
    until_true 120 bash -c "! kill -0 $up_pid 2>/dev/null" || die "tidemark up does not end"
    wait "$up_pid"
}

# field APP FILTER: of `tidemark status -o json`, by a sed expression on compact JSON.
status_json() { tidemark --state "$state" status "$1" -o json | tr -d ' \n'; }
device_of() { # APP VOLUME
    status_json "$1" | sed "s/.*{\"name\":\"$2\",[^}]*\"device\":\"\([^\"]*\)\".*/\1/"
}
engine_pid() { cat "$state/apps/$1/engine.sock.pid"; }

# Kills the engine of APP and waits until another one answers.
engine_changed() { [[ -s $state/apps/$1/engine.sock.pid && $(engine_pid "$1") != "$2" ]]; }
kill_engine() {
    local old
    old=$(engine_pid "$1")
    kill -KILL "$old" || return 1
    until_true 120 engine_changed "$1" "$old"
}
