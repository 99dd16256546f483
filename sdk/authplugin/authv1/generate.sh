#!/bin/sh
# Regenerates the Go code of auth.proto. Needs protoc (Debian: protobuf-compiler); the plugins of protoc come from their modules
# at the versions pinned here. With -check it changes nothing and fails when the checked-in code is not what protoc would write.
set -eu
cd "$(dirname "$0")/../../.."
dir=sdk/authplugin/authv1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
GOBIN=$tmp go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
GOBIN=$tmp go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
# The path from the top of the module becomes the file's name in the registry of protobuf files, so it has to be one that no other
# module uses.
PATH=$tmp:$PATH protoc --go_out="$tmp" --go_opt=paths=source_relative --go-grpc_out="$tmp" --go-grpc_opt=paths=source_relative $dir/auth.proto
# The version of protoc itself is left out of the header: any recent one writes the same code.
sed -i '/^\/\/ .*protoc  *v/d' "$tmp/$dir"/*.pb.go
gofmt -w "$tmp/$dir"
if [ "${1-}" = -check ]; then
	diff -r -x '*.proto' -x '*.sh' -x doc.go -x protocol.go -x check.go -x "*_test.go" -x testdata $dir "$tmp/$dir"
else
	cp "$tmp/$dir"/*.pb.go $dir
fi
