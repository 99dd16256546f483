package cli

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core"
)

// The pages for users leave nothing out that a user can set, meet or watch.
func TestPagesNameEverything(t *testing.T) {
	t.Parallel()
	read := func(path string) string {
		b, err := os.ReadFile("../../../" + path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	found := func(path, pattern string) []string {
		var all []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(read(path), -1) {
			all = append(all, m[1])
		}
		if len(all) < 10 {
			t.Fatalf("%s has only %d of %s; is it written as this test reads it?", path, len(all), pattern)
		}
		return all
	}
	keys := []string{authKey}
	for _, s := range settings(nil) {
		keys = append(keys, s.key)
	}
	var codes []string
	for _, c := range core.Codes() {
		codes = append(codes, string(c))
	}
	for _, c := range []struct {
		page, what string
		names      []string
	}{
		{"core/OPERATING.md", "setting", keys},
		{"core/OPERATING.md", "metric or attribute", found("core/internal/telemetry/names.go", `= "((?:keyfire|http)\.[a-z_.]+)"`)},
		{"core/OPERATING.md", "audited action", found("core/audit.go", `Action\w+ += "([a-z_.]+)"`)},
		{"core/README.md", "code", codes},
	} {
		page := read(c.page)
		for _, name := range c.names {
			if !strings.Contains(page, "`"+name+"`") {
				t.Errorf("%s does not tell of the %s %s", c.page, c.what, name)
			}
		}
	}
}

// What starts a server for operators, and no test runs, sets nothing that a server does not know, and builds with the Go that the module asks for.
func TestDeploymentFiles(t *testing.T) {
	t.Parallel()
	known := []string{envConfig}
	for _, s := range settings(nil) {
		known = append(known, s.variable())
	}
	read := func(path string) string {
		b, err := os.ReadFile("../../../" + path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, path := range []string{"Dockerfile", "examples/cluster/compose.yaml", "examples/cluster/keyfire.service"} {
		names := regexp.MustCompile(`KEYFIRE_[A-Z_]+`).FindAllString(read(path), -1)
		if len(names) == 0 {
			t.Errorf("%s sets nothing", path)
		}
		for _, name := range names {
			if !slices.Contains(known, name) {
				t.Errorf("%s: the server knows no %s", path, name)
			}
		}
	}
	asked := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read("go.mod"))[1]
	if image := read("Dockerfile"); !strings.Contains(image, "FROM golang:"+asked+" AS build\n") {
		t.Errorf("the image is not built with Go %s, which go.mod asks for", asked)
	}
}
