# SPDX-License-Identifier: Apache-2.0
# Shared by container-test, cuda-image-test and engine-test, after lib.sh: sourced, not run. Needs root.
#
#   APT_MIRROR   another mirror than http://deb.debian.org/debian
#   STATE        where images are kept between runs (default build/container; 3 GB, with CUDA 8)
#   STORAGE_DRIVER   vfs where overlay mounts are not allowed (default: buildah's choice)
#   CCACHE       a ccache folder that the build stage may use (default: this machine's, if any)
(($(id -u) == 0)) || fail "buildah's chroot isolation, mount and debootstrap need root"
debian=http://deb.debian.org/debian
mirror=${APT_MIRROR:-$debian}
state=${STATE:-$root/build/container}
mkdir -p "$state"
# chroot: RUN needs no namespaces, which a sandbox may not grant.
export BUILDAH_ISOLATION=chroot
images=(buildah --root "$state/images" --runroot "$state/run"
  ${STORAGE_DRIVER:+--storage-driver "$STORAGE_DRIVER"})
work=$(mktemp -d)
pids=()       # ended with the script
container=    # removed with the script
cleanup() {
  set +e  # what fails here must neither keep the rest nor change the exit code
  local pid
  for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true  # else bash reports each that was killed
  [[ -n $container ]] && "${images[@]}" rm "$container" >/dev/null
  rm -rf "$work"
}
trap cleanup EXIT

pass() { printf 'ok: %s\n' "$*"; }
free_ports() { /usr/bin/python3 "$root/tests/e2e/ports.py" "$1"; }  # on one line
# completion BODY-FIELDS: asks the server at $url.
completion() {
  curl -sS "$url/v1/completions" -H 'Content-Type: application/json' \
    -d "{\"model\": \"tales-llama\", \"prompt\": \"Once upon a time\", \"ignore_eos\": true, $1}"
}
have_image() { "${images[@]}" images -q "$1" >/dev/null 2>&1; }

# kivi-base: what debian:bookworm-slim is, from Debian's mirror.
make_base() {
  have_image kivi-base && return
  say "base image: debootstrap"
  debootstrap --variant=minbase --include=ca-certificates bookworm "$work/base" "$mirror" >"$work/log" ||
    { tail "$work/log"; fail "debootstrap failed"; }
  # As Debian's slim images: Debian's own mirror, without documents and translations.
  echo "deb $debian bookworm main" >"$work/base/etc/apt/sources.list"
  rm -rf "$work"/base/usr/share/{doc,man,locale,info}/* "$work"/base/var/{cache/apt,lib/apt/lists,log}/*
  local base
  base=$("${images[@]}" from scratch)
  "${images[@]}" add -q "$base" "$work/base" / >/dev/null
  "${images[@]}" commit -q --rm "$base" kivi-base >/dev/null
  rm -rf "$work/base"
}

base_digest() { "${images[@]}" inspect --type image --format '{{.FromImageDigest}}' kivi-base; }

# build_image NAME [ARGUMENTS OF BUILDAH...]: docker/Dockerfile on kivi-base.
build_image() {
  local name=$1 begin=$SECONDS ccache
  shift
  say "build: docker/Dockerfile"
  ccache=${CCACHE-$(ccache -k cache_dir 2>/dev/null || true)}
  # Docker's image format: OCI's has no HEALTHCHECK.
  "${images[@]}" bud --format docker --network host --pull-never --layers -f docker/Dockerfile -t "$name" \
    --build-arg BUILD_BASE=kivi-base --build-arg RUN_BASE=kivi-base --build-arg APT_MIRROR="${APT_MIRROR:-}" \
    --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
    --label org.opencontainers.image.created="$(date -u +%FT%TZ)" \
    --label org.opencontainers.image.base.digest="$(base_digest)" \
    ${ccache:+-v "$ccache:/ccache"} "$@" . >"$work/log" 2>&1 ||
    { tail -40 "$work/log"; fail "the image does not build"; }
  pass "built in $((SECONDS - begin)) s"
}

# check_labels FILE: the image's labels, in what `buildah inspect` printed, say what it was made from.
check_labels() {
  /usr/bin/python3 - "$1" "$(git rev-parse HEAD)" "$(base_digest)" <<'PYTHON'
import datetime, json, re, sys
labels = json.load(open(sys.argv[1]))["Docker"]["config"]["Labels"]
label = {k.removeprefix("org.opencontainers.image."): v for k, v in labels.items()}
for name in ("title", "description", "licenses", "version"):
    assert label[name], name
assert label["revision"] == sys.argv[2], label["revision"]
assert label["base.name"] == "kivi-base", label["base.name"]
assert label["base.digest"] == sys.argv[3] and re.match("sha256:[0-9a-f]{64}$", sys.argv[3]), label["base.digest"]
created = datetime.datetime.strptime(label["created"], "%Y-%m-%dT%H:%M:%SZ")
assert created <= datetime.datetime.utcnow(), label["created"]
assert "source" not in label, "the build knows no address of the source"
PYTHON
  pass "labels: revision, time, base and its digest"
}

megabytes() { echo $(($(du -sx --block-size=1 "$1" | cut -f1) / 1000000)); }
no_compiler() {
  [[ -z $(find "$1" -xdev \( -name cc1plus -o -name 'g++*' -o -name cmake -o -name nvcc \) -print -quit) ]] ||
    fail "a compiler is in the image"
}

# only_kivi ROOT: an image's root holds no other program than kivi.
only_kivi() {
  local programs
  [[ -z $(find "$1" -xdev \( -name sh -o -name bash -o -name dash -o -name busybox -o -name 'apt*' -o -name dpkg \) -print -quit) ]] ||
    fail "a shell or a package manager is in the image"
  programs=$(find "$1" -xdev -type f -perm /111 ! -name '*.so*' -printf '%P\n')
  [[ $programs == usr/local/bin/kivi ]] || fail "the image has other programs: $programs"
  [[ -z $(find "$1" -xdev -perm /6000 -print -quit) ]] || fail "a file is setuid or setgid"
  pass "no shell, no package manager, no program but kivi, nothing setuid"
}

# open_image NAME: a container of it, its root in $image, its environment in `environment`.
open_image() {
  container=$("${images[@]}" from --pull-never "$1")
  image=$("${images[@]}" mount "$container")
  "${images[@]}" inspect --type image "$1" >"$work/inspect.json"
  mapfile -t environment < <(/usr/bin/python3 -c \
    'import json, sys; print("\n".join(json.load(sys.stdin)["Docker"]["config"]["Env"] or []))' <"$work/inspect.json")
}
# inside COMMAND...: replaces this shell by the command, in the image with its root read-only. As
# `buildah run` does not offer that. No /tmp to write to either, and the models folder as the volume.
inside() {
  exec unshare --mount --propagation private bash -ec '
    image=$1 models=$2; shift 2
    mount --bind "$image" "$image" && mount -o remount,bind,ro "$image"
    mount -t proc proc "$image/proc"
    mount --bind "$models" "$image/models" && mount -o remount,bind,ro "$image/models"
    # The image has no shell and no env: the variables are set outside, and chroot finds the program by
    # the PATH of the image.
    variables=(); while [[ $1 == *=* ]]; do variables+=("$1"); shift; done
    exec /usr/bin/env -i "${variables[@]}" "$(command -v chroot)" --userspec=10001:10001 --groups= "$image" "$@"' \
    bash "$image" "$root/models" "${environment[@]}" "$@"
}
