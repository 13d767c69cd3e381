# shellcheck shell=bash disable=SC2034
# Sourced by the scripts that set a machine up: Debian packages, Python packages, cores.
# Says what it installs before it does; where nothing is missing it costs a fraction of a second.

spinshard_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
spinshard_cache=${SPINSHARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/spinshard}

build_packages=(build-essential cmake ninja-build pkg-config openmpi-bin libopenmpi-dev
    libscalapack-openmpi-dev libopenblas-pthread-dev libdnnl-dev libarchive-dev libjansson-dev
    libyaml-dev libpcre2-dev libutf8proc-dev libssl-dev libhwloc-dev python3 python3-venv)
test_packages=(libcmocka-dev libarchive-tools clang-format)
fuzz_packages=(clang libclang-rt-dev libomp-dev) # libFuzzer is clang's

say() { printf '%s\n' "$*" >&2; }

# need_packages NAME...: install those that are missing, as root or through sudo.
need_packages() {
    command -v dpkg-query >/dev/null || { say "not a Debian system: install by hand what stands for: $*"; return 1; }
    local missing=() name as_root=()
    for name in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            say "these Debian packages are missing; install them as root, then run this again:"
            say "    apt-get install --no-install-recommends ${missing[*]}"
            return 1
        fi
        as_root=(sudo)
    fi
    say "installing ${#missing[@]} Debian packages: ${missing[*]}"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2 &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
            --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}" >/dev/null
}

# python_env FOLDER PIP-ARGUMENT...: a Python environment with these packages; made once per list.
python_env() {
    local env=$1 stamp=$1/packages.txt want
    shift
    want=$(for word in "$@"; do [ -f "$word" ] && cat "$word" || printf '%s\n' "$word"; done)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && return 0
    python3 -m venv "$env" >&2 || return 1
    "$env/bin/pip" install --quiet --retries 1 --timeout 30 "$@" >&2 || return 1
    printf '%s\n' "$want" >"$stamp"
}

# build_preset NAME TARGET... [-- CMAKE-ARGUMENT...]: configure, then build what changed.
build_preset() {
    local preset=$1 targets=()
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        targets+=("$1")
        shift
    done
    [ $# -gt 0 ] && shift
    local build=$spinshard_root/build/$preset arg fresh=true
    [ -f "$build/build.ninja" ] || fresh=false
    for arg in "$@"; do
        arg=${arg#-D}
        grep -qs "^${arg%%=*}:[A-Z]*=${arg#*=}\$" "$build/CMakeCache.txt" || fresh=false
    done
    $fresh || (cd "$spinshard_root" && cmake --preset "$preset" "$@") >&2 || return 1
    (cd "$spinshard_root" && cmake --build --preset "$preset" --target "${targets[@]}") >&2
}

# Open MPI asks for this in containers, where everybody is root.
allow_root_mpi() {
    if [ "$(id -u)" -eq 0 ]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
}
