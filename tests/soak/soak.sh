#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# PostgreSQL under pgbench on two protected volumes, and every few seconds something happens: the engine, `tidemark up` or
# the holder is killed, a moment is opened as a view, the application is rewound to a random moment and goes on from
# there. No acknowledged row is ever lost, none of after a moment is ever in it, and PostgreSQL sees no I/O error.
#   SOAK_SECONDS (60), SEED (printed; repeats the choice of actions). Status 77: skipped.
# Trouble with the disk is tests/sim/test_fault's.
set -euo pipefail
soak_source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=demo/lib.sh
. "$soak_source/../../demo/lib.sh"

seed=${SEED:-$RANDOM}
seconds=${SOAK_SECONDS:-60}
RANDOM=$seed
number=0
declare -A done_count=()

finish() {
    local status=$?
    trap - EXIT INT TERM HUP
    if ((status)) && [[ $shop_dir && -d $shop_dir/log ]]; then
        echo "soak: failed (SEED=$seed)" >&2
        tail -n 20 "$shop_dir"/log/up.log "$shop_dir"/log/shop.log "$shop_dir"/log/recorder.log "$shop_dir"/state/apps/*/*.log >&2 2>/dev/null || true
    fi
    if ! shop_end && ((status == 0)); then
        echo "not everything ended by itself" >&2
        status=1
    fi
    exit "$status"
}

fail() {
    echo "soak: $*" >&2
    exit 1
}

engine_pid() {
    shop_tidemark status shop -o json | shop_notes get applications.0.engine_pid
}

engine_is_another() {
    local pid
    pid=$(engine_pid) && [[ $pid != null && $pid != "$1" ]] && kill -0 "$pid" 2>/dev/null
}

is_protected() {
    [[ $(shop_tidemark status shop -o json | shop_notes get applications.0.state) == protected ]]
}

# More rows are acknowledged than there are now.
rows_go_on() {
    local before
    before=$(shop_rows)
    shop_notes await "$shop_dir/notes" $((before + 5)) 60 || fail "no row is acknowledged any more after: $1"
    kill -0 "$shop_recorder_pid" 2>/dev/null || fail "the recorder has ended after: $1"
}

kill_engine() {
    local pid
    pid=$(engine_pid)
    kill -9 "$pid"
    shop_until 30 "an engine after kill -9" engine_is_another "$pid"
}

kill_up() {
    kill -9 "$shop_up_pid"
    wait "$shop_up_pid" 2>/dev/null || true
    "$TIDEMARK" --state "$shop_dir/state" up >>"$shop_dir/log/up.log" 2>&1 &
    shop_up_pid=$!
    shop_until 30 "tidemark up" shop_is_up
    shop_until 30 "protection" is_protected
}

# A view of a moment between the first and the last row.
look_back() {
    local moment counts
    moment=$(shop_notes moments "$shop_dir/notes" 1 $RANDOM)
    ((moment > history_begun)) || return 0
    number=$((number + 1))
    shop_open "$number" "$(shop_notes time "$moment")" || fail "a view does not start"
    counts=$(shop_compare $((6000 + number)) "$moment" "$moment") || fail "the view of $moment is wrong: $counts"
    shop_close "$number" "$shop_view"
}

# Back to a moment of the last seconds; the notes forget what is gone, and the recorder goes on from what is there.
rewind_back() {
    local moment counts kept
    moment=$(shop_notes moments "$shop_dir/notes" 1 $RANDOM)
    ((moment > history_begun)) || return 0
    shop_stop_load
    shop_tidemark rewind -q shop --to "$(shop_notes time "$moment")" --yes >/dev/null || fail "the rewind to $moment"
    counts=$(shop_compare 5432 "$moment" "$moment") || fail "after the rewind to $moment: $counts"
    kept=$(wc -l <"$shop_dir/rows-5432")
    awk -v kept="$kept" '$1 <= kept {print $1, $2, $3 == "-" ? $2 : $3}' "$shop_dir/notes" >"$shop_dir/notes.new"
    mv "$shop_dir/notes.new" "$shop_dir/notes"
    history_begun=$(shop_now_ns) # moments of before now mean what was there then
    SHOP_RECORDER_FROM=$kept shop_start_load
}

shop_check_machine || exit 77
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

echo "SEED=$seed"
shop_begin soak
shop_write_files
shop_tidemark apply -q -f "$shop_dir/app/shop.yaml"
shop_create_database
history_begun=$(shop_now_ns)
shop_start_load
shop_wait_rows 20
end=$((SECONDS + seconds))
while ((SECONDS < end)); do
    actions=(kill_engine kill_engine look_back rewind_back kill_up)
    action=${actions[RANDOM % ${#actions[@]}]}
    $action
    rows_go_on "$action"
    done_count[$action]=$((${done_count[$action]:-0} + 1))
    sleep "0.$((RANDOM % 9 + 1))" # between two actions: the load works undisturbed
done
shop_stop_load
counts=$(shop_compare 5432 "$(shop_now_ns)" "$(shop_now_ns)") || fail "at the end: $counts"
if grep -E 'PANIC|corrupt|invalid page|checksum|could not (read|write|fsync)|Input/output error' "$shop_dir/log/shop.log"; then
    fail "PostgreSQL complains"
fi
shop_tidemark verify -q shop >/dev/null || fail "verify finds damage"
summary=
for action in "${!done_count[@]}"; do
    summary+=" $action=${done_count[$action]}"
done
echo "soak: ${seconds} s, $(shop_rows) rows, $counts,$summary"
