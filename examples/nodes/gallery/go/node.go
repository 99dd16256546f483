// Command go is the gallery's node in Go, on package node.
package main

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/keyfire/keyfire/sdk/node"
)

type input struct {
	Document string `json:"document"`
}

type rejection struct {
	Line   int    `json:"line"`
	Reason string `json:"reason"`
}

type country struct {
	Country string `json:"country"`
	Orders  int64  `json:"orders"`
	Units   int64  `json:"units"`
	Cents   int64  `json:"cents"`
}

type output struct {
	Accepted  int         `json:"accepted"`
	Rejected  []rejection `json:"rejected"`
	Countries []country   `json:"countries"`
}

func summarize(ctx *node.Context, in input) (output, error) {
	out := output{Rejected: []rejection{}, Countries: []country{}}
	totals := make(map[string]country)
	for i, line := range strings.Split(in.Document, "\n") {
		if i == 0 || line == "" {
			continue
		}
		c, reason := parse(line)
		if reason != "" {
			out.Rejected = append(out.Rejected, rejection{i + 1, reason})
			continue
		}
		out.Accepted++
		t := totals[c.Country]
		totals[c.Country] = country{c.Country, t.Orders + 1, t.Units + c.Units, t.Cents + c.Cents}
	}
	for _, code := range slices.Sorted(maps.Keys(totals)) {
		out.Countries = append(out.Countries, totals[code])
	}
	ctx.Log().Info("summarized", "accepted", out.Accepted, "rejected", len(out.Rejected))
	return out, nil
}

// parse reads one line as the totals of one order, or says which field is wrong.
func parse(line string) (c country, reason string) {
	f := strings.Split(line, ",")
	if len(f) != 5 {
		return c, "fields"
	}
	if f[0] == "" {
		return c, "id"
	}
	if len(f[2]) != 2 || f[2][0] < 'A' || f[2][0] > 'Z' || f[2][1] < 'A' || f[2][1] > 'Z' {
		return c, "country"
	}
	qty, ok := number(f[3], 1_000_000)
	if !ok || qty == 0 {
		return c, "qty"
	}
	price, ok := number(f[4], 1_000_000_000)
	if !ok {
		return c, "price"
	}
	return country{f[2], 1, qty, qty * price}, ""
}

// number reads up to ten digits.
func number(s string, most int64) (int64, bool) {
	if s == "" || len(s) > 10 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n <= most
}

func init() { node.Handle(summarize) }
func main() { node.Main() }
