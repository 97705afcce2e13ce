#!/bin/bash
# The main job on a real image, by the built command: compressed to qcow2 through the compress filter, back to raw,
# compared, described and mapped. `npm run demo` builds first.
set -euo pipefail
cd "$(dirname "$0")/.."

image=images/mke2fs-1.47-ext4.raw
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

bdrv() {
  printf '$ bdrv %s\n' "${*//"$work"/\/tmp}"
  node dist/bdrv.cjs "$@" | sed "s|$work|/tmp|g"
  echo
}

bdrv convert -f raw -O qcow2 -c "$image" "$work/disk.qcow2"
# The same once more with the filter as a node of its own: what it stands on gets compressed writes only.
bdrv create -q -f qcow2 "$work/filtered.qcow2" 192K
bdrv convert -f raw -n --target-image-opts "$image" "driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename=$work/filtered.qcow2"
bdrv convert -f qcow2 -O raw "$work/filtered.qcow2" "$work/disk.raw"
bdrv compare -f qcow2 -F raw "$work/disk.qcow2" "$image"
bdrv compare -f raw -F raw "$work/disk.raw" "$image"
bdrv info "$work/filtered.qcow2"
bdrv map "$work/disk.raw"
bdrv map --output=json "$work/filtered.qcow2"
