#!/usr/bin/env bash
# Builds the release and packs it into dist/, on Linux, for each machine named (x86_64, aarch64; by
# default this one): a tar ball, one with the static binary, which needs no C library, and a Debian
# package, where dpkg-deb is installed. SHA256SUMS has the sums of all. The same sources, compiler
# and SOURCE_DATE_EPOCH (by default the time of the last commit) give the same bytes in any folder.
# With cargo-auditable each binary holds the list of its crates, for `cargo audit bin` and scanners.
# For aarch64 the compiler has to have its standard library: `RUSTC` may name another one.
# DEBIAN_REVISION=N is the N of the package's version, by default 1.
set -euo pipefail
cd "$(dirname "$0")"
umask 022
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
revision=${DEBIAN_REVISION:-1}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null ||
  stat -c %Y Cargo.lock)}
export SOURCE_DATE_EPOCH
stage=dist/stage
cargo=(cargo)
if cargo auditable --version >/dev/null 2>&1; then cargo+=(auditable); fi

main() {
  local machine
  rm -rf dist && mkdir -p "$stage"
  [ $# -gt 0 ] || set -- "$(uname -m)"
  for machine in "$@"; do
    compile "$machine"
    pack_tar "$machine" dynamic "patroniglue-$version-linux-$machine"
    pack_tar "$machine" static "patroniglue-$version-linux-$machine-static"
    if command -v dpkg-deb >/dev/null; then pack_deb "$machine"; fi
  done
  rm -r "$stage"
  (cd dist && sha256sum -- * >SHA256SUMS && cat SHA256SUMS)
}

# Puts both binaries into the stage. Paths of this machine stay out of them. The flags for a static
# binary concern only the link, so that the crates are compiled once.
compile() {
  local target=$1-unknown-linux-gnu home=${CARGO_HOME:-$HOME/.cargo} kind flags
  local out=${CARGO_TARGET_DIR:-target}/$target/release/patroniglue
  local separator=$'\x1f'
  export CARGO_ENCODED_RUSTFLAGS="--remap-path-prefix=$PWD=/patroniglue"
  CARGO_ENCODED_RUSTFLAGS+="$separator--remap-path-prefix=$home=/cargo"
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
  if [ "$(uname -m)" = aarch64 ]; then unset CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER; fi
  for kind in dynamic static; do
    flags=-crt-static
    if [ "$kind" = static ]; then flags=+crt-static; fi
    "${cargo[@]}" rustc --release --locked --bin patroniglue --target "$target" -- \
      -C target-feature="$flags"
    cp "$out" "$stage/$1-$kind"
  done
}

pack_tar() {
  local folder=$stage/$3
  mkdir -p "$folder/extra"
  cp "$stage/$1-$2" "$folder/patroniglue"
  cp -r config.yml.example LICENSE extra/licences.txt README.md CHANGELOG.md docs "$folder"
  find extra -maxdepth 1 -type f ! -name licences.txt -exec cp -t "$folder/extra" {} +
  normalize "$folder"
  tar -C "$stage" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
    --format=gnu -cf - "$3" | gzip -9n >"dist/$3.tar.gz"
}

# As cargo-deb would, without a tool to compile first: extra/debian has what it would make up.
pack_deb() {
  local architecture root=$stage/deb doc binary=$stage/$1-dynamic
  case $1 in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    *) return 0 ;;
  esac
  rm -rf "$root"
  doc=$root/usr/share/doc/patroniglue
  install -D "$binary" "$root/usr/bin/patroniglue"
  install -Dm644 config.yml.example "$root/etc/patroniglue.yml"
  units "$root/usr/lib/systemd/system"
  install -Dm644 extra/patroniglue.8 "$root/usr/share/man/man8/patroniglue.8"
  install -Dm644 CHANGELOG.md "$doc/changelog"
  install -m644 extra/debian/copyright extra/licences.txt README.md docs/*.md -t "$doc"
  sed "s/@VERSION@/$version-$revision/; s/@DATE@/$(date -Rud "@$SOURCE_DATE_EPOCH")/" \
    extra/debian/changelog >"$doc/changelog.Debian"
  mkdir "$doc/examples"
  find extra -maxdepth 1 -type f ! -name '*.service' ! -name '*.8' ! -name licences.txt \
    -exec install -m644 -t "$doc/examples" {} +
  gzip -9n "$root/usr/share/man/man8/patroniglue.8" "$doc"/changelog*
  install -Dm644 extra/debian/lintian-overrides "$root/usr/share/lintian/overrides/patroniglue"
  control "$architecture" "$binary"
  normalize "$root"
  dpkg-deb --root-owner-group -Zxz --build "$root" \
    "dist/patroniglue_$version-${revision}_$architecture.deb" >/dev/null
}

units() {
  local unit
  mkdir -p "$1"
  for unit in extra/*.service; do
    # without the comment on top, how to install it
    sed '1,/^\[Unit\]/{/^#/d}' "$unit" >"$1/${unit#extra/}"
  done
}

# The control files. The newest symbol version that the binary asks for is the C library it needs.
control() {
  local libc size
  libc=$(readelf -W --dyn-syms "$2" | sed -n 's/.*@GLIBC_\([0-9.]*\).*/\1/p' | sort -Vu | tail -n 1)
  size=$(find "$root" -type f -printf '%s\n' | awk '{ kib += int(($1 + 1023) / 1024) }
    END { print kib }')
  mkdir "$root/DEBIAN"
  sed "s/@VERSION@/$version-$revision/; s/@ARCHITECTURE@/$1/; s/@LIBC@/$libc/; s/@SIZE@/$size/" \
    extra/debian/control >"$root/DEBIAN/control"
  install -m755 extra/debian/postinst extra/debian/prerm extra/debian/postrm -t "$root/DEBIAN"
  echo /etc/patroniglue.yml >"$root/DEBIAN/conffiles"
  (cd "$root" && find etc usr -type f | LC_ALL=C sort | xargs md5sum) >"$root/DEBIAN/md5sums"
}

# Modes and times that depend on the builder.
normalize() {
  chmod -R u=rwX,go=rX "$1"
  find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

main "$@"
