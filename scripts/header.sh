#!/usr/bin/env bash
# Keeps include/libdmce.h and ffi/symbols.txt equal to what the Rust source says.
#
#   scripts/header.sh write LIBRARY   makes both anew
#   scripts/header.sh check LIBRARY   fails where they differ, or where the header does not compile
#
# LIBRARY is a libdmce.so of the same source.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# Another version may format the header differently, so it is pinned.
CBINDGEN_VERSION=0.29.4
cbindgen=target/tools/bin/cbindgen
header=include/libdmce.h
symbols=ffi/symbols.txt

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

usage() {
    echo "usage: $0 write|check LIBRARY" >&2
    exit 2
}

die() {
    echo "header: $1" >&2
    exit 1
}

# Without optimisation cbindgen itself builds in a third of the time, and runs in a blink anyway.
install_cbindgen() {
    [[ $("$cbindgen" --version 2>/dev/null) == "cbindgen $CBINDGEN_VERSION" ]] && return
    echo "header: installing cbindgen $CBINDGEN_VERSION into target/tools" >&2
    env -u RUSTFLAGS CARGO_TARGET_DIR=target/tools/build \
        cargo install -q --debug --locked --root target/tools "cbindgen@$CBINDGEN_VERSION"
    rm -rf target/tools/build
}

generate_header() {
    install_cbindgen
    "$cbindgen" ffi --quiet --config ffi/cbindgen.toml --output "$1"
}

exported_symbols() {
    nm -D --defined-only "$1" | awk '$2 != "A" { print $3 }' | LC_ALL=C sort
}

# The compiler itself lists the functions that the header declares.
declared_functions() {
    echo '#include "libdmce.h"' >"$scratch/declared.c"
    gcc -Iinclude -aux-info "$scratch/declared" -fsyntax-only "$scratch/declared.c"
    sed -n '/libdmce\.h:/ s/.* extern [^(]*[ *]\(dmce_[a-z0-9_]*\) (.*/\1/p' \
        "$scratch/declared" | LC_ALL=C sort -u
}

# same COMMITTED FRESH
same() {
    [[ -e $1 ]] || die "$1 is missing: run 'make header' and commit it"
    diff -u --label "$1" --label "$1, from the source" "$1" "$2" >&2 ||
        die "$1 is out of date: run 'make header' and commit it"
}

# compiles COMPILER LANGUAGE FILE FLAG..
compiles() {
    local compiler=$1 language=$2 file=$3 width
    shift 3
    # Twice, because a program may include it by two ways.
    printf '#include "%s"\n#include "%s"\n' "$file" "$file" >"$scratch/twice.$language"
    for width in -m64 -m32; do
        "$compiler" "$width" "$@" -Wall -Wextra -pedantic -Werror -Iinclude -fsyntax-only \
            "$scratch/twice.$language" || die "include/$file: $compiler $width $* refuses it"
    done
}

write() {
    mkdir -p include
    generate_header "$header"
    exported_symbols "$1" >"$symbols"
}

check() {
    local compiler
    # Apart from the files that include the header, or they would find this one first.
    mkdir "$scratch/fresh"
    generate_header "$scratch/fresh/libdmce.h"
    same "$header" "$scratch/fresh/libdmce.h"
    exported_symbols "$1" >"$scratch/symbols"
    same "$symbols" "$scratch/symbols"
    declared_functions >"$scratch/functions"
    diff -u --label "$symbols" --label "functions of $header" "$symbols" "$scratch/functions" >&2 ||
        die "the library exports other functions than the header declares"
    compiles gcc c libdmce.h -std=c99
    compiles gcc c libdmce.h -std=c17
    compiles g++ cpp libdmce.h -std=c++11
    compiles g++ cpp libdmce.h -std=c++20
    for compiler in g++ clang++; do
        # Whoever tests has both (scripts/requirements.sh); who only builds may have one.
        command -v "$compiler" >/dev/null || continue
        compiles "$compiler" cpp libdmce.hpp -std=c++17 -Wconversion -Wshadow
        compiles "$compiler" cpp libdmce.hpp -std=c++20 -Wconversion -Wshadow
    done
}

[[ $# -eq 2 ]] || usage
[[ -e $2 ]] || die "$2 is missing: build it first"
case $1 in
    write) write "$2" ;;
    check) check "$2" ;;
    *) usage ;;
esac
