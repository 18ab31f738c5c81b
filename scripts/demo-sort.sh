#!/usr/bin/env bash
# Shows what the C++ interface is for: a 32-bit program sorts more bytes of real files than it can
# address, between two vectors in the memory of four daemons, and proves the result.
#
#   scripts/demo-sort.sh           what `make demo-sort` runs, after `make build i386`
#
#   DMCE_DEMO_GIB=4.25             how many GiB are sorted; twice as much is held
#   DMCE_DEMO_FILES=/usr           the files that they come from, again and again if there are fewer
#
# All that it makes is removed when it ends, however it ends.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
target=${CARGO_TARGET_DIR:-$root/target}
dmce=$target/release/dmce
libraries=$target/i686-unknown-linux-gnu/release
gib=${DMCE_DEMO_GIB:-4.25}
files=${DMCE_DEMO_FILES:-/usr}

DAEMONS=4
CAPACITY=3GiB

# shellcheck source=scripts/scratch.sh
source "$root/scripts/scratch.sh"

# Full shared memory would be told by the vector as well, but only after the files were read.
check_room() {
    local wanted_kib free_kib
    wanted_kib=$(awk -v gib="$gib" 'BEGIN { printf "%d", (gib * 2 + 0.5) * 1024 * 1024 }')
    free_kib=$(df --output=avail -k /dev/shm | tail -n 1)
    if ((free_kib < wanted_kib)); then
        echo "demo-sort: /dev/shm has $((free_kib / 1024)) MiB, $((wanted_kib / 1024)) are" \
            "needed; make it larger (mount -o remount,size=12G /dev/shm) or set DMCE_DEMO_GIB" >&2
        exit 1
    fi
}

check_room
title "a program that knows nothing but libdmce.hpp: examples/cpp/sort.cpp"
c++ -m32 -std=c++17 -O2 -Wall -Wextra -pedantic -Iinclude examples/cpp/sort.cpp \
    -o "$scratch/sort" -L "$libraries" -ldmce "-Wl,-rpath,$libraries"
readelf -h "$scratch/sort" | grep -E 'Class|Machine'

title "$DAEMONS daemons, $CAPACITY each"
"$dmce" up --dir "$instance" --daemons "$DAEMONS" --capacity "$CAPACITY"
export DMCE_SOCKET=$instance/broker.sock

title "$gib GiB from $files"
# In the background, because a shell that waits for a program in the foreground hears no signal.
"$scratch/sort" --gib "$gib" "$files" &
background=$!
wait "$background"
background=
