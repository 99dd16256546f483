//go:build wasip1

// Command plugin is a plugin in Go, on Extism's development kit: it reads the gallery's document and counts what is in it.
package main

import (
	"strconv"
	"strings"

	pdk "github.com/extism/go-pdk"
)

type input struct {
	Document string `json:"document"`
}

type output struct {
	Lines int              `json:"lines"`
	Cents map[string]int64 `json:"cents"`
}

func main() {}

//go:wasmexport run_test
func runTest() int32 {
	var in input
	if err := pdk.InputJSON(&in); err != nil {
		pdk.SetError(err)
		return 1
	}
	out := output{Cents: make(map[string]int64)}
	for line := range strings.Lines(in.Document) {
		out.Lines++
		f := strings.Split(strings.TrimSpace(line), ",")
		if len(f) != 5 {
			continue
		}
		n, err1 := strconv.ParseInt(f[3], 10, 64)
		price, err2 := strconv.ParseInt(f[4], 10, 64)
		if err1 == nil && err2 == nil {
			out.Cents[f[2]] += n * price
		}
	}
	if err := pdk.OutputJSON(out); err != nil {
		pdk.SetError(err)
		return 1
	}
	return 0
}
