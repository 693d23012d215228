#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Takes from an image's root what only installing packages needed, or programs that Tidemark never runs (xfs_scrub and its
# Unicode tables and Python): more than half of it.
set -euo pipefail

root=${1:?}
[[ $root != / ]]
rm -rf "$root"/var/cache/* "$root"/var/lib/apt "$root"/var/log/* \
    "$root"/usr/share/perl "$root"/usr/share/perl5 "$root"/usr/lib/*-linux-gnu/{perl,perl5,gconv} "$root"/usr/lib/*-linux-gnu/libperl.so* \
    "$root"/usr/lib/python3* "$root"/usr/bin/python3* "$root"/usr/share/python3 "$root"/usr/lib/*-linux-gnu/libpython3* \
    "$root"/usr/sbin/xfs_scrub* "$root"/usr/lib/*-linux-gnu/libicu* "$root"/usr/share/{info,lintian,bash-completion}
