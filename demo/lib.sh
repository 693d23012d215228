# SPDX-License-Identifier: Apache-2.0
# The shop: a PostgreSQL whose data and WAL are on two volumes that Tidemark protects, in a temporary directory of its own.
# Sourced by demo.sh and by tests/integration/postgres. Functions and variables begin with shop_.
#   TIDEMARK   the command (default: build/src/cli/tidemark of this tree)
# shellcheck shell=bash

shop_source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TIDEMARK=${TIDEMARK:-$shop_source/../${BUILD:-build}/src/cli/tidemark}
shop_dir=
shop_up_pid=
shop_recorder_pid=
shop_bench_pid=
shop_timeout_s=60

shop_notes() {
    python3 "$shop_source/notes.py" "$@"
}

# Says what is missing and returns 1.
shop_check_machine() {
    local bin
    if ((EUID != 0)); then
        echo "This needs root: it mounts file systems and attaches loop devices. Run it as root, or with sudo." >&2
        return 1
    fi
    if [[ ! -c /dev/fuse ]]; then
        echo "There is no /dev/fuse: load the module (modprobe fuse), or give the container that device." >&2
        return 1
    fi
    if [[ ! -c /dev/loop-control ]]; then
        echo "There is no /dev/loop-control: load the module (modprobe loop), or give the container that device." >&2
        return 1
    fi
    if [[ ! -x $TIDEMARK ]]; then
        echo "$TIDEMARK is not there: build it first (make)." >&2
        return 1
    fi
    shop_pg_bin=
    for bin in /usr/lib/postgresql/15/bin /usr/lib/postgresql/*/bin; do
        if [[ -x $bin/initdb && -x $bin/pg_ctl && -x $bin/pgbench ]]; then
            shop_pg_bin=$bin
            break
        fi
    done
    if [[ -z $shop_pg_bin ]] || ! id postgres >/dev/null 2>&1; then
        echo "PostgreSQL is not installed: apt-get install postgresql" >&2
        return 1
    fi
    for bin in mkfs.ext4 losetup setpriv python3; do
        if ! command -v "$bin" >/dev/null; then
            echo "$bin is not installed: apt-get install e2fsprogs util-linux python3" >&2
            return 1
        fi
    done
}

shop_tidemark() {
    "$TIDEMARK" --state "$shop_dir/state" "$@"
}

shop_as_postgres() {
    (cd / && HOME=/ exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$@")
}

# shop_psql PORT SQL: one line a row.
shop_psql() {
    shop_as_postgres "$shop_pg_bin/psql" -X -q -A -t -v ON_ERROR_STOP=1 -h "$shop_dir/run" -p "$1" -c "$2" postgres
}

# shop_until SECONDS WHAT COMMAND...: repeats the command until it succeeds. The seconds are for an idle machine: a busy one has three
# times as long.
shop_until() {
    local end=$((SECONDS + 3 * $1)) what=$2
    shift 2
    until "$@"; do
        if ((SECONDS >= end)); then
            echo "waited in vain for $what" >&2
            return 1
        fi
        sleep 0.05 # the interval between two tries
    done
}

# ---- the application ----

# Temporary directory, `tidemark up`, and the application with empty volumes.
shop_begin() {
    shop_dir=$(mktemp -d "${TMPDIR:-/tmp}/tidemark-$1.XXXXXX")
    chmod 755 "$shop_dir"
    mkdir -p "$shop_dir"/{app/manifests,mnt/data,mnt/wal,run,log,state}
    chown postgres: "$shop_dir/run" "$shop_dir/log"
    "$TIDEMARK" --state "$shop_dir/state" up >"$shop_dir/log/up.log" 2>&1 &
    shop_up_pid=$!
    shop_until 30 "tidemark up" shop_is_up
}

shop_is_up() {
    if ! kill -0 "$shop_up_pid" 2>/dev/null; then
        echo "tidemark up has ended:" >&2
        tail -n 20 "$shop_dir/log/up.log" >&2
        exit 1
    fi
    shop_tidemark status >/dev/null 2>&1
}

# The files of the application: how its database is driven, its manifests, and what Tidemark is told.
shop_write_files() {
    local app=$shop_dir/app
    cat >"$app/database" <<END
#!/bin/bash
# How the shop's database is stopped, started and asked.
cd /
as_postgres() { HOME=/ setpriv --reuid=postgres --regid=postgres --init-groups -- "\$@"; }
control() { as_postgres $shop_pg_bin/pg_ctl -D $shop_dir/mnt/data/pg -w -t $shop_timeout_s "\$@"; }
case \$1 in
stop) control status >/dev/null || exit 0; control -m fast stop ;;
start)
    # After a rewind, as after a power failure, there is the pid file of a server that no longer runs.
    pid=\$(head -n 1 $shop_dir/mnt/data/pg/postmaster.pid 2>/dev/null)
    [[ \$(readlink "/proc/\$pid/cwd") == $shop_dir/mnt/data/pg ]] || rm -f $shop_dir/mnt/data/pg/postmaster.pid
    control -l $shop_dir/log/shop.log start
    ;;
probe) as_postgres $shop_pg_bin/psql -X -q -A -t -h $shop_dir/run -p 5432 -c 'SELECT 1' postgres ;;
esac
END
    chmod 755 "$app/database"
    cat >"$app/manifests/settings.yaml" <<END
kind: ConfigMap
metadata: {name: shop-settings}
data: {pool_size: "20", currency: EUR}
END
    cat >"$app/manifests/service.yaml" <<END
kind: Service
metadata: {name: shop}
spec: {ports: [{port: 80}]}
END
    cat >"$app/shop.yaml" <<END
apiVersion: tidemark.io/v1alpha1
kind: ProtectedApplication
metadata: {name: shop}
spec:
  export: fuse
  volumes:
  - {name: data, size: 2Gi, mountPath: $shop_dir/mnt/data, fsType: ext4}
  - {name: wal, size: 1Gi, mountPath: $shop_dir/mnt/wal, fsType: ext4}
  manifests: ./manifests
  lifecycle:
    stop: [./database, stop]
    start: [./database, start]
    probe: [./database, probe]
END
}

# PostgreSQL in the volumes, running, with pgbench's tables and the recorder's.
shop_create_database() {
    local mount
    for mount in data wal; do
        if ! mountpoint -q "$shop_dir/mnt/$mount"; then
            echo "$shop_dir/mnt/$mount is not mounted" >&2
            return 1
        fi
    done
    install -d -o postgres -g postgres -m 700 "$shop_dir/mnt/data/pg" "$shop_dir/mnt/wal/pg_wal"
    shop_as_postgres "$shop_pg_bin/initdb" -D "$shop_dir/mnt/data/pg" -X "$shop_dir/mnt/wal/pg_wal" -A trust \
        --data-checksums --locale=C --encoding=UTF8 >"$shop_dir/log/initdb.log"
    cat >>"$shop_dir/mnt/data/pg/postgresql.conf" <<END
listen_addresses = ''
unix_socket_directories = '$shop_dir/run'
shared_buffers = 32MB
max_wal_size = 256MB
checkpoint_timeout = 30s
END
    sync "$shop_dir/mnt/data/pg/postgresql.conf" # a view is what a power failure would leave
    "$shop_dir/app/database" start >"$shop_dir/log/start.log"
    shop_as_postgres "$shop_pg_bin/pgbench" -i -q -s 5 -h "$shop_dir/run" postgres >"$shop_dir/log/pgbench.log" 2>&1
    shop_psql 5432 "CREATE TABLE ledger (n bigint PRIMARY KEY, note text)"
}

shop_start_load() {
    (cd / && HOME=/ exec setpriv --reuid=postgres --regid=postgres --init-groups -- \
        "$shop_pg_bin/pgbench" -n -c 2 -j 1 -T 3600 -h "$shop_dir/run" postgres) >>"$shop_dir/log/pgbench.log" 2>&1 &
    shop_bench_pid=$!
    python3 "$shop_source/recorder.py" "$shop_dir/run" 5432 "$shop_dir/notes" "${SHOP_RECORDER_FROM:-0}" 2>"$shop_dir/log/recorder.log" &
    shop_recorder_pid=$!
}

shop_stop_recorder() {
    if [[ $shop_recorder_pid ]]; then
        kill "$shop_recorder_pid" 2>/dev/null || true
        wait "$shop_recorder_pid" || true
        shop_recorder_pid=
    fi
}

shop_stop_load() {
    shop_stop_recorder
    if [[ $shop_bench_pid ]]; then
        kill "$shop_bench_pid" 2>/dev/null || true
        wait "$shop_bench_pid" || true
        shop_bench_pid=
    fi
}

# shop_wait_rows COUNT: until the recorder has noted so many.
shop_wait_rows() {
    shop_notes await "$shop_dir/notes" "$1" 180
}

shop_rows() {
    wc -l <"$shop_dir/notes"
}

shop_now_ns() {
    date +%s%N
}

# ---- views ----

# shop_open NUMBER POINT: opens a view at $shop_dir/view-NUMBER, and a PostgreSQL on it at port 6000 + NUMBER.
# Sets shop_view (its id), shop_open_ms, shop_start_ms.
shop_open() {
    local number=$1 directory=$shop_dir/view-$1 answer begun
    mkdir -p "$directory/data" "$directory/wal"
    answer=$(shop_tidemark open -q "shop@$2" --mount "$directory" -o json)
    shop_view=$(shop_notes get id <<<"$answer")
    shop_open_ms=$(shop_notes get open_ms <<<"$answer")
    # The copy knows the WAL by the place of the original's, and its pid file is that of the running original.
    ln -sfn "$directory/wal/pg_wal" "$directory/data/pg/pg_wal"
    rm -f "$directory/data/pg/postmaster.pid"
    begun=$(shop_now_ns)
    if ! shop_as_postgres "$shop_pg_bin/pg_ctl" -D "$directory/data/pg" -w -t "$shop_timeout_s" -l "$shop_dir/log/view-$number.log" \
        -o "-p $((6000 + number)) -k $shop_dir/run" start >"$shop_dir/log/view-$number.ctl" 2>&1; then
        echo "PostgreSQL does not start on the view of $2:" >&2
        tail -n 20 "$shop_dir/log/view-$number.ctl" "$shop_dir/log/view-$number.log" >&2
        return 1
    fi
    shop_start_ms=$((($(shop_now_ns) - begun) / 1000000))
}

# shop_compare PORT LOW HIGH: the rows there against the notes; prints the counts.
shop_compare() {
    shop_psql "$1" "SELECT n FROM ledger ORDER BY n" >"$shop_dir/rows-$1"
    shop_notes compare "$shop_dir/notes" "$2" "$3" <"$shop_dir/rows-$1"
}

shop_close() {
    shop_as_postgres "$shop_pg_bin/pg_ctl" -D "$shop_dir/view-$1/data/pg" -m immediate -w stop >/dev/null
    shop_tidemark close -q "$2"
}

# ---- the end ----

# Whatever still runs out of the temporary directory, by its id.
shop_leftover_pids() {
    local process
    for process in /proc/[0-9]*; do
        [[ ${process#/proc/} == "$$" || ${process#/proc/} == "$BASHPID" ]] && continue
        if tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -qF "$shop_dir/"; then
            echo "${process#/proc/}"
        fi
    done
}

shop_no_leftovers() {
    [[ -z $(shop_leftover_pids) ]]
}

# Stops everything and removes everything; may be called at any time, and twice. Returns 1 if it had to use force.
shop_end() {
    local directory pid number device forced=0
    [[ $shop_dir && -d $shop_dir ]] || return 0
    shop_stop_load
    for directory in "$shop_dir"/view-*/data/pg "$shop_dir/mnt/data/pg"; do
        if [[ -e $directory/postmaster.pid ]]; then
            shop_as_postgres "$shop_pg_bin/pg_ctl" -D "$directory" -m immediate -w stop >/dev/null 2>&1 || true
        fi
    done
    if [[ $shop_up_pid ]] && kill -0 "$shop_up_pid" 2>/dev/null; then
        kill "$shop_up_pid"
        if ! wait "$shop_up_pid"; then
            echo "tidemark up did not end well; the last of its log:" >&2
            tail -n 5 "$shop_dir/log/up.log" >&2
            forced=1
        fi
    fi
    shop_up_pid=
    # Nothing of what follows is needed when all went well.
    while read -r directory; do
        umount "$directory" 2>/dev/null || umount -l "$directory" || true
        forced=1
    done < <(awk -v at="$shop_dir/" 'index($2, at) == 1 {print $2}' /proc/self/mounts | sort -r)
    while read -r device; do
        losetup -d "$device" || true
        forced=1
    done < <(losetup -l -n -O NAME,BACK-FILE | awk -v at="$shop_dir/" 'index($2, at) == 1 {print $1}')
    for pid in $(shop_leftover_pids); do
        kill "$pid" 2>/dev/null || true
        forced=1
    done
    shop_until 10 "the end of what ran in $shop_dir" shop_no_leftovers || true
    for directory in "$shop_dir"/state/apps/*/journal; do
        [[ -e $directory/manifest ]] || continue
        number=$(python3 -c 'import sys, uuid; print(uuid.UUID(bytes=open(sys.argv[1], "rb").read(40)[24:40]))' \
            "$directory/manifest")
        rm -f "/dev/shm/tidemark-$number.ring"
    done
    if ! rm -rf --one-file-system "$shop_dir"; then
        forced=1
    fi
    shop_dir=
    return $forced
}
