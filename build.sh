#!/usr/bin/env bash
# Builds the release and packs it: dist/patroniglue-VERSION-SYSTEM-MACHINE.tar.gz with binary,
# configuration example, licences and documents. It needs the C library, and libgcc_s that comes with
# it; STATIC=1 links both in.
set -euo pipefail
cd "$(dirname "$0")"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=patroniglue-$version-$(uname -s | tr '[:upper:]' '[:lower:]')-$(uname -m)
target=$(rustc -vV | sed -n 's/^host: //p')
built=${CARGO_TARGET_DIR:-target}
if [ "${STATIC:-0}" = 1 ]; then
  name=$name-static
  # naming the target keeps the flag from the build scripts and macros of the dependencies
  RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
    cargo build --release --locked --target "$target" --target-dir "$built/static"
  binary=$built/static/$target/release/patroniglue
else
  cargo build --release --locked
  binary=$built/release/patroniglue
fi
mkdir -p "dist/$name"
cp -r "$binary" config.yml.example LICENSE extra/licences.txt README.md CHANGELOG.md docs "dist/$name/"
mkdir "dist/$name/extra"
cp extra/haproxy.cfg extra/patroniglue.service extra/patroniglue@.service "dist/$name/extra/"
tar -C dist -czf "dist/$name.tar.gz" "$name"
rm -r "dist/$name"
echo "dist/$name.tar.gz"
