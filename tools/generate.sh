#!/usr/bin/env bash
# Writes generated code anew from proto/ and the YAML sources. With --check it
# writes into build/ and compares, and checks lint, format and breaking changes.
set -euo pipefail
cd "$(dirname "$0")/.."
mode="${1:-write}"

deps=build/proto-deps/validate
mkdir -p "$deps"
source="$(cd gateway-go && go list -m -f '{{.Dir}}' github.com/envoyproxy/protoc-gen-validate)"
[ -n "$source" ] || { (cd gateway-go && go mod download github.com/envoyproxy/protoc-gen-validate); source="$(cd gateway-go && go list -m -f '{{.Dir}}' github.com/envoyproxy/protoc-gen-validate)"; }
install -m 644 "$source/validate/validate.proto" "$deps/validate.proto"

# TypeScript's generator comes from npm, pinned by the lock file.
web=gateway-go/web
if [ ! -x "$web/node_modules/.bin/protoc-gen-es" ]; then
  (cd "$web" && npm ci --silent --no-audit --no-fund)
fi

if [ "$mode" = "--check" ]; then
  buf lint
  buf format proto -d --exit-code > /dev/null || { echo "proto/ is not formatted: buf format proto -w" >&2; exit 1; }
  if [ -f proto/baseline.binpb ]; then buf breaking proto --against proto/baseline.binpb; fi
  out=build/generated
  rm -rf "$out" && mkdir -p "$out"
  buf generate -o "$out"
  stale=0
  while IFS= read -r file; do
    cmp -s "$out/$file" "$file" || { echo "stale generated file: $file (make generate)" >&2; stale=1; }
  done < <(cd "$out" && find . -type f | sed 's|^\./||')
  python tools/generate.py --check || stale=1
  exit $stale
fi
buf format proto -w
buf lint
buf generate
python tools/generate.py
python tools/generate_corpus.py
