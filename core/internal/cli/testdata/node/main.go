// A node that does what its input says, for tests.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

func main() {
	var in struct {
		Do     string          `json:"do"`
		Value  json.RawMessage `json:"value"`
		MS     int             `json:"ms"`
		Config json.RawMessage `json:"config"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	switch in.Do {
	case "work": // keeps a processor busy for a while
		for end := time.Now().Add(time.Duration(in.MS) * time.Millisecond); time.Now().Before(end); {
		}
	case "loop":
		for {
		}
	case "exit":
		fmt.Fprintln(os.Stderr, "about to exit")
		os.Exit(3)
	case "fail":
		fmt.Println(`{"fail":{"status":409,"code":"duplicate_invoice","message":"invoice 42 exists already"}}`)
		os.Exit(1)
	case "log":
		for i := range 3 {
			fmt.Fprintf(os.Stderr, "line %d\n", i+1)
		}
	case "garbage":
		fmt.Println("not JSON")
		return
	}
	out := map[string]any{"value": in.Value, "config": in.Config}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		os.Exit(2)
	}
}
