#!/usr/bin/env bash
# Build and test in a fresh Debian or Ubuntu of another release, made by debootstrap: what a newcomer there would get.
#
# usage: debian_root.sh SUITE FOLDER [CTEST-ARGUMENT...]      as root; SUITE: bookworm, trixie, noble, ...
#        debian_root.sh SUITE FOLDER -- COMMAND...
#
# With -- the command alone is run in the source folder, and nothing is installed before: "-- bash jobs/demo.sh".
# Takes packages from where this machine takes its own, those of Ubuntu from archive.ubuntu.com; MIRROR=URL names another.
# FOLDER (3 GB) is made if it is not there, and kept: a second run builds what changed. Without CTEST-ARGUMENTs the unit
# and rank tests and the main job are run; "none" runs no test.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ $# -ge 2 ] || { sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2; }
suite=$1 root=$2
shift 2
[ $# -gt 0 ] || set -- --tests-regex '^(unit|mpi)\.|^e2e\.test_main_job$'

if [ ! -e "$root/etc/debian_version" ]; then
    scripts=/usr/share/debootstrap/scripts
    case $suite in
    jammy | noble | plucky | questing) # those that debootstrap does not know yet are made as the others of Ubuntu
        script=$scripts/gutsy parts=main,universe
        : "${MIRROR:=http://archive.ubuntu.com/ubuntu}"
        ;;
    *)
        script=$scripts/$suite parts=main
        : "${MIRROR:=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)}"
        ;;
    esac
    debootstrap --variant=minbase --components="$parts" "$suite" "$root" "$MIRROR" "$script"
fi
# What leads to the mirror from this machine: proxies, certificates.
cp -L /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null || true
cp -RL /etc/ssl/certs "$root/etc/ssl/" 2>/dev/null || true
# Installing ca-certificates there makes the bundle anew: pip is given this machine's.
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/host-certificates.crt" 2>/dev/null || true
for file in /etc/apt/apt.conf.d/*; do
    case $(cat "$file") in *roxy*) cp "$file" "$root/etc/apt/apt.conf.d/" ;; esac
done

mkdir -p "$root/spinshard" "$root/proc" "$root/dev"
(cd "$here" && git ls-files -z | tar --null -T - -cf -) | tar -C "$root/spinshard" -xf -
bound=()
trap 'for p in ${bound[@]+"${bound[@]}"}; do umount -l "$root/$p"; done' EXIT
for place in proc sys dev; do
    mountpoint -q "$root/$place" && continue
    mount --rbind "/$place" "$root/$place"
    mount --make-rslave "$root/$place"
    bound=("$place" ${bound[@]+"${bound[@]}"})
done

# shellcheck disable=SC2016
chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive \
    PIP_CERT=/etc/ssl/host-certificates.crt \
    ${http_proxy+http_proxy="$http_proxy"} ${https_proxy+https_proxy="$https_proxy"} \
    bash -c 'set -euo pipefail
        cd /spinshard
        [ "$1" != -- ] || { shift; exec "$@"; }
        . "$(ls jobs/setup.sh jobs/demo/setup.sh 2>/dev/null | head -n 1)"
        need_packages "${build_packages[@]}" "${test_packages[@]}" git
        allow_root_mpi
        export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
        build_preset release all -- -DSPINSHARD_TESTS=ON
        build/release/spinshard --version
        [ "$1" = none ] || ctest --preset release "$@"' _ "$@"
