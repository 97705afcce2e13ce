#!/bin/bash
# Installs the tools that the tests compare bdrv with: qemu-img and its like, nbd tools, e2fsprogs. Debian and its
# children only; run again it does nothing. Without them the tests that need them are skipped, and say so.
set -euo pipefail

packages=(qemu-utils qemu-block-extra libnbd-bin nbdkit e2fsprogs)

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "install-oracle: this system has no apt: install the equivalents of ${packages[*]} by hand" >&2
  exit 1
fi
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "install-oracle: run this as root, or: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >"$log" 2>&1; }
# The package lists may be there and good; asking for new ones costs most of the time.
install || { apt-get update -qq </dev/null >"$log" 2>&1 && install; } || {
  cat "$log" >&2
  echo "install-oracle: apt-get could not install ${missing[*]}" >&2
  exit 1
}
