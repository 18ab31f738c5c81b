# Sourced by the other scripts: installs Debian packages, or says how to.
# shellcheck shell=bash

# apt_install PACKAGE..
# Installs the packages where this needs no password: as root, or by a sudo that asks nothing.
# Otherwise prints the exact command and returns 3, so that nothing waits for a prompt.
apt_install() {
    local -a as_root=()
    if ! command -v apt-get >/dev/null; then
        echo "missing: $*; this host has no apt-get, install what your distribution calls these" >&2
        return 3
    fi
    if [[ $EUID -ne 0 ]]; then
        if sudo -n true 2>/dev/null; then
            as_root=(sudo -n)
        else
            echo "missing: $*; install with:" >&2
            echo "    sudo apt-get update && sudo apt-get install -y --no-install-recommends $*" >&2
            return 3
        fi
    fi
    echo "installing: $*" >&2
    # The lists may be old or absent. An index that fails to refresh may not be one that is needed,
    # so only the install itself decides.
    "${as_root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 update >&2 || true
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 \
        install -y --no-install-recommends "$@" >&2
}
