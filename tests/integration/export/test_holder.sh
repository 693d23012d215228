#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The holder: exit statuses, what it refuses, stale mounts, and its own death.
. "$(dirname "$0")/common.sh"
needs_fuse
volume="data 67108864 $work/data.img"
"$TIDEMARK_HOLDER" --version | grep -q "^tidemark-holder [0-9]" || fail "--version"
"$TIDEMARK_HOLDER" --help | grep -q "usage:" || fail "--help"

expect() { # STATUS TEXT JSON: the holder refuses the configuration
    local status=0
    echo "$3" >"$work/bad.json"
    "$TIDEMARK_HOLDER" --config "$work/bad.json" 2>"$work/message" || status=$?
    [ $status = "$1" ] || fail "status $status instead of $1 for $3: $(cat "$work/message")"
    grep -q "$2" "$work/message" || fail "no '$2' in: $(cat "$work/message")"
    check_nothing_left
}
program="\"program\": [\"$BLOCK_SERVER\", \"serve\", \"$work/config\"]"
mount="\"mounts\": [{\"volume\": \"data\", \"directory\": \"$work/fuse/data\"}]"
expect 78 "bad.json" "{"
expect 78 "mounts" "{\"name\": \"t\", $program}"
expect 78 "surprise" "{\"name\": \"t\", $mount, $program, \"surprise\": 1}"
expect 78 "absolute" "{\"name\": \"t\", $mount, \"program\": [\"true\"]}"
expect 78 "cannot be a volume" "{\"name\": \"t\", $program, \"mounts\": [{\"volume\": \"a:b\", \"directory\": \"/x\"}]}"
expect 1 "cannot start" "{\"name\": \"t\", $mount, \"program\": [\"$work/missing\"]}"
expect 0 "has ended" "{\"name\": \"t\", $mount, \"program\": [\"/bin/true\"]}"
expect 78 "status 78" "{\"name\": \"t\", $mount, \"program\": [\"/bin/sh\", \"-c\", \"exit 78\"]}"
expect 1 "status 3" "{\"name\": \"t\", $mount, \"restart\": false, \"program\": [\"/bin/sh\", \"-c\", \"exit 3\"]}"
echo "nonsense" >"$work/config"
expect 78 "bad line" "{\"name\": \"t\", $mount, $program}"
echo "other 4096 memory" >"$work/config"
expect 78 "no descriptor" "{\"name\": \"t\", $mount, $program}"
touch "$work/fuse/data/file"
expect 1 "not empty" "{\"name\": \"t\", $mount, $program}"
rm "$work/fuse/data/file"
mount -t tmpfs none "$work/fuse/data"
mounts=("$work/fuse/data")
echo "{\"name\": \"t\", $mount, $program}" >"$work/bad.json"
! "$TIDEMARK_HOLDER" --config "$work/bad.json" 2>"$work/message" || fail "mounted over a file system"
grep -q "mounted there already" "$work/message" || fail "no word of the mount: $(cat "$work/message")"
umount "$work/fuse/data"
mounts=()

# Started again with a back-off, told to carry on: fails twice, then ends cleanly.
cat >"$work/flaky" <<END
#!/bin/sh
echo "start \${TIDEMARK_RESUME:-0} \$TIDEMARK_FUSE" >>"$work/starts"
[ "\$(wc -l <"$work/starts")" -lt 3 ] && exit 5
exit 0
END
chmod +x "$work/flaky"
expect 0 "starting it again" "{\"name\": \"t\", $mount, \"program\": [\"$work/flaky\"]}"
[ "$(cut -d ' ' -f 2 "$work/starts" | tr -d '\n')" = 011 ] || fail "starts: $(cat "$work/starts")"
grep -qE "^start 1 data:[0-9]+:[0-9]+$" "$work/starts" || fail "environment: $(cat "$work/starts")"

# SIGTERM while the program keeps failing.
echo "{\"name\": \"t\", $mount, \"program\": [\"/bin/false\"]}" >"$work/bad.json"
rm "$work/message" # the words waited for stand in the last one's, too
"$TIDEMARK_HOLDER" --config "$work/bad.json" 2>"$work/message" &
holder_pid=$!
wait_for 10 grep -q "starting it again" "$work/message" || fail "no second start: $(cat "$work/message")"
kill -TERM "$holder_pid"
wait "$holder_pid" || fail "SIGTERM in the back-off"
holder_pid=
check_nothing_left

# With a device attached SIGTERM still ends it; the device is then dead, not hanging, and named by its path until it is detached.
: >"$work/log"
start_holder "$volume"
attach data
stop_server=$(server_pid)
kill -TERM "$holder_pid"
wait "$holder_pid" || fail "SIGTERM with a device attached"
holder_pid=
[ ! -e "/proc/$stop_server" ] || fail "the server outlived it"
! timeout 10 dd if="$device" of=/dev/null bs=4k count=1 iflag=direct status=none 2>/dev/null || fail "a dead device was read"
[ "$(losetup --noheadings --output BACK-FILE "$device")" = "$work/fuse/data/vol" ] || fail "nobody could tell whose $device is: $(losetup "$device")"
detach_all
umount "$work/fuse/data" || fail "the mount that was used is gone"
check_nothing_left

# The holder killed: I/O goes on. The server killed too: errors at once, and a stale mount, which the next one replaces.
: >"$work/log"
start_holder "$volume"
attach data
run_fio before --filename="$device" --direct=1 --rw=randwrite --bs=4k --size=4m --verify=crc32c --verify_fatal=1
server=$(server_pid)
kill -KILL "$holder_pid"
wait "$holder_pid" 2>/dev/null || true
holder_pid=
run_fio orphan --filename="$device" --direct=1 --rw=randwrite --bs=4k --size=4m --verify=crc32c --verify_fatal=1
kill -KILL "$server"
wait_for 10 test ! -e "/proc/$server" || fail "the server is still there"
! timeout 10 dd if="$device" of=/dev/null bs=4k count=1 iflag=direct status=none 2>/dev/null || fail "a dead device was read"
detach_all
is_stale() { ! ls "$work/fuse/data" >"$work/message" 2>&1; } # the kernel closes what a killed process had open a little after its end
wait_for 10 is_stale || fail "the mount answers"
grep -q "not connected" "$work/message" || fail "the mount is not stale: $(cat "$work/message")"
: >"$work/log"
start_holder "$volume"
attach data
run_fio again --filename="$device" --direct=1 --rw=randwrite --bs=4k --size=4m --verify=crc32c --verify_fatal=1
detach_all
stop_holder
