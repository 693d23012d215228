#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# J3, J4 and the order over volumes, as a database sees them: PostgreSQL works for SECONDS_OF_LOAD (30) on two protected
# volumes while a recorder notes when each row was acknowledged; MOMENTS (12) random moments and 3 tags are opened. On each
# view PostgreSQL must start as after a power failure at worst, without a word of corruption; checksums, indexes against
# heaps (pg_amcheck) and pgbench's sums must be right; and exactly what was acknowledged before is there, nothing begun after.
# SEED repeats the choice of moments. Status 77: skipped.
set -euo pipefail
test_source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=demo/lib.sh
. "$test_source/../../../demo/lib.sh"

seed=${SEED:-$RANDOM}
seconds=${SECONDS_OF_LOAD:-30}
moments=${MOMENTS:-12}
failed=0
number=0

finish() {
    local status=$?
    trap - EXIT INT TERM HUP
    if ((status)) && [[ $shop_dir && -d $shop_dir/log ]]; then
        tail -n 20 "$shop_dir"/log/up.log "$shop_dir"/log/shop.log "$shop_dir"/state/apps/*/*.log >&2 2>/dev/null || true
    fi
    if ! shop_end && ((status == 0)); then
        echo "not everything ended by itself" >&2
        status=1
    fi
    exit "$status"
}

# note_tags: three tags, spread over the time of the load; each between two times of the recorder's clock.
note_tags() {
    local i low
    for i in 1 2 3; do
        shop_notes await-ns $((load_begun + seconds * 1000000000 * i / 4))
        low=$(shop_now_ns)
        shop_tidemark tag -q shop "moment-$i" >/dev/null
        tags+=("$low $(shop_now_ns) tag:moment-$i")
    done
}

# sums_agree PORT: each of pgbench's transactions is there as a whole or not at all.
sums_agree() {
    [[ $(shop_psql "$1" "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = coalesce((SELECT sum(delta) FROM pgbench_history), 0)
        AND (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(tbalance) FROM pgbench_tellers)
        AND (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches)") == t ]]
}

# check_moment LOW HIGH POINT
check_moment() {
    local counts log result=ok
    number=$((number + 1))
    log=$shop_dir/log/view-$number.log
    if ! shop_open "$number" "$3"; then
        echo "FAILED $3 (seed $seed)"
        failed=$((failed + 1))
        return
    fi
    counts=$(shop_compare $((6000 + number)) "$1" "$2") || result="rows differ"
    sums_agree $((6000 + number)) || result="pgbench's sums differ"
    if ! shop_as_postgres "$shop_pg_bin/pg_amcheck" -h "$shop_dir/run" -p $((6000 + number)) --install-missing --heapallindexed \
        --database=postgres >"$shop_dir/log/amcheck-$number.log" 2>&1; then
        result="pg_amcheck complains"
        cat "$shop_dir/log/amcheck-$number.log"
    fi
    if grep -E 'PANIC|ERROR|corrupt|invalid page|checksum|could not (read|open|access|locate)|unexpected' "$log"; then
        result="its log complains"
    fi
    echo "$result: $3: $counts open_ms=$shop_open_ms start_ms=$shop_start_ms $(grep -o 'not properly shut down' "$log" || true)"
    [[ $result == ok ]] || failed=$((failed + 1))
    shop_close "$number" "$shop_view"
}

shop_check_machine || exit 77
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

echo "seed $seed"
shop_begin postgres
shop_write_files
shop_tidemark apply -q -f "$shop_dir/app/shop.yaml"
shop_create_database
tags=()
load_begun=$(shop_now_ns)
shop_start_load
shop_wait_rows 1
note_tags
shop_notes await-ns $((load_begun + seconds * 1000000000))
shop_stop_recorder
echo "$(shop_rows) rows"
while read -r ns; do
    check_moment "$ns" "$ns" "$(shop_notes time "$ns")"
done < <(shop_notes moments "$shop_dir/notes" "$moments" "$seed")
for tag in "${tags[@]}"; do
    read -r low high point <<<"$tag"
    check_moment "$low" "$high" "$point"
done
shop_stop_load
echo "$number moments, $failed failed (seed $seed)"
((failed == 0 && number == moments + 3))
