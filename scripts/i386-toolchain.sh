#!/usr/bin/env bash
# Makes this host able to build for i686: Rust's standard library for that target, and a C and C++
# compiler with 32-bit headers. Does nothing, quickly, when both are there.
#
#   scripts/i386-toolchain.sh
#
# First `rustup target add`; where that is not possible, Debian's own compiler and a standard
# library that is built from Debian's source. Exit status: 0 ready, 3 the printed command must be
# run first, 1 failed. DMCE_I386_WAY=native or debian takes that way only.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/apt.sh
source "$root/scripts/apt.sh"
# shellcheck source=scripts/i386-env.sh
source "$root/scripts/i386-env.sh"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Compiles and links a program for i386, which finds a missing compiler, header or library.
builds_for_32_bits() {
    local compiler=$1 source=$scratch/probe.$2
    printf '#include <%s>\nint main(void) { return (int)sizeof(void *) - 4; }\n' "$3" >"$source"
    command -v "$compiler" >/dev/null &&
        "$compiler" -m32 "$source" -o "$scratch/probe" 2>/dev/null && "$scratch/probe"
}

c_compilers() {
    local -a missing=()
    builds_for_32_bits gcc c stdio.h || missing+=(gcc gcc-multilib)
    builds_for_32_bits g++ cpp cstdio || missing+=(g++ g++-multilib)
    [[ ${#missing[@]} -eq 0 ]] && return
    apt_install "${missing[@]}" || exit $?
    builds_for_32_bits gcc c stdio.h || die "gcc -m32 still builds no program that runs"
    builds_for_32_bits g++ cpp cstdio || die "g++ -m32 still builds no program that runs"
}

rustup_target() {
    command -v rustup >/dev/null || return 1
    echo "i686: trying rustup target add $I386_TARGET" >&2
    timeout 300 rustup target add "$I386_TARGET" >&2
}

# Builds the standard library for i686 with Debian's compiler and puts it where that looks for it.
debian_std() {
    local libs build
    if [[ ! -x $I386_DEBIAN_RUSTC || ! -d $(debian_source) ]]; then
        apt_install rustc-web rust-web-src || exit $?
    fi
    build=${CARGO_TARGET_DIR:-$root/target}/i686-std
    libs=$("$I386_DEBIAN_RUSTC" --print sysroot)/lib/rustlib/$I386_TARGET/lib
    echo "i686: building the standard library with $("$I386_DEBIAN_RUSTC" -V), about a minute" >&2
    build_std "$build"
    install_std "$build/lib" "$libs"
}

debian_source() {
    echo "$("$I386_DEBIAN_RUSTC" --print sysroot)/lib/rustlib/src/rust/library"
}

# An empty crate has only the standard library to build: its rlibs are the ones that are wanted.
build_std() {
    local crate=$1/crate
    rm -rf "$1"
    mkdir -p "$crate/src" "$1/lib"
    : >"$crate/src/lib.rs"
    # The empty table keeps cargo from counting the crate to the workspace around it.
    printf '[package]\nname = "empty"\nversion = "0.0.0"\nedition = "2021"\n\n[workspace]\n' \
        >"$crate/Cargo.toml"
    (
        cd "$crate"
        unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
        # An ordinary compiler refuses -Z options unless it is told that it builds itself.
        RUSTC=$I386_DEBIAN_RUSTC RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$1/build \
            cargo build -q --release -Zbuild-std=std,panic_unwind,panic_abort,test \
            --target "$I386_TARGET"
    )
    cp "$1/build/$I386_TARGET/release/deps/"*.rlib "$1/lib/"
    rm -f "$1/lib/libempty-"*
    "$I386_DEBIAN_RUSTC" -vV >"$1/lib/$I386_STAMP"
    rm -rf "$1/build"
}

# The whole directory is replaced at once: a mix of two builds would be found as duplicate crates.
install_std() {
    local -a as_root=()
    if [[ $EUID -ne 0 ]]; then
        if ! sudo -n true 2>/dev/null; then
            echo "i686: the standard library is built; install it with:" >&2
            echo "    sudo rm -rf $2 && sudo mkdir -p ${2%/*} && sudo cp -r $1 $2" >&2
            exit 3
        fi
        as_root=(sudo -n)
    fi
    "${as_root[@]}" mkdir -p "${2%/*}"
    "${as_root[@]}" rm -rf "$2.new" "$2.old"
    "${as_root[@]}" cp -r "$1" "$2.new"
    [[ ! -e $2 ]] || "${as_root[@]}" mv "$2" "$2.old"
    "${as_root[@]}" mv "$2.new" "$2"
    "${as_root[@]}" rm -rf "$2.old"
}

die() {
    echo "i686: $1" >&2
    exit 1
}

report() {
    case $1 in
        native) echo "i686: $(${RUSTC:-rustc} -V), which has the target $I386_TARGET" ;;
        debian) echo "i686: $("$I386_DEBIAN_RUSTC" -V) of Debian at $I386_DEBIAN_RUSTC" ;;
    esac
}

make_ready() {
    case ${DMCE_I386_WAY:-} in
        native) rustup_target || die "rustup cannot add the target $I386_TARGET" ;;
        debian) debian_std ;;
        *) if ! rustup_target || ! i386_way >/dev/null; then debian_std; fi ;;
    esac
}

case ${DMCE_I386_WAY:-} in
    "" | native | debian) ;;
    *) die "DMCE_I386_WAY is '$DMCE_I386_WAY': it can be native or debian" ;;
esac
c_compilers
if ! i386_way >/dev/null; then
    # Only one run at a time builds and installs; one that waited finds the work done.
    mkdir -p "$root/target"
    exec 9>"$root/target/.i386-toolchain.lock"
    flock 9
    i386_way >/dev/null || make_ready
fi
way=$(i386_way) || die "no compiler on this host can build for $I386_TARGET"
report "$way"
