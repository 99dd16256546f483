#!/bin/sh
# Builds the plugin as one executable file, $1: an archive that the Python interpreter runs. One file is what a server can pin.
# Needs protoc, and at run time python3 with grpcio, protobuf and cryptography (Debian: protobuf-compiler, python3-grpcio,
# python3-protobuf, python3-cryptography).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cp "$here"/*.py "$tmp"
protoc -I"$here/../../../sdk/authplugin/authv1" --python_out="$tmp" auth.proto
/usr/bin/python3 -m zipapp "$tmp" -p /usr/bin/python3 -o "$1"
chmod 755 "$1"
