#!/usr/bin/env bash
# Fetches the stock 32-bit sqlite3 shell of Debian, with the libraries that it needs, into a folder:
#
#   scripts/sqlite-i386.sh FOLDER
#
# Prints the command that runs it. Nothing is installed, and the host's own packages, lists and
# architectures are left as they are: apt gets a state of its own below the folder. What is there
# already is not fetched again. Returns 3 and says why where the packages cannot be had.
set -euo pipefail

folder=${1:?usage: $0 FOLDER}
PACKAGES=(sqlite3 libsqlite3-0 libreadline8 libtinfo6 zlib1g)
LIBRARIES=usr/lib/i386-linux-gnu

# Which release of which distribution, and where its packages come from.
# shellcheck source=/dev/null
source /etc/os-release
if [[ ${ID:-} != debian ]] || ! command -v apt-get >/dev/null; then
    echo "sqlite-i386: it is taken from Debian's packages; this is ${ID:-another system}" >&2
    exit 3
fi
suite=${VERSION_CODENAME:?}

# The mirror that the host itself uses, as its own lists say.
mirror() {
    apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Codename: $suite" 2>/dev/null |
        head -n 1
}

fetch() {
    local apt=$folder/apt site
    site=$(mirror)
    [[ -n $site ]] || return 1
    mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,packages} "$folder/root"
    : >"$apt/state/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
        "$site $suite main" >"$apt/sources.list"
    local options=(
        -qq -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/state/status"
        -o "Dir::Cache=$apt/cache" -o "Dir::Etc::SourceList=$apt/sources.list"
        -o "Dir::Etc::SourceParts=/dev/null" -o "APT::Architecture=i386"
        -o "APT::Architectures=i386" -o "APT::Sandbox::User=root"
    )
    apt-get "${options[@]}" update >&2
    (cd "$apt/packages" && apt-get "${options[@]}" download "${PACKAGES[@]}" >&2)
    local package
    for package in "$apt"/packages/*.deb; do
        dpkg-deb -x "$package" "$folder/root"
    done
    rm -rf "$apt"
}

shell=$folder/root/usr/bin/sqlite3
if [[ ! -x $shell ]] && ! fetch; then
    echo "sqlite-i386: the 32-bit packages cannot be fetched; does apt-get update work here?" >&2
    exit 3
fi
# Libraries of the base system lie beside those below usr.
printf 'env LD_LIBRARY_PATH=%q:%q %q\n' "$folder/root/$LIBRARIES" \
    "$folder/root/lib/i386-linux-gnu" "$shell"
