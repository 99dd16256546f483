package core

import (
	"encoding/json"
	"testing"
)

func TestPointerSteps(t *testing.T) {
	t.Parallel()
	for name, step := range map[string]string{"": "", "a b": "a b", "a/b": "a~1b", "a~b": "a~0b", "~1": "~01", "/~": "~1~0"} {
		if got := EscapePointer(name); got != step {
			t.Errorf("EscapePointer(%q) = %q, want %q", name, got, step)
		}
		if got := UnescapePointer(step); got != name {
			t.Errorf("UnescapePointer(%q) = %q, want %q", step, got, name)
		}
	}
}

func TestDecodeJSONRoundsNothing(t *testing.T) {
	t.Parallel()
	v, err := DecodeJSON([]byte(` [12345678901234567890, 0.10] `))
	if err != nil {
		t.Fatal(err)
	}
	if list, ok := v.([]any); !ok || len(list) != 2 || list[0] != json.Number("12345678901234567890") || list[1] != json.Number("0.10") {
		t.Errorf("got %#v", v)
	}
	for _, wrong := range []string{"", "{", "1 2", "{} {}", "1]", "{}}", "[] ]"} {
		if v, err := DecodeJSON([]byte(wrong)); err == nil {
			t.Errorf("%q is %v", wrong, v)
		}
	}
}
