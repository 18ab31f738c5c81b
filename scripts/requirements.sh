#!/usr/bin/env bash
# Checks what a make target needs on this host, and installs what is missing where it may:
#
#   scripts/requirements.sh build|demo|sort|sqlite|test|bench|fuzz
#
# Says nothing when all is there. Where it may not install, it prints the command that does and
# returns 3. What i386 programs need is checked by scripts/i386-toolchain.sh.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/apt.sh
source "$root/scripts/apt.sh"

purpose=${1:-build}
case $purpose in
    build | demo | sort | sqlite | test | bench | fuzz) ;;
    *)
        echo "usage: $0 build|demo|sort|sqlite|test|bench|fuzz" >&2
        exit 2
        ;;
esac

# A Rust toolchain is not a Debian package that is new enough, so it is asked for, not installed.
rust_wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$root/Cargo.toml")
if ! command -v cargo >/dev/null || ! rust_found=$(rustc --version 2>/dev/null); then
    echo "missing: Rust $rust_wanted or later; install it with rustup, see https://rustup.rs" >&2
    exit 3
fi
rust_found=$(cut -d' ' -f2 <<<"$rust_found")
if [[ $(printf '%s\n' "$rust_wanted" "$rust_found" | sort -V | head -n 1) != "$rust_wanted" ]]; then
    echo "Rust is $rust_found, $rust_wanted is needed; run:" >&2
    echo "    rustup update stable" >&2
    exit 3
fi

missing=()

# need COMMAND PACKAGE..
need() {
    local command=$1
    shift
    command -v "$command" >/dev/null || missing+=("$@")
}

# A compiler without the headers of libc is as good as none, so one header is included.
compiles() {
    echo '#include <stdio.h>' | "$1" -x "$2" -fsyntax-only - 2>/dev/null
}

need make make
compiles cc c || missing+=(gcc libc6-dev)
if [[ $purpose == sqlite || $purpose == test ]]; then
    need sqlite3 sqlite3
    echo '#include <sqlite3ext.h>' | cc -x c -fsyntax-only - 2>/dev/null ||
        missing+=(libsqlite3-dev)
fi
if [[ $purpose == sort ]]; then
    need readelf binutils
fi
if [[ $purpose == test ]]; then
    # libdmce.hpp is for both compilers.
    need clang++ clang
    need nm binutils
    need pkg-config pkg-config
fi
if [[ $purpose == sort || $purpose == test || $purpose == bench || $purpose == fuzz ]]; then
    compiles c++ c++ || missing+=(g++)
fi
# What DMCE is measured beside.
if [[ $purpose == bench ]]; then
    [[ -e /usr/include/boost/interprocess/managed_shared_memory.hpp ]] || missing+=(libboost-dev)
    /sbin/ldconfig -p | grep -q 'libmimalloc\.so\.2 ' || missing+=(libmimalloc2.0)
    /sbin/ldconfig -p | grep -q 'libjemalloc\.so\.2 ' || missing+=(libjemalloc2)
    [[ -e /usr/include/libpmemobj.h ]] || missing+=(libpmemobj-dev)
    need redis-server redis-server
    need memcached memcached
fi

[[ ${#missing[@]} -eq 0 ]] || apt_install "${missing[@]}"
