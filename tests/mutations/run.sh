#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Takes one safeguard out at a time, in a copy of the sources, and expects a named test to fail: a test that does not
# notice is no test. Prints a line for each; non-zero if one went unnoticed.
#   tests/mutations/run.sh [NAME...]
# MUTATION_SHARES=N: only each Nth, from that on which TIDEMARK_SEED says: the time of a run that has others to do. `make soak` takes all.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d /var/tmp/tidemark-mutations-XXXXXX)
trap 'rm -rf "$work"' EXIT
passed=0
failed=0
known=0
declare -A sound=()

cp -r "$root"/{src,tests,bench,docs,api,meson.build,meson_options.txt,LICENSE} "$work/" 2>/dev/null
for extra in packaging scripts demo README.md; do
    [[ -e $root/$extra ]] && cp -r "$root/$extra" "$work/"
done
meson setup "$work/build" "$work" -Dwerror=false >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }

# build PROGRAM: of what was put back since, too
build() {
    ninja -C "$work/build" "$1" >"$work/log" 2>&1
}

# with_seed TRY COMMAND...: where a seed is given, each try has another one
with_seed() {
    local try=$1
    shift
    [[ -z ${TIDEMARK_SEED:-} ]] || export TIDEMARK_SEED=$((TIDEMARK_SEED + try * 1000))
    "$@"
}

# mutation NAME FILE SED-EXPRESSION TEST [ARGUMENT...]: tried up to three times, since a race shows by chance.
mutation() {
    local name=$1 file=$2 expression=$3
    shift 3
    if ((${#wanted[@]})) && [[ ! " ${wanted[*]} " == *" $name "* ]]; then
        return
    fi
    ((++known % ${MUTATION_SHARES:-1} == ${TIDEMARK_SEED:-0} % ${MUTATION_SHARES:-1})) || return 0
    if [[ -z ${sound[$*]:-} ]]; then # unchanged, the test has to pass
        build "$1" || { cat "$work/log"; exit 1; }
        if ! (cd "$work/build" && timeout 900 "$@" >"$work/log" 2>&1); then
            tail -n 20 "$work/log"
            echo "$name: $(basename "$1") fails without any mutation"
            failed=$((failed + 1))
            return
        fi
        sound[$*]=yes
    fi
    cp "$work/$file" "$work/original"
    sed -i -E "$expression" "$work/$file"
    if cmp -s "$work/$file" "$work/original"; then
        echo "$name: the expression changes nothing in $file: mend tests/mutations/run.sh"
        failed=$((failed + 1))
        return
    fi
    local noticed=no
    if ! build "$1"; then
        cat "$work/log"
        noticed="no: it does not build"
    else
        for try in 0 1 2; do
            if ! (cd "$work/build" && with_seed "$try" timeout 900 "$@" >"$work/log" 2>&1); then
                noticed=yes
                break
            fi
        done
    fi
    echo "$name: noticed by $(basename "$1"): $noticed"
    if [[ $noticed == yes ]]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    cp "$work/original" "$work/$file"
    touch "$work/$file"
}

wanted=("$@")
mutation range-lock src/volume/range_lock.c \
    's/if \(r->volume == want->volume \&\& r->lba < want->end.*/if (false)/' tests/sim/test_order stress write
mutation payload-crc src/journal/payload.c \
    's/if \(crc32c\(0, data \+ .*\) != le32_get\(crcs\[i\]\)\)/if (false)/' tests/unit/journal/test_journal_damage test_sealed
mutation in-flight-table src/volume/group.c \
    's/for \(size_t i = 0; i < rec->in_flight_count; i\+\+\)/for (size_t i = 0; i < 0 * rec->in_flight_count; i++)/' \
    tests/sim/test_history --histories 150 --seed 1
mutation compare-after-power-loss src/journal/recovery.c \
    's/rec->compare = !usable \|\|/rec->compare = false \&\&/' tests/sim/test_history --histories 150 --seed 1
mutation intent-flush src/volume/intent.c \
    's/if \(r == 0 \&\& fdatasync\(in->fd\) < 0\)/if (false)/' tests/sim/test_power random --histories 40
mutation compare-after-gap src/volume/group.c \
    's/        r = journal_resume\(g->journal, err\);/        r = journal_resume(g->journal, err); if (r == 0) { pthread_rwlock_unlock(\&g->gate); pthread_mutex_unlock(\&g->rewind_mutex); return 0; }/' \
    tests/sim/test_fault availability
mutation flush-answered-by-an-older-one src/volume/flush.c \
    's/return s->submitted < s->begun \? s->begun : s->begun \+ 1;/return s->begun > s->ended ? s->begun : s->begun + 1;/' tests/unit/volume/test_volume_flush
mutation failed-flush-forgotten src/volume/flush.c 's/!atomic_exchange\(\&v->failed, true\)/false/' tests/unit/volume/test_volume_flush
mutation worker-flush-forgotten src/volume/grains.c \
    's/r = volume_flush_backing\(\&g->volumes\[i\], err\);.*/r = block_flush(g->volumes[i].backing, err);/' tests/unit/volume/test_volume_flush
# Adopted volumes: the before-image, what a lost one refuses, and that a kill does not forget it.
mutation before-image src/volume/grains.c \
    's/if \(seed_before_write\(v, grain, err\) < 0 \|\| covered/if (covered/' tests/sim/test_history --adopt --histories 60 --seed 1
mutation before-image-lost src/volume/seed.c \
    's/low->n = m\.volumes\[k\]\.created\.n - 1;/low->n = low->n;/' tests/sim/test_history --adopt --histories 60 --seed 1
mutation before-image-lost-and-killed src/volume/seed.c \
    's/live_words_trust\(\&v->seed\.live, false\); \/\* a kill must not forget it \*\//;/' tests/unit/volume/test_volume_unclean \
    a_lost_before_image_is_remembered_after_a_kill
# What an opening owes.
mutation comparison-owed src/volume/group.c 's/if \(!g->abandoned && g->recovered\)/if (!g->abandoned)/' \
    tests/unit/volume/test_volume_unclean a_comparison_is_owed_after_a_start_that_failed
mutation recovery-owed src/journal/recovery.c 's/, usable \|\| !j->recovered\);/, false);/' \
    tests/unit/volume/test_volume_unclean in_flight_writes_are_remembered_after_a_start_that_was_killed
mutation late-writes-backing src/block/file.c 's/r == -EBUSY && waited_ms < wait_ms/false \&\& waited_ms < wait_ms/' \
    tests/unit/volume/test_volume_unclean a_start_waits_for_the_last_writes_to_a_backing
mutation late-writes-segment src/journal/recovery.c 's/int awaited = segment_await\(path, fd, err\);/int awaited = 0;/' \
    tests/unit/volume/test_volume_unclean a_start_waits_for_the_last_writes_to_a_segment
# Rewinds.
mutation rescue-ended src/journal/maintain.c 's/d\.repair_rescue = rescue_is_unfinished\(j\);/d.repair_rescue = false;/' tests/unit/journal/test_journal_rescue
mutation abandoned-rewind src/volume/rewind.c 's/^    if \(w->latest\)$/    if (w->latest \&\& !g->stale_image)/' \
    tests/unit/volume/test_volume_unclean a_rewind_that_fails_changes_nothing_while_another_is_copied_back
mutation rescue-dropped src/journal/maintain.c 's/, \.repair_rescue = rescue_is_unfinished\(j\)//' tests/unit/journal/test_journal_rescue
mutation renewed-base src/journal/maintain.c 's/manifest_size_at\(&d->m, v, lsn\), err\);/0, err);/' tests/unit/journal/test_journal_drop
mutation rewind-in-drop src/journal/maintain.c 's/if \(r == 0 && finish_drop\(j, err\) < 0\)/if (false \&\& finish_drop(j, err) < 0)/' tests/unit/journal/test_journal_rescue
mutation stale-killed src/volume/stale.c 's/else if \(valid && kept\)$/else if (false \&\& valid \&\& kept)/' \
    tests/unit/volume/test_volume_unclean an_unjournaled_write_over_a_rewind_survives_a_kill
mutation stale-newer src/volume/stale.c 's/>= v->group->rewind_lsn\.n/== v->group->rewind_lsn.n/' \
    tests/unit/volume/test_volume_unclean an_unjournaled_write_after_a_rewind_that_failed_survives_a_kill
mutation stale-owed src/volume/flush.c 's/r == 0 && atomic_load\(&v->group->pending_owed\)/false/' \
    tests/unit/volume/test_volume_unclean an_unjournaled_write_over_a_rewind_survives_a_loss_of_power_once_journaling_goes_on
mutation stale-beside src/volume/stale_beside.c 's/!stale_bit\(bits, grain\)/false/' \
    tests/unit/volume/test_volume_unclean a_flush_needs_nothing_of_the_journal
# Clones that are used before they are copied.
mutation fill-map-saved src/volume/fill.c 's/return v->fill \? save\(v->fill, false, false, err\) : 0;/(void)v, (void)err; return 0;/' \
    tests/sim/test_fill --histories 1
mutation fill-copies-up src/volume/fill.c 's/int r = !whole_first \|\| .*/int r = 0;/' tests/sim/test_fill --histories 4
mutation fill-killed src/volume/fill.c 's/bool live = valid && !rec->compare_all;/bool live = false \&\& valid \&\& !rec->compare_all;/' \
    tests/sim/test_fill --histories 20
mutation fill-pin-looked-for src/volume/fill.c 's/if \(r == 0 && access\(pin, F_OK\) < 0\)/if (false)/' tests/sim/test_fill --histories 20
mutation kept-pin-durable src/journal/pin.c 's/if \(r == 0 && kept\)/if (false)/' tests/sim/test_power pin --histories 1
mutation kept-pin-floor src/journal/pin.c 's/\(pins\[i\]\.name\) && !is_held\(j, pins\[i\]\.name\)/(pins[i].name) \&\& !lock_is_held(j, pins[i].name)/' \
    tests/sim/test_fill --histories 4
# Ends in the middle of steps that change several files.
mutation strays-before-manifest src/journal/recovery.c 's/^    r = sealer_save\(j, err\);$/    remove_strays(j), r = sealer_save(j, err);/' \
    tests/sim/test_kill start --seed 1
mutation pins-left src/journal/pin.c 's/^    remove_leftovers\(j, path\);$/    (void)remove_leftovers;/' tests/sim/test_kill pin --seed 1 --stride 4
mutation maps-left src/volume/seed.c 's/^            forget_maps\(v\);$/            (void)forget_maps;/' tests/sim/test_kill adopt --seed 1 --stride 4
mutation dropped-before-manifest src/journal/maintain.c 's/^        r = sealer_change\(j, forget_dropped, d, err\);$/        remove_dropped(d), r = sealer_change(j, forget_dropped, d, err);/' \
    tests/sim/test_kill drop --seed 1 --stride 2
echo "$passed passed, $failed failed"
((failed == 0))
