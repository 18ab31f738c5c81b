#!/usr/bin/env bash
# Builds examples/c/sqlite_vfs as an extension that the stock sqlite3 shell loads:
#
#   scripts/sqlite-vfs.sh LIBRARIES OUTPUT [FLAG..]
#
# LIBRARIES is the folder of libdmce.so. A FLAG of -m32 builds it for 32-bit programs.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
libraries=$(realpath "${1:?usage: $0 LIBRARIES OUTPUT [FLAG..]}")
output=${2:?usage: $0 LIBRARIES OUTPUT [FLAG..]}
shift 2
"${CC:-cc}" "$@" -shared -fPIC -std=gnu11 -O2 -Wall -Wextra -I"$root/include" \
    "$root"/examples/c/sqlite_vfs/*.c -o "$output" \
    -L "$libraries" -ldmce -lpthread "-Wl,-rpath,$libraries"
