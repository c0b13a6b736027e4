#!/usr/bin/env bash
# Fetches Mermaid, which draws the diagrams of the documentation, from the npm registry into the file $1, once.
# Without npm or a network the site is built all the same; its pages with diagrams then load Mermaid from a CDN.
set -euo pipefail
VERSION=11.12.0
target=$1
[ -e "$target" ] && exit 0

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if command -v npm >/dev/null && npm pack --silent --pack-destination "$scratch" "mermaid@$VERSION" >/dev/null; then
    tar -xzf "$scratch"/mermaid-*.tgz -C "$scratch" package/dist/mermaid.min.js
    mkdir -p "$(dirname "$target")"
    mv "$scratch/package/dist/mermaid.min.js" "$target"
else
    echo "== Mermaid $VERSION is not available from npm: pages with diagrams will load it from a CDN"
fi
