#!/usr/bin/env bash
# The same random operations on qcow2 images of ours and of QEMU, whatever the options: slice 4 of 4.
slice=4
. "$(dirname "$0")/pairs.sh"
