#!/usr/bin/env bash
# Runs cargo for i686 with whichever compiler this host has for it:
#
#   scripts/i386-cargo.sh build --release -p dmce-ffi
#   scripts/i386-cargo.sh test -p libdmce
#
# Results are in target/i686/i686-unknown-linux-gnu/.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/i386-env.sh
source "$root/scripts/i386-env.sh"

"$root/scripts/i386-toolchain.sh" >&2
way=$(i386_way)
i386_env "$root" "$way"
exec cargo "$@"
