# Sourced by scripts that run an instance of their own, which set `dmce` to the command's path.
# shellcheck shell=bash
#
#   $scratch       a folder for this run
#   $instance      where `dmce up --dir` may start an instance
#   background     the process of a program that runs in the background, or nothing
#   folders        what else is to be removed
#
# When the script ends, however it does, so do the program and the instance, and the folders go.

scratch=$(mktemp -d)
# shellcheck disable=SC2034 # used where this is sourced
instance=$scratch/instance
background=
folders=("$scratch")

clean_up() {
    local status=$?
    trap - EXIT
    if [[ -n $background ]] && kill "$background" 2>/dev/null; then
        wait "$background" || true
    fi
    if [[ -d $instance ]]; then
        "${dmce:?}" down --dir "$instance" >/dev/null || status=1
    fi
    rm -rf "${folders[@]}"
    exit "$status"
}
trap clean_up EXIT
# A signal ends the script through the trap above.
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

title() {
    printf '\n== %s\n' "$*"
}
