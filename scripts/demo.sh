#!/usr/bin/env bash
# Shows what DMCE is for: a 32-bit program holds more bytes of real files than it could address, in
# the memory of three daemons, and checks every one of them.
#
#   scripts/demo.sh                what `make demo` runs, after `make build`
#
#   DMCE_DEMO_GIB=5                how many GiB are held
#   DMCE_DEMO_FILES=/usr           the files that they come from, again and again if there are fewer
#
# Where no 32-bit program can be built it says so, and runs the 64-bit one with 3 GiB of address
# space. All that it makes is removed when it ends, however it ends.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
target=${CARGO_TARGET_DIR:-$root/target}
dmce=$target/release/dmce
gib=${DMCE_DEMO_GIB:-5}
files=${DMCE_DEMO_FILES:-/usr}

DAEMONS=3
CAPACITY=3GiB
ADDRESS_SPACE_KIB=$((3 * 1024 * 1024))

# shellcheck source=scripts/scratch.sh
source "$root/scripts/scratch.sh"

# compile LIBRARIES FLAG..: builds hold against the shared library in that folder.
compile() {
    local libraries=$1
    shift
    cc "$@" -std=c99 -O2 -Wall -Wextra -pedantic -Iinclude examples/c/hold.c \
        -o "$scratch/hold" -L "$libraries" -ldmce "-Wl,-rpath,$libraries"
}

# Full shared memory would be told by dmce_malloc as well, but only after minutes of storing.
check_room() {
    local wanted_kib free_kib
    wanted_kib=$(awk -v gib="$gib" 'BEGIN { printf "%d", (gib + 0.5) * 1024 * 1024 }')
    free_kib=$(df --output=avail -k /dev/shm | tail -n 1)
    if ((free_kib < wanted_kib)); then
        echo "demo: /dev/shm has $((free_kib / 1024)) MiB, $((wanted_kib / 1024)) are needed;" \
            "make it larger (mount -o remount,size=8G /dev/shm) or set DMCE_DEMO_GIB" >&2
        exit 1
    fi
}

# In the background, because a shell that waits for a program in the foreground hears no signal.
hold() {
    local look="echo; '$dmce' blocks; echo; '$dmce' daemons"
    ("${limits[@]}" && exec "$scratch/hold" --gib "$gib" --then "$look" "$files") &
    background=$!
    wait "$background"
    background=
}

check_room
title "a program that knows nothing but libdmce.h: examples/c/hold.c"
if make --no-print-directory i386 && compile "$target/i686-unknown-linux-gnu/release" -m32; then
    limits=(true)
else
    echo "demo: this host builds no 32-bit programs, so the 64-bit one runs, with at most" \
        "$((ADDRESS_SPACE_KIB / 1024)) MiB of address space" >&2
    compile "$target/release"
    limits=(ulimit -v "$ADDRESS_SPACE_KIB")
    export DMCE_WINDOW_BUDGET=256MiB
fi
file -b "$scratch/hold" 2>/dev/null || readelf -h "$scratch/hold" | grep -E 'Class|Machine'

title "three daemons, $CAPACITY each"
"$dmce" up --dir "$instance" --daemons "$DAEMONS" --capacity "$CAPACITY"
export DMCE_SOCKET=$instance/broker.sock
"$dmce" daemons

title "$gib GiB from $files"
hold
