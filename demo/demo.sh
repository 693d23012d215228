#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A database is rewound while you watch: PostgreSQL on two protected volumes, a dropped table, and the way back. Asks
# nothing, works in a temporary directory, leaves nothing behind. Needs root. TIDEMARK names the command to use.
# The last line is "demo: rows_before=N rows_lost=0 rows_leaked=0 open_ms=N rewind_ms=N rpo_ms=N"; status 0 if all was right.
set -euo pipefail
demo_source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=demo/lib.sh
. "$demo_source/lib.sh"

rows_a_phase=${DEMO_ROWS:-8000}
step=0
wrong=0

say() {
    step=$((step + 1))
    printf '\n[%2d] %s\n' "$step" "$1"
    shift
    (($#)) && printf '     %s\n' "$@"
    return 0
}

show() {
    printf '     $ %s\n' "$*"
}

is_wrong() {
    printf '     WRONG: %s\n' "$*"
    wrong=$((wrong + 1))
}

finish() {
    local status=$?
    trap - EXIT INT TERM HUP
    if ((status && status < 128)) && [[ $shop_dir && -d $shop_dir/log ]]; then
        echo "The demo failed (status $status). The last of the logs:" >&2
        tail -n 15 "$shop_dir"/log/up.log "$shop_dir"/log/shop.log "$shop_dir"/state/apps/*/*.log >&2 2>/dev/null || true
    fi
    if ! shop_end && ((status == 0)); then
        echo "Not everything ended by itself: the rest was removed by force." >&2
        status=1
    fi
    exit "$status"
}

# field JSON PATH
field() {
    shop_notes get "$2" <<<"$1"
}

# value WORD in "before=1 present=2"
value() {
    sed -n "s/.*\\<$1=\\([0-9]*\\).*/\\1/p" <<<"$2"
}

open_ms_list=()
table=()
views=()

# look NUMBER NAME POINT LOW HIGH: opens the moment, counts its rows.
look() {
    local counts
    shop_open "$1" "$3"
    views+=("$shop_view")
    open_ms_list+=("$shop_open_ms")
    counts=$(shop_compare $((6000 + $1)) "$4" "$5") || is_wrong "the view of $3"
    printf '     %s: %s, open in %.0f ms, its PostgreSQL (port %d) after %d ms: %s rows, %s acknowledged before\n' \
        "$shop_view" "$2" "$shop_open_ms" $((6000 + $1)) "$shop_start_ms" "$(value present "$counts")" "$(value before "$counts")"
    table+=("$2|$(value before "$counts")|$(value present "$counts")|$(value lost "$counts")|$(value leaked "$counts")|$(shop_notes median "$shop_open_ms")")
}

demo_prepare() {
    say "Tidemark starts, with its state in $shop_dir/state" \
        "and is told of an application: PostgreSQL, its data and its WAL on two volumes, and a directory of manifests."
    show "tidemark up &" ; show "tidemark apply -f shop.yaml"
    shop_write_files
    shop_tidemark apply -f "$shop_dir/app/shop.yaml" 2>&1 | sed 's/^/     /'

    say "A database in the volumes, and work for it." \
        "pgbench makes the load. A recorder commits row 1, 2, 3 ... and notes when each was acknowledged."
    shop_create_database
    shop_start_load
}

demo_work() {
    local answer
    shop_wait_rows "$rows_a_phase"
    first_ns=$(shop_now_ns)
    say "Some work later. $(shop_rows) rows are in. We remember the time: $(shop_notes time "$first_ns")"

    shop_wait_rows $((2 * rows_a_phase))
    say "A tag names a moment. It is a word in the journal, not a copy of anything."
    show "tidemark tag shop before-migration --label release=42"
    tag_low_ns=$(shop_now_ns)
    answer=$(shop_tidemark tag shop before-migration --label release=42 -o json)
    tag_high_ns=$(shop_now_ns)
    echo "     LSN $(field "$answer" lsn)"

    say "Somebody changes a setting: pool_size 20 -> 40. The manifests are journaled with the writes."
    sed -i 's/"20"/"40"/' "$shop_dir/app/manifests/settings.yaml"
    shop_until 30 "the change in the journal" object_is_journaled settings.yaml "$tag_high_ns"
    cp -a "$shop_dir/app/manifests" "$shop_dir/manifests-good"

    shop_wait_rows $((3 * rows_a_phase))
    third_ns=$(shop_now_ns)
    say "More work. $(shop_rows) rows. We remember this time too: $(shop_notes time "$third_ns")"
    shop_wait_rows $((4 * rows_a_phase))
}

# object_is_journaled NAME NS: whether the newest change of a manifest came after the time.
object_is_journaled() {
    local answer
    answer=$(shop_tidemark points shop -o json)
    python3 - "$1" "$2" "$demo_source" "$answer" <<'END'
import json, sys
name, since, source, answer = sys.argv[1:]
sys.path.insert(0, source)
import notes
points = json.loads(answer)
points = points["points"] if isinstance(points, dict) else points
sys.exit(not any(p["kind"] == "object" and name in p["name"] and notes.to_ns(p["time"]) >= int(since) for p in points))
END
}

demo_accident() {
    moment_ns=$(shop_now_ns)
    moment=$(shop_notes time "$moment_ns")
    say "The accident: DROP TABLE ledger, in the middle of the work. And a bad setting, and a manifest is deleted."
    shop_psql 5432 "DROP TABLE ledger"
    sed -i 's/"40"/"-1"/' "$shop_dir/app/manifests/settings.yaml"
    rm "$shop_dir/app/manifests/service.yaml"
    wait "$shop_recorder_pid" || true
    shop_recorder_pid=
    sed 's/^/     /' "$shop_dir/log/recorder.log"
    echo "     The rest of the application goes on writing: its pgbench has not noticed."
    rows_noted=$(shop_rows)
}

demo_views() {
    say "Three earlier moments, opened side by side while the application goes on." \
        "Each is a writable copy of both volumes as of one write, with a PostgreSQL of its own."
    show "tidemark open shop@$(shop_notes time "$first_ns")"
    look 1 "first time" "$(shop_notes time "$first_ns")" "$first_ns" "$first_ns"
    show "tidemark open shop@tag:before-migration"
    look 2 "the tag" tag:before-migration "$tag_low_ns" "$tag_high_ns"
    show "tidemark open shop@$(shop_notes time "$third_ns")"
    look 3 "second time" "$(shop_notes time "$third_ns")" "$third_ns" "$third_ns"
    shop_tidemark views | sed 's/^/     /'
    say "They are thrown away, without a trace in the application."
    local i
    for i in 1 2 3; do
        shop_close "$i" "${views[i - 1]}"
    done
}

demo_rewind() {
    local counts
    say "We take the last moment before the DROP, $moment" "First what would be done:"
    show "tidemark rewind shop --to $moment --dry-run"
    shop_tidemark rewind shop --to "$moment" --dry-run | sed 's/^/     /'
    say "And now in place. The volumes serve the old state at once, the copying goes on behind."
    show "tidemark rewind shop --to $moment --yes"
    rewind=$(shop_tidemark rewind -q shop --to "$moment" --yes -o json)
    kill "$shop_bench_pid" 2>/dev/null || true
    wait "$shop_bench_pid" || true
    shop_bench_pid=
    rewind_ms=$(shop_notes median "$(field "$rewind" rewind_ms)")
    rpo_ms=$(shop_notes median "$(field "$rewind" rpo_ms)")
    printf '     stopped in %.0f ms, put back in %.0f ms, started in %.0f ms; %s bytes differed\n' "$(field "$rewind" stop_ms)" \
        "$rewind_ms" "$(field "$rewind" start_ms)" "$(field "$rewind" changed_bytes)"

    say "Is every row there that was acknowledged before that moment, and none that came after?"
    counts=$(shop_compare 5432 "$moment_ns" "$moment_ns") || is_wrong "the rows after the rewind"
    rows_before=$(value before "$counts")
    rows_lost=$(value lost "$counts")
    rows_leaked=$(value leaked "$counts")
    table+=("rewound|$rows_before|$(value present "$counts")|$rows_lost|$rows_leaked|-")
    echo "     $rows_noted rows were noted in all; $rows_before acknowledged before, $(value present "$counts") there, $rows_lost lost, $rows_leaked leaked"
    if diff -r "$shop_dir/manifests-good" "$shop_dir/app/manifests" >"$shop_dir/log/manifests.diff"; then
        echo "     The manifests are what they were: $(grep -o 'pool_size: "[^"]*"' "$shop_dir/app/manifests/settings.yaml"), service.yaml is back."
    else
        is_wrong "the manifests differ:"
        cat "$shop_dir/log/manifests.diff"
    fi
    if [[ $(shop_psql 5432 "SELECT sum(abalance) - (SELECT sum(delta) FROM pgbench_history) FROM pgbench_accounts") != 0 ]]; then
        is_wrong "pgbench's accounts and history do not agree"
    fi
    shop_psql 5432 "INSERT INTO ledger VALUES (0, 'written after the rewind')"

    say "Nothing is gone: the state with the accident is still in the journal, should we want it."
    show "tidemark undo shop --dry-run"
    shop_tidemark undo shop --dry-run | sed 's/^/     /'
}

demo_table() {
    local row name before present lost leaked open_ms
    printf '\n     %-12s %12s %12s %6s %7s %8s\n' moment acknowledged present lost leaked "open ms"
    for row in "${table[@]}"; do
        IFS='|' read -r name before present lost leaked open_ms <<<"$row"
        printf '     %-12s %12s %12s %6s %7s %8s\n' "$name" "$before" "$present" "$lost" "$leaked" "$open_ms"
    done
    shop_tidemark status shop | sed 's/^/     /'
}

shop_check_machine || exit 1
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

shop_begin demo
demo_prepare
demo_work
demo_accident
demo_views
demo_rewind
demo_table
result="demo: rows_before=$rows_before rows_lost=$rows_lost rows_leaked=$rows_leaked open_ms=$(shop_notes median "${open_ms_list[@]}") rewind_ms=$rewind_ms rpo_ms=$rpo_ms"
((rows_lost == 0 && rows_leaked == 0 && rows_before > 0)) || wrong=$((wrong + 1))
say "The end: everything is stopped and removed."
if ! shop_end; then
    echo "Not everything ended by itself: the rest was removed by force." >&2
    wrong=$((wrong + 1))
fi
echo "$result"
((wrong == 0))
