#!/bin/sh
# What `make run` does once everything is built: it runs a server in the foreground, publishes the examples on it, and prints a
# request for each, with a key of its own. The data stays in ./data, or where KEYFIRE_DATA says. Ctrl-C stops the server.
set -eu
cd "$(dirname "$0")/.."

keyfire=bin/keyfire
address=${KEYFIRE_LISTEN:-127.0.0.1:8080}
export KEYFIRE_DATA="${KEYFIRE_DATA:-data}"
unset KEYFIRE_URL KEYFIRE_KEY # the commands below mean the server that is started here

publish() {
	# The server, which takes over this process, answers on its socket as soon as it is ready.
	tries=0
	until "$keyfire" workflows list >/dev/null 2>&1; do
		kill -0 $$ 2>/dev/null || exit 0 # it has ended, and said why
		tries=$((tries + 1))
		if [ "$tries" -eq 100 ]; then
			echo "make run: the server does not answer" >&2
			exit 1
		fi
		sleep 0.1
	done
	"$keyfire" apply examples/workflows
	# Printed at once and at the end, so that the server's log does not come in between.
	requests=
	for example in greet csv-report github-push; do
		key=$("$keyfire" keys create --name "make run: $example" --workflow "$example" --expires 7d 2>/dev/null)
		output=
		if [ "$example" != greet ]; then
			# The answer begins with the input, which is long here, and holds line breaks as \n.
			output=" | awk '{ sub(/.*\"output\":/, \"\"); gsub(/\\\\n/, \"\\n\") } 1'"
		fi
		requests="$requests
curl -sS -H 'Authorization: Bearer $key' -H 'Content-Type: application/json' \\
  --data-binary @'$PWD/examples/workflows/$example/request.json' http://$address/v1/workflows/$example/runs$output
"
	done
	printf '\nTry it from another terminal:\n%s\n%s\n\n' "$requests" "The tour goes on in README.md. Ctrl-C stops the server; what it has stored stays in $KEYFIRE_DATA."
}

publish &
exec "$keyfire" serve --listen "$address"
