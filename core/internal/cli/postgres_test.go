package cli

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

func postgresCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: postgres NAME")
	}
	ts.Setenv(args[0], storetest.Postgres(ts.Value(testValue{}).(testing.TB)))
}

// testValue is where a script keeps its testing.TB.
type testValue struct{}
