package trigger

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core/internal/workflow"
)

// Who sends an input with more mistakes than are told is to know that there are more.
func TestInputWithManyMistakes(t *testing.T) {
	t.Parallel()
	schema, err := workflow.CompileSchema(json.RawMessage(`{"type": "array", "items": {"type": "string"}}`))
	if err != nil {
		t.Fatal(err)
	}
	p := &pinned{schema: schema}
	for n, want := range map[int]string{1: "1 field is invalid", 2: "2 fields are invalid", 19: "19 fields are invalid", 30: "at least 20 fields are invalid; these are the first"} {
		err := p.checkInput(json.RawMessage("[" + strings.Repeat("1,", n-1) + "1]"))
		if err == nil || err.Error() != "invalid_input: "+want {
			t.Errorf("%d mistakes: %v, want %s", n, err, want)
		}
	}
}
