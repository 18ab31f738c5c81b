#!/usr/bin/env bash
# Shows what the SQLite extension is for: the stock 32-bit sqlite3 shell of Debian fills a database
# in DMCE memory until it is larger than all that the shell can address, while a 64-bit shell reads
# it; then the database is checked, and asked the same as the same database on a disk.
#
#   scripts/demo-sqlite.sh         what `make demo-sqlite` runs, after `make build i386`
#
#   DMCE_DEMO_GIB=4.25             how large the database becomes
#   DMCE_DEMO_DISK=/tmp            where the database on a disk is made, of the same size
#
# The data are the package indices of this host's own apt, again and again. All that it makes is
# removed when it ends, however it ends.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
target=${CARGO_TARGET_DIR:-$root/target}
dmce=$target/release/dmce
gib=${DMCE_DEMO_GIB:-4.25}
wanted=$(awk -v gib="$gib" 'BEGIN { printf "%.0f", gib * 1024 * 1024 * 1024 }')

DAEMONS=3
CAPACITY=3GiB

# shellcheck source=scripts/scratch.sh
source "$root/scripts/scratch.sh"
mkdir -p "${DMCE_DEMO_DISK:-/tmp}"
disk=$(mktemp -d -p "${DMCE_DEMO_DISK:-/tmp}")
folders+=("$disk")

die() {
    echo "demo-sqlite: $*" >&2
    exit 1
}

# The shells: a command each, and the lines that bring them to the database.
shell64=(sqlite3 -batch -bail)
shell32_command=$(scripts/sqlite-i386.sh "$target/sqlite-i386")
eval "shell32=($shell32_command -batch -bail)"
in_dmce() {
    printf '.load %s\n.open file:packages.db?vfs=dmce\n.timeout 60000\n' "$scratch/$1"
}
on_disk() {
    printf '.open %s\npragma synchronous = off;\n' "$disk/packages.db"
}

check_room() {
    local kib=$((wanted / 1024))
    (($(df --output=avail -k /dev/shm | tail -n 1) > kib + 600000)) ||
        die "/dev/shm has not $((kib / 1024)) MiB; make it larger or set DMCE_DEMO_GIB"
    (($(df --output=avail -k "$disk" | tail -n 1) > kib + 600000)) ||
        die "$disk has not $((kib / 1024)) MiB; set DMCE_DEMO_DISK or DMCE_DEMO_GIB"
}

# The stanzas of all packages that apt knows, as CSV: what is asked for, and the whole text.
packages_as_csv() {
    apt-cache dumpavail | awk '
        function quoted(text) { gsub(/"/, "\"\"", text); return "\"" text "\"" }
        BEGIN { RS = ""; FS = "\n"
                split("Package Version Section Priority Installed-Size Size", names, " ") }
        { split("", field)
          for (i = 1; i <= NF; i++)
              if ((colon = index($i, ": ")) > 1)
                  field[substr($i, 1, colon - 1)] = substr($i, colon + 2)
          line = ""
          for (i = 1; i <= 6; i++) line = line quoted(field[names[i]]) ","
          print line quoted($0) }'
}

# SQL for so many rounds of the data, from one on, each a transaction.
rounds() {
    local round
    for ((round = $1; round < $1 + $2; round++)); do
        echo "insert into package select $round, name, version, section, priority," \
            "installed_kib, bytes, stanza from package where round = 0;"
    done
}

first_round() {
    cat <<SQL
create table package(round integer, name text, version text, section text, priority text,
    installed_kib integer, bytes integer, stanza text);
create index package_round on package(round, section);
create temp table stock(name, version, section, priority, installed_kib, bytes, stanza);
.import --csv $scratch/packages.csv stock
insert into package select 0, * from stock;
drop table stock;
SQL
}

bytes_of_database() {
    echo "select page_count * page_size from pragma_page_count, pragma_page_size;"
}

queries() {
    cat <<'SQL'
select count(*), count(distinct round), sum(length(stanza)) from package;
select section, count(*), sum(installed_kib), max(bytes) from package where round in (1, 7)
    group by section order by section;
select name, version, bytes from package where round = 3 order by bytes desc, name limit 20;
select section, a.n, b.n from (select section, count(*) n from package where round = 5 group by 1) a
    join (select section, sum(bytes) n from package where round = 2 group by 1) b using (section)
    order by 1;
select priority, avg(length(stanza)) from package where stanza like '%sqlite%'
    group by priority order by 1;
SQL
}

check_room
title "the extension, for both widths: examples/c/sqlite_vfs"
scripts/sqlite-vfs.sh "$target/release" "$scratch/vfs64.so"
scripts/sqlite-vfs.sh "$target/i686-unknown-linux-gnu/release" "$scratch/vfs32.so" -m32
"${shell32[@]}" :memory: "select 'a 32-bit shell, SQLite ' || sqlite_version();"
readelf -h "${shell32[2]}" | grep -E 'Class|Machine'

title "three daemons, $CAPACITY each"
"$dmce" up --dir "$instance" --daemons "$DAEMONS" --capacity "$CAPACITY"
export DMCE_SOCKET=$instance/broker.sock

packages_as_csv >"$scratch/packages.csv"
[[ -s $scratch/packages.csv ]] || die "apt knows no packages; run apt-get update"

csv_mib=$(($(stat -c %s "$scratch/packages.csv") >> 20))
title "the 32-bit shell loads $csv_mib MiB of package indices"
{ in_dmce vfs32.so && first_round && echo 'select count(*) from package;' && bytes_of_database; } |
    "${shell32[@]}" >"$scratch/first"
mapfile -t first <"$scratch/first"
packages=${first[0]} once=${first[1]}
more=$(((wanted + once - 1) / once))
echo "$packages packages, $((once >> 20)) MiB; $more times more to come"

title "the 32-bit shell writes on, and a 64-bit shell reads at the same time"
{
    in_dmce vfs32.so
    rounds 1 "$more"
    bytes_of_database
    # Of the shell itself, which is the parent of the command.
    echo ".shell grep -e VmPeak -e VmHWM /proc/\$PPID/status"
} | "${shell32[@]}" >"$scratch/written" &
background=$!
began=$(date +%s)
# Each look is a transaction of its own: a round is there as a whole, or not at all.
{
    in_dmce vfs64.so
    while kill -0 "$background" 2>/dev/null; do
        echo "select max(round), (select count(*) from package p where p.round =" \
            "(select max(round) from package)) from package;"
    done
} | "${shell64[@]}" >"$scratch/seen"
wait "$background"
background=
took=$(($(date +%s) - began))
mapfile -t written <"$scratch/written"
awk -F'|' -v packages="$packages" '
    $2 != packages || $1 < last { print "a look saw " $0; wrong = 1 }
    { last = $1; looks++; rounds[$1] = 1 }
    END { print looks " looks by the 64-bit shell, at " length(rounds) " states; none was torn"
          exit wrong || looks == 0 }' "$scratch/seen" || die "the 64-bit shell saw what never was"
echo "the database has ${written[0]} bytes ($((written[0] >> 20)) MiB), written in $took s"
printf 'the 32-bit shell: %s\n' "${written[@]:1}"
((written[0] > 1 << 32)) || [[ -n ${DMCE_DEMO_GIB:-} ]] || die "it is not larger than 4 GiB"
"$dmce" daemons

title "pragma integrity_check, by the 32-bit shell"
{ in_dmce vfs32.so && echo 'pragma integrity_check;'; } | "${shell32[@]}" | tee "$scratch/integrity"
[[ $(<"$scratch/integrity") == ok ]] || die "the database is damaged"

title "the same database on a disk, and the same queries"
{ on_disk && first_round && rounds 1 "$more" && bytes_of_database; } |
    "${shell64[@]}" >"$scratch/on-disk"
{ in_dmce vfs32.so && queries; } | "${shell32[@]}" >"$scratch/answers32"
{ in_dmce vfs64.so && queries; } | "${shell64[@]}" >"$scratch/answers64"
{ on_disk && queries; } | "${shell64[@]}" >"$scratch/answers-disk"
cmp "$scratch/answers32" "$scratch/answers-disk" || die "the 32-bit shell's answers differ"
cmp "$scratch/answers64" "$scratch/answers-disk" || die "the 64-bit shell's answers differ"
echo "$(wc -l <"$scratch/answers-disk") lines of answers, equal from 32 bits, 64 bits and the disk:"
head -n 3 "$scratch/answers-disk"
