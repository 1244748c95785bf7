#!/usr/bin/env bash
# Builds the programs of a Kubernetes control plane from Debian's source package, for the tests that install the
# chart through a real API server: `make api-server`, or `deploy/kubernetes/build.sh FOLDER`.
#
# It needs Linux on x86-64 with apt and dpkg, but no root and no Docker: packages are downloaded and unpacked in the
# folder, nothing is installed. It takes 3 GB and about eight minutes on two cores. A second run continues where
# the first one stopped. The programs are in FOLDER/bin: etcd, kube-apiserver, kube-controller-manager.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
FOLDER=$(cd "$1" && pwd)
VERSION=1.20.2  # what Debian 12 has; later releases of Debian carry the source of kubectl alone
PROGRAMS=(kube-apiserver kube-controller-manager)
SOURCE=$FOLDER/gopath/src/k8s.io/kubernetes

apt() {  # with lists of its own, so that neither the machine's sources matter nor are they changed
  apt-get -qq -o Dir::Etc::sourcelist="$FOLDER/sources.list" -o Dir::Etc::sourceparts=- \
    -o Dir::State::lists="$FOLDER/apt/lists" -o Dir::Cache="$FOLDER/apt" -o APT::Sandbox::User=root "$@"
}

mirror() {  # of Debian 12, as this machine's own sources name it
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | sed -n 1p
}

download() {
  local from=${TIDE_DEBIAN_MIRROR:-$(mirror)}
  [ -n "$from" ] || { echo "no Debian 12 among apt's sources: set TIDE_DEBIAN_MIRROR to a mirror's URL" >&2; exit 1; }
  mkdir -p "$FOLDER/apt/lists/partial" "$FOLDER/apt/archives/partial" "$FOLDER/packages"
  printf '%s %s bookworm main\n' deb "$from" deb-src "$from" > "$FOLDER/sources.list"
  apt update
  cd "$FOLDER/packages"
  apt download golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev etcd-server
  apt source --download-only kubernetes
  for package in *.deb; do dpkg-deb --extract "$package" "$FOLDER/root"; done
  mkdir -p "$SOURCE"
  tar --extract --file kubernetes_*.orig.tar.gz --directory "$SOURCE" --strip-components 1
  # The vendored release reads the runtime's map layout of Go before 1.18 and crashes on a later one.
  rm -r "$SOURCE/vendor/github.com/modern-go/reflect2"
  cp -r "$FOLDER/root/usr/share/gocode/src/github.com/modern-go/reflect2" "$SOURCE/vendor/github.com/modern-go/"
  touch "$FOLDER/downloaded"
}

generate_openapi() {  # the one generated package that the archive lacks
  local packages
  packages=$(find cmd pkg plugin staging -name '*.go' -not -path '*/code-generator/*' -not -path '*/sample-*' \
    -not -path '*/testdata/*' -exec grep -l '^// *+k8s:openapi-gen=' {} + | xargs -n 1 dirname | sort -u \
    | sed 's,^staging/src/,vendor/,; s,^,k8s.io/kubernetes/,' | paste -sd ,)
  go build -o "$FOLDER/openapi-gen" k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen
  "$FOLDER/openapi-gen" --input-dirs "$packages" --output-package k8s.io/kubernetes/pkg/generated/openapi \
    --output-file-base zz_generated.openapi --go-header-file hack/boilerplate/boilerplate.generatego.txt \
    --output-base "$FOLDER/gopath/src" --report-filename "$FOLDER/openapi-violations"
}

[ -e "$FOLDER/downloaded" ] || download
export GOROOT=$FOLDER/root/usr/lib/go-1.19 GOPATH=$FOLDER/gopath GOCACHE=$FOLDER/cache
export GO111MODULE=off CGO_ENABLED=0 PATH=$FOLDER/root/usr/lib/go-1.19/bin:$PATH
cd "$SOURCE"
[ -e pkg/generated/openapi/zz_generated.openapi.go ] || generate_openapi
mkdir -p "$FOLDER/bin"
cp "$FOLDER/root/usr/bin/etcd" "$FOLDER/bin/"
flags="-s -w"
for package in component-base/version client-go/pkg/version; do
  stamp="-X k8s.io/kubernetes/vendor/k8s.io/$package"
  flags+=" $stamp.gitVersion=v$VERSION $stamp.gitMajor=1 $stamp.gitMinor=20"
done
for program in "${PROGRAMS[@]}"; do
  go build -ldflags "$flags" \
    -o "$FOLDER/bin/$program" "k8s.io/kubernetes/cmd/$program"
done
"$FOLDER/bin/kube-apiserver" --version
