# Sourced: finds the compiler that can build for i686 and sets the environment for cargo.
# shellcheck shell=bash
#
# Two ways lead to such a compiler. `scripts/i386-toolchain.sh` makes one of them exist.
#   native  the rustc on PATH has the target's standard library (`rustup target add`)
#   debian  /usr/bin/rustc of the package rustc-web, with a standard library built by the script

I386_TARGET=i686-unknown-linux-gnu
I386_DEBIAN_RUSTC=/usr/bin/rustc
# Beside a standard library that was built here stands the `rustc -vV` that built it.
I386_STAMP=built-by-rustc

# i386_has_std RUSTC: whether this compiler has a standard library for i686 that fits it.
i386_has_std() {
    local sysroot libs
    sysroot=$("$1" --print sysroot 2>/dev/null) || return 1
    libs=$sysroot/lib/rustlib/$I386_TARGET/lib
    compgen -G "$libs/libstd-*.rlib" >/dev/null || return 1
    [[ ! -e $libs/$I386_STAMP ]] || [[ $(<"$libs/$I386_STAMP") == "$("$1" -vV)" ]]
}

# i386_way: prints `native` or `debian`, or returns 1. DMCE_I386_WAY forces one of them.
i386_way() {
    case ${DMCE_I386_WAY:-} in
        native) i386_has_std "${RUSTC:-rustc}" && echo native ;;
        debian) i386_has_std "$I386_DEBIAN_RUSTC" && echo debian ;;
        *)
            if i386_has_std "${RUSTC:-rustc}"; then
                echo native
            elif [[ -x $I386_DEBIAN_RUSTC ]] && i386_has_std "$I386_DEBIAN_RUSTC"; then
                echo debian
            else
                return 1
            fi
            ;;
    esac
}

# i386_env ROOT WAY: exports what cargo needs to build the workspace at ROOT for i686.
# The target directory is a separate one, because two compilers may be at work.
i386_env() {
    if [[ $2 == debian ]]; then
        export RUSTC=$I386_DEBIAN_RUSTC RUSTDOC=${I386_DEBIAN_RUSTC%rustc}rustdoc
    fi
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$1/target}/i686
    export CARGO_BUILD_TARGET=$I386_TARGET
}
