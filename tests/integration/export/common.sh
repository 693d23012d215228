# SPDX-License-Identifier: Apache-2.0
# Sourced by the tests of this directory: a holder with its server, loop devices, fio; and that nothing is left over.
set -euo pipefail
skip() { echo "skipped: $*"; exit 77; }
fail() { echo "FAILED: $*" >&2; [ -f "$work/log" ] && tail -n 30 "$work/log" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "skipped: needs root"; exit 77; }
for program in fio losetup; do command -v "$program" >/dev/null || skip "needs $program"; done

work=$(mktemp -d "${TMPDIR:-/tmp}/tidemark-export-XXXXXX")
holder_pid=
background= # another process to be ended
devices=()
mounts=()

clean_up() {
    local status=$?
    set +e
    [ -n "$background" ] && kill -TERM "$background" 2>/dev/null
    for mounted in "${mounts[@]}"; do mountpoint -q "$mounted" && umount "$mounted"; done
    # First what answers the I/O that may be under way, then the devices: none of this hangs then.
    if [ -n "$holder_pid" ]; then
        kill -TERM "$holder_pid" 2>/dev/null
        wait_for 10 has_ended "$holder_pid" || kill -KILL "$holder_pid"
    fi
    kill -KILL $(pgrep -f "serve $work/config") 2>/dev/null
    for device in "${devices[@]}"; do "$BLOCK_SERVER" detach "$device" 2>/dev/null; done
    for mounted in "$work"/fuse/*; do umount -l "$mounted" 2>/dev/null; done
    rm -rf "$work"
    exit $status
}
trap clean_up EXIT

needs_fuse() {
    [ -c /dev/fuse ] && [ -c /dev/loop-control ] || skip "needs /dev/fuse and loop devices"
    mkdir "$work/probe"
    # Whether this place may mount and attach at all (a container often may not).
    mount -t tmpfs none "$work/probe" 2>/dev/null || skip "may not mount"
    umount "$work/probe"
    rmdir "$work/probe"
}

# needs_resend: requests are sent again after a crash from Linux 6.9 on.
needs_resend() {
    local major minor
    IFS=. read -r major minor _ < <(uname -r)
    [ "$major" -gt 6 ] || { [ "$major" = 6 ] && [ "${minor%%[!0-9]*}" -ge 9 ]; } || skip "needs Linux 6.9"
}

# wait_for SECONDS COMMAND...: until the command succeeds. The seconds are for an idle machine: a busy one has three times as long.
wait_for() {
    local tries=$(($1 * 150))
    shift
    while ! "$@"; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        sleep 0.02
    done
}

# start_holder [RESTART] VOLUME...: volumes are lines for file_runtime.c; the mounts are $work/fuse/NAME.
start_holder() {
    local restart=true list=
    if [ "$1" = true ] || [ "$1" = false ]; then restart=$1; shift; fi
    : >"$work/config"
    for volume in "$@"; do
        echo "$volume" >>"$work/config"
        list="$list${list:+,}{\"volume\": \"${volume%% *}\", \"directory\": \"$work/fuse/${volume%% *}\"}"
    done
    cat >"$work/holder.json" <<END
{"name": "test", "mounts": [$list], "program": ["$BLOCK_SERVER", "serve", "$work/config"],
 "restart": $restart, "pid_file": "$work/holder.pid"}
END
    "$TIDEMARK_HOLDER" --config "$work/holder.json" 2>>"$work/log" &
    holder_pid=$!
    wait_for 10 serving || fail "the server did not start"
}

has_ended() { ! kill -0 "$1" 2>/dev/null || [ "$(awk '{print $3}' "/proc/$1/stat" 2>/dev/null)" = Z ]; }
server_pid() { pgrep -P "$holder_pid" -f "serve $work/config" | head -n 1; }
has_server() { [ -n "$(server_pid)" ]; }
serving() { has_server && grep -q "serving" "$work/log"; }

# attach VOLUME: sets $device.
attach() {
    device=$("$BLOCK_SERVER" attach "$work/fuse/$1/vol") || fail "cannot attach $1"
    devices+=("$device")
}

detach_all() {
    for device in "${devices[@]}"; do "$BLOCK_SERVER" detach "$device" || fail "cannot detach $device"; done
    devices=()
}

# stop_holder: SIGTERM ends all of it with status 0 and leaves nothing mounted or attached.
stop_holder() {
    local status=0 server
    server=$(server_pid)
    kill -TERM "$holder_pid"
    wait "$holder_pid" || status=$?
    holder_pid=
    [ $status = 0 ] || fail "the holder ended with status $status"
    [ ! -e "/proc/$server" ] || fail "the server still runs"
    check_nothing_left
}

check_nothing_left() {
    ! grep -q " $work/" /proc/mounts || fail "mounts are left: $(grep " $work/" /proc/mounts)"
    ! losetup --list --noheadings --output BACK-FILE | grep -q "$work/" || fail "loop devices are left: $(losetup -a)"
    [ ! -e "$work/holder.pid" ] || fail "the pid file is left"
}

# run_fio NAME OPTION...: fails on any error; the output is in $work/fio.
run_fio() {
    local name=$1
    shift
    (cd "$work" && fio --name="$name" --verify_state_save=0 --output="$work/fio" "$@") || { cat "$work/fio" >&2; fail "fio $name"; }
    ! grep -qE "err= *[1-9]" "$work/fio" || { cat "$work/fio" >&2; fail "fio $name"; }
}
