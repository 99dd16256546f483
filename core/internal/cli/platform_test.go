package cli

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/tools/go/packages"
)

// Every package that is shipped type-checks for the other platforms too. Types are read from source, and of dependencies without function bodies, which
// takes a tenth of the time that compiling everything for each of them does. `make check` says which platforms, as os/processor.
func TestPlatforms(t *testing.T) {
	t.Parallel()
	platforms := strings.Fields(os.Getenv("KEYFIRE_PLATFORMS"))
	if len(platforms) == 0 {
		t.Skip("run it with make check")
	}
	for _, platform := range platforms {
		system, processor, _ := strings.Cut(platform, "/")
		all, err := packages.Load(&packages.Config{
			Context: t.Context(), Dir: "../../..", Env: append(os.Environ(), "GOOS="+system, "GOARCH="+processor, "CGO_ENABLED=0"),
			Mode: packages.NeedName | packages.NeedImports | packages.NeedDeps | packages.NeedTypes | packages.NeedSyntax | packages.NeedTypesSizes,
		}, "./core/cmd/keyfire", "./auth/...", "./core/...", "./plugins/...", "./runtime/...", "./sdk/...")
		if err != nil {
			t.Fatal(err)
		}
		if len(all) < 20 {
			t.Fatalf("%s: %d packages", platform, len(all))
		}
		packages.Visit(all, nil, func(p *packages.Package) {
			for _, e := range p.Errors {
				t.Errorf("%s: %v", platform, e)
			}
		})
	}
}
