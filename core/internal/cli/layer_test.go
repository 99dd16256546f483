package cli

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const modulePath = "github.com/keyfire/keyfire"

// allowed is what one package may import beside the standard library. A package that holds a decision back from the rest, such as
// which database or which WASM engine, is the only one whose row names that library.
type allowed struct {
	own   []string // packages of this module
	third []string // module paths or path prefixes
	// exports lists the third-party prefixes whose types may appear in the package's exported signatures. For everything else
	// the package is the one place that knows the library.
	exports []string
}

// otelAPI is OpenTelemetry without its SDK: interfaces and names, cheap enough to depend on from any layer.
const otelAPI = "otel-api"

var otelAPIPackages = []string{
	"go.opentelemetry.io/otel", "go.opentelemetry.io/otel/attribute", "go.opentelemetry.io/otel/codes", "go.opentelemetry.io/otel/metric",
	"go.opentelemetry.io/otel/metric/noop", "go.opentelemetry.io/otel/propagation", "go.opentelemetry.io/otel/trace", "go.opentelemetry.io/otel/trace/noop",
}

// layers is the architecture. Do not add to a row to make a build pass: a new row or a longer one is a decision to review.
var layers = map[string]allowed{
	"core": {},
	"auth": {own: []string{"core"}, third: []string{otelAPI, "golang.org/x/crypto/argon2"}, exports: []string{otelAPI}},

	// What tests of refusals share; nothing but tests imports it.
	"auth/authtest": {},

	// Rules over claims are part of deciding who a token is, so CEL is hidden here and not wired in from outside.
	"auth/hookauth": {own: []string{"core", "auth"}},
	"auth/jwtauth":  {own: []string{"core", "auth"}, third: []string{"github.com/golang-jwt/jwt/v5", "github.com/coreos/go-oidc/v3", "cel.dev/cel-go"}},

	"core/internal/workflow": {own: []string{"core"}, third: []string{"github.com/goccy/go-yaml", "github.com/santhosh-tekuri/jsonschema/v6", "github.com/robfig/cron/v3"}},
	"runtime/wasm":           {own: []string{"core"}, third: []string{"github.com/tetratelabs/wazero"}},
	"runtime/engine":         {own: []string{"core", "runtime/wasm"}, third: []string{"cel.dev/cel-go", otelAPI}, exports: []string{otelAPI}},

	"core/internal/trigger": {
		own:     []string{"core", "auth", "core/internal/workflow", "core/internal/queue"},
		third:   []string{"github.com/hashicorp/golang-lru/v2", otelAPI},
		exports: []string{otelAPI},
	},
	"core/internal/admin": {own: []string{"core", "auth", "core/internal/workflow"}, third: []string{otelAPI}, exports: []string{otelAPI}},
	"core/internal/store": {
		own:   []string{"core", "auth"},
		third: []string{"modernc.org/sqlite", "modernc.org/libc", "zombiezen.com/go/sqlite", "github.com/jackc/pgx/v5", "github.com/pressly/goose/v3"},
	},
	// The suite that every database must pass. It is a package of its own so that the databases' tests can share it; nothing but tests imports it.
	"core/internal/store/storetest": {
		own:   []string{"core", "auth", "core/internal/store"},
		third: []string{"github.com/google/go-cmp", "pgregory.net/rapid"},
	},
	// How changes of the audit log are made to show is hidden here.
	"core/internal/seal": {own: []string{"core"}},
	// Which queue hands out runs is hidden here.
	"core/internal/queue":           {own: []string{"core"}, third: []string{"github.com/nats-io/nats.go", "github.com/nats-io/nuid"}},
	"core/internal/queue/queuetest": {own: []string{"core", "core/internal/queue"}},

	"core/internal/telemetry": {
		own:     []string{"core"},
		third:   []string{"go.opentelemetry.io/otel", "go.opentelemetry.io/contrib", "github.com/go-logr/logr", "golang.org/x/sys/unix"},
		exports: []string{"go.opentelemetry.io/otel"},
	},
	// The adapters are part of the server, in a package of their own so that they can use no more of it than compat.Host.
	"core/internal/server/compat": {
		own:     []string{"core", "auth", "core/internal/trigger", "core/internal/admin"},
		third:   []string{"github.com/gin-gonic/gin"},
		exports: []string{"github.com/gin-gonic/gin"},
	},
	"core/internal/console": {own: []string{"core", "auth", "core/internal/admin"}},
	"core/internal/server": {
		own:     []string{"core", "auth", "core/internal/trigger", "core/internal/admin", "core/internal/server/compat", "core/internal/console"},
		third:   []string{"github.com/gin-gonic/gin", "github.com/danielgtaylor/huma/v2", otelAPI},
		exports: []string{otelAPI},
	},
	"core/internal/cli": {
		own: []string{
			"core", "auth", "core/internal/workflow", "core/internal/trigger", "core/internal/admin", "core/internal/store",
			"core/internal/queue", "core/internal/seal", "core/internal/telemetry", "core/internal/server", "core/internal/server/compat", "core/internal/console", "runtime/wasm", "runtime/engine", "auth/hookauth", "auth/jwtauth", "plugins",
			"sdk/authplugin/scaffold", "sdk/client",
		},
		third: []string{"github.com/spf13/cobra", "github.com/spf13/pflag", "github.com/coreos/go-systemd/v22", "github.com/KimMachineGun/automemlimit", "github.com/knadh/koanf", "github.com/oklog/ulid/v2", "golang.org/x/term", otelAPI},
	},
	"core/cmd/keyfire": {own: []string{"core/internal/cli"}},

	"plugins": {
		own: []string{"core", "auth", "sdk/authplugin", "sdk/authplugin/authv1"},
		third: []string{
			"github.com/hashicorp/go-plugin", "github.com/hashicorp/go-hclog", "google.golang.org/grpc", "google.golang.org/protobuf", "golang.org/x/sys/unix",
			otelAPI,
		},
		exports: []string{otelAPI},
	},
	"sdk/authplugin": {
		own:   []string{"sdk/authplugin/authv1"},
		third: []string{"github.com/hashicorp/go-plugin", "github.com/hashicorp/go-hclog", "google.golang.org/grpc"},
	},
	"sdk/authplugin/authv1": {
		third:   []string{"google.golang.org/grpc", "google.golang.org/protobuf"},
		exports: []string{"google.golang.org/grpc", "google.golang.org/protobuf"},
	},
	// The conformance kit is for the tests of plugin authors.
	"sdk/authplugin/plugintest": {
		own:   []string{"sdk/authplugin", "sdk/authplugin/authv1"},
		third: []string{"github.com/hashicorp/go-plugin", "github.com/hashicorp/go-hclog", "google.golang.org/grpc"},
	},
	"sdk/authplugin/scaffold": {},
	"sdk/client":              {},

	// The plugins we ship are built like anybody's: on the SDK, and on what they share.
	"plugins/internal/upstream": {},

	"plugins/hmac":          {own: []string{"sdk/authplugin"}},
	"plugins/introspection": {own: []string{"sdk/authplugin", "plugins/internal/upstream"}},
	"plugins/forwardauth":   {own: []string{"sdk/authplugin", "plugins/internal/upstream"}},
	"plugins/ldap":          {own: []string{"sdk/authplugin", "plugins/internal/upstream"}, third: []string{"github.com/go-ldap/ldap/v3", "golang.org/x/text/unicode/norm"}},
}

// goList returns the fields of every package that the pattern matches.
func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,GoFiles,Dir"}, args...)...)
	cmd.Dir = filepath.Join("..", "..", "..")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v: %v\n%s", cmd, err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

type goPackage struct {
	ImportPath string
	Imports    []string // of the package itself, without its tests
	GoFiles    []string
	Dir        string
}

func TestLayers(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, p := range goList(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, modulePath+"/")
		if len(p.GoFiles) == 0 {
			continue // tests only
		}
		row, ok := layers[name]
		if !ok {
			t.Errorf("package %s has no row in the layer table", name)
			continue
		}
		seen[name] = true
		for _, imported := range p.Imports {
			if own, ok := strings.CutPrefix(imported, modulePath+"/"); ok {
				if !slices.Contains(row.own, own) {
					t.Errorf("%s imports %s, which its layer may not", name, own)
				}
			} else if isThirdParty(imported) && !anyCovers(row.third, imported) {
				t.Errorf("%s imports %s, which belongs to another package", name, imported)
			}
		}
	}
	if !seen["core"] || !seen["core/internal/cli"] {
		t.Errorf("go list found only %v; this test looks in the wrong place", seen)
	}
}

// Test libraries must not reach the binary, whichever package brings them.
func TestNoTestLibraryInTheBinary(t *testing.T) {
	t.Parallel()
	banned := []string{
		"github.com/google/go-cmp", "github.com/rogpeppe/go-internal", "go.uber.org/goleak", "golang.org/x/tools", "pgregory.net/rapid",
		"github.com/stretchr/testify", "net/http/httptest",
	}
	deps := goList(t, "-deps", "./core/cmd/keyfire")
	if len(deps) < 100 {
		t.Fatalf("go list -deps found only %d packages", len(deps))
	}
	for _, p := range deps {
		if anyCovers(banned, p.ImportPath) {
			t.Errorf("the binary contains %s", p.ImportPath)
		}
	}
}

// A foreign type in an exported signature hands the decision for that library on to every caller.
func TestNoForeignTypeInExportedSignatures(t *testing.T) {
	t.Parallel()
	for _, p := range goList(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, modulePath+"/")
		row := layers[name]
		for _, file := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, file), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			if ast.IsGenerated(f) {
				continue
			}
			foreign := foreignNames(f)
			foreign["sql"] = "database/sql" // the standard library's, but as telling
			for _, sel := range exportedSelectors(f) {
				imported, ok := foreign[sel.X.(*ast.Ident).Name]
				if ok && !anyCovers(row.exports, imported) {
					t.Errorf("%s: exported signature of %s shows %s.%s", fset.Position(sel.Pos()), name, imported, sel.Sel.Name)
				}
			}
		}
	}
}

// foreignNames maps the names that a file gives to third-party packages to their import paths.
func foreignNames(f *ast.File) map[string]string {
	names := map[string]string{}
	for _, spec := range f.Imports {
		imported := strings.Trim(spec.Path.Value, `"`)
		if !isThirdParty(imported) || strings.HasPrefix(imported, modulePath) {
			continue
		}
		name := path.Base(imported)
		if strings.HasPrefix(name, "v") && strings.Trim(name[1:], "0123456789") == "" {
			name = path.Base(path.Dir(imported))
		}
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = imported
	}
	return names
}

// exportedSelectors returns every "pkg.Name" in the exported signatures of a file: functions, methods of exported types, exported
// fields, interface methods, variables with a type.
func exportedSelectors(f *ast.File) []*ast.SelectorExpr {
	var found []*ast.SelectorExpr
	collect := func(n ast.Node) {
		ast.Inspect(n, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Field: // of a struct or interface: unexported ones do not show
				if len(n.Names) > 0 && !slices.ContainsFunc(n.Names, (*ast.Ident).IsExported) && !isParameter(f, n) {
					return false
				}
			case *ast.SelectorExpr:
				if _, ok := n.X.(*ast.Ident); ok {
					found = append(found, n)
				}
			}
			return true
		})
	}
	for _, decl := range f.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			if decl.Name.IsExported() && (decl.Recv == nil || exportedReceiver(decl.Recv)) {
				collect(decl.Type)
			}
		case *ast.GenDecl:
			for _, spec := range decl.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					if spec.Name.IsExported() {
						collect(spec.Type)
					}
				case *ast.ValueSpec:
					if spec.Type != nil && slices.ContainsFunc(spec.Names, (*ast.Ident).IsExported) {
						collect(spec.Type)
					}
				}
			}
		}
	}
	return found
}

// isParameter reports whether field is a parameter or result of some function type, where names say nothing about visibility.
func isParameter(f *ast.File, field *ast.Field) bool {
	is := false
	ast.Inspect(f, func(n ast.Node) bool {
		if fn, ok := n.(*ast.FuncType); ok {
			for _, list := range []*ast.FieldList{fn.Params, fn.Results, fn.TypeParams} {
				if list != nil && slices.Contains(list.List, field) {
					is = true
				}
			}
		}
		return !is
	})
	return is
}

func exportedReceiver(recv *ast.FieldList) bool {
	exported := false
	ast.Inspect(recv.List[0].Type, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok && id.IsExported() {
			exported = true
		}
		return true
	})
	return exported
}

func isThirdParty(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return strings.Contains(first, ".")
}

// anyCovers reports whether importPath is one of the prefixes or lies below one.
func anyCovers(prefixes []string, importPath string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool {
		if prefix == otelAPI {
			return slices.Contains(otelAPIPackages, importPath)
		}
		return importPath == prefix || strings.HasPrefix(importPath, prefix+"/")
	})
}
