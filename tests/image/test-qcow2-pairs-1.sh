#!/usr/bin/env bash
# The same random operations on qcow2 images of ours and of QEMU, whatever the options: slice 1 of 4.
slice=1
. "$(dirname "$0")/pairs.sh"
