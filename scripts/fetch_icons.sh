#!/bin/bash
# Downloads the eight sets of emoji that the icons configuration learns from, with npm.
#
#   bash scripts/fetch_icons.sh DIR
#
# Each lies in a folder of DIR; give DIR as --config.data.path, with --config.data.source=icons. A
# set that is there is not downloaded again. Versions and checksums are fixed, so that everyone gets
# the same pictures. Licences: Apache-2.0 (noto, fxemoji), MIT (fluent-emoji, fluent-emoji-flat,
# fluent-emoji-3d), CC-BY-4.0 (twemoji, emojione, streamline-emojis).
set -euo pipefail

SETS="
@iconify-json/noto 1.2.9 3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad
@iconify-json/twemoji 1.2.5 19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7
@iconify-json/fluent-emoji 1.2.7 8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b
@iconify-json/fluent-emoji-flat 1.2.6 7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175
@iconify-json/emojione 1.2.3 26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e
@iconify-json/fxemoji 1.2.2 f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef
@iconify-json/streamline-emojis 1.2.4 5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc
@lobehub/fluent-emoji-3d 1.1.0 c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58
"

fail() {
  echo "error: $1" >&2
  exit 2
}

sha256() {
  # macOS has no sha256sum.
  if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1
}

[[ $# -eq 1 ]] || fail "give one directory: bash scripts/fetch_icons.sh DIR"
command -v npm >/dev/null || fail "npm is not installed; it comes with Node.js"
mkdir -p "$1"
# Beside the sets, so that a finished one is moved into place at once.
temporary=$(mktemp -d "$1/.fetch.XXXXXX")
trap 'rm -rf "$temporary"' EXIT

while read -r package version checksum; do
  [[ -n $package ]] || continue
  name=${package##*/}
  [[ -e "$1/$name" ]] && continue
  npm pack --silent --pack-destination "$temporary" "$package@$version" >/dev/null ||
    fail "npm could not download $package@$version"
  archive=$(echo "$temporary"/*.tgz)
  found=$(sha256 "$archive")
  [[ $found == "$checksum" ]] ||
    fail "$package@$version is not what it was: SHA-256 $found instead of $checksum"
  tar -xzf "$archive" -C "$temporary"
  mv "$temporary/package" "$1/$name"
  rm "$archive"
  echo "$1/$name"
done <<<"$SETS"
