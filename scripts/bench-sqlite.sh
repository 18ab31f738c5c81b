#!/usr/bin/env bash
# Measures SQLite on DMCE against SQLite on the shared memory file system: the stock shell, the same
# statements, page size and cache, one after the other, again and again.
#
#   scripts/bench-sqlite.sh [ROUNDS]       what `make bench-sqlite` runs, after `make build`
#
# Prints a table: what was done, the median of the times of both, and the median of the ratios with
# the smallest and the largest. A ratio above 1 means that DMCE is faster. The work is of the kind
# that SQLite's own speedtest1 does.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
target=${CARGO_TARGET_DIR:-$root/target}
dmce=$target/release/dmce
rounds=${1:-7}

# shellcheck source=scripts/scratch.sh
source "$root/scripts/scratch.sh"
shared=$(mktemp -d -p /dev/shm dmce-bench-sqlite.XXXXXX)
folders+=("$shared")

# One statement or script a step; each is timed as a whole.
steps() {
    cat <<'SQL'
30000 inserts, one transaction|insert
8000 inserts, a transaction each|autocommit
4 indexes are made|index
200 scans for a text|scan
20000 look-ups by an index|lookup
3000 ranges by an index|range
5000 updates, a transaction each|update
an update of every row|update-all
a delete of half, and a rollback|rollback
a delete of half|delete
a vacuum|vacuum
an integrity check|check
SQL
}

statements() {
    awk -v step="$1" 'function number(n) { seed = (seed * 1103515245 + 12345) % 2147483648
                                           return int(seed / 65536) % n }
        function text() { return "row " number(32768) " of " number(32768) " has a text" }
        function row(n) { return "insert into t values(" n "," number(30000) ",'\''" text() "'\'',\
            zeroblob(100 + " number(900) "));" }
        BEGIN {
            seed = length(step) * 7919 + 17
            if (step == "insert") {
                print "create table t(a integer primary key, b integer, c text, d blob);"
                print "begin;"; for (n = 1; n <= 30000; n++) print row(n); print "commit;" }
            if (step == "autocommit") for (n = 30001; n <= 38000; n++) print row(n)
            if (step == "index") print "create index tb on t(b); create index tc on t(c);\
                create index tbc on t(b, c); create index tcb on t(c, b);"
            if (step == "scan") for (n = 0; n < 200; n++)
                print "select count(*), avg(length(d)) from t not indexed where c like '\''%" \
                    number(32768) "%'\'';"
            if (step == "lookup") for (n = 0; n < 20000; n++)
                print "select length(d) from t where a = " 1 + number(32767) ";"
            if (step == "range") for (n = 0; n < 3000; n++) { low = number(29000)
                print "select count(*), sum(length(d)) from t where b between " low \
                    " and " low + 100 ";" }
            if (step == "update") for (n = 0; n < 5000; n++)
                print "update t set b = " number(30000) " where a = " 1 + number(32767) ";"
            if (step == "update-all") print "update t set b = b + 1, d = zeroblob(length(d) + 1);"
            if (step == "rollback") print "begin; delete from t where a % 2 = 0; rollback;"
            if (step == "delete") print "delete from t where a % 2 = 0;"
            if (step == "vacuum") print "vacuum;"
            if (step == "check") print "pragma integrity_check;" }'
}

# run WHERE: does all steps, and prints the seconds of each.
run() {
    local open step
    case $1 in
        dmce) open=$'.load '"$scratch/vfs.so"$'\n.open file:bench.db?vfs=dmce' ;;
        unix) open=".open $shared/bench.db" ;;
    esac
    {
        printf '%s\n' "$open"
        echo 'pragma page_size = 4096; pragma cache_size = -2000; pragma mmap_size = 0;'
        echo '.output /dev/null'
        while IFS='|' read -r _ step; do
            echo '.once /dev/null'
            echo ".shell date +%s.%N >>$scratch/times-$1"
            echo ".read $scratch/$step.sql"
        done < <(steps)
        echo ".shell date +%s.%N >>$scratch/times-$1"
        echo 'drop table t; vacuum;'
    } | sqlite3 -batch -bail >/dev/null
    awk 'NR > 1 { print $1 - last } { last = $1 }' "$scratch/times-$1"
    rm -f "$scratch/times-$1" "$shared"/bench.db*
}

scripts/sqlite-vfs.sh "$target/release" "$scratch/vfs.so"
"$dmce" up --dir "$instance" >/dev/null
export DMCE_SOCKET=$instance/broker.sock
while IFS='|' read -r _ step; do
    statements "$step" >"$scratch/$step.sql"
done < <(steps)

# The first round warms up and is not counted. Who begins takes turns.
for ((round = 0; round <= rounds; round++)); do
    order=(dmce unix)
    ((round % 2)) && order=(unix dmce)
    for where in "${order[@]}"; do
        run "$where" >"$scratch/$where-$round"
        ((round == 0)) || cat "$scratch/$where-$round" | paste -sd' ' >>"$scratch/all-$where"
    done
done
paste -d'|' <(steps | cut -d'|' -f1 | paste -sd'|' | tr '|' '\n'; echo 'all of it') \
    /dev/null >"$scratch/labels"
paste -d' ' "$scratch/all-dmce" "$scratch/all-unix" | awk -v labels="$scratch/labels" '
    function median(list, count,   i, j, key) {
        for (i = 2; i <= count; i++) { key = list[i]
            for (j = i - 1; j > 0 && list[j] > key; j--) list[j + 1] = list[j]
            list[j + 1] = key }
        return (list[int((count + 1) / 2)] + list[int(count / 2) + 1]) / 2 }
    BEGIN { while ((getline line < labels) > 0) { sub(/\|$/, "", line); label[++steps] = line } }
    { count = NF / 2; total_ours = total_theirs = 0
      for (i = 1; i <= count; i++) {
          ours[i, NR] = $i; theirs[i, NR] = $(i + count)
          total_ours += $i; total_theirs += $(i + count) }
      ours[count + 1, NR] = total_ours; theirs[count + 1, NR] = total_theirs }
    END { print "| what | DMCE | shared memory file system | ratio | spread |"
          print "|---|---|---|---|---|"
          for (i = 1; i <= count + 1; i++) {
              for (n = 1; n <= NR; n++) {
                  a[n] = ours[i, n]; b[n] = theirs[i, n]; r[n] = b[n] / a[n] }
              ratio = median(r, NR)
              printf "| %s | %.1f ms | %.1f ms | %.2fx | %.2fx .. %.2fx |\n", label[i],
                  1000 * median(a, NR), 1000 * median(b, NR), ratio, r[1], r[NR] } }'
