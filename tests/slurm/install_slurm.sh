#!/bin/bash
# Slurm and munge from Debian's packages, for the tests; nothing where they are already installed.
# The packages start no services: the tests run daemons of their own, in a folder of their own.
set -euo pipefail

PATH="$PATH:/usr/sbin:/sbin"
missing=()
command -v munged >/dev/null || missing+=(munge)
{ command -v slurmctld && command -v slurmd && command -v sbatch; } >/dev/null || missing+=(slurm-wlm)
[ ${#missing[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null || { echo "no apt-get to install ${missing[*]} with" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "not root, who could apt-get install ${missing[*]}" >&2; exit 1; }

# Exit code 101 of policy-rc.d keeps the packages' own scripts from starting services.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null
apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
