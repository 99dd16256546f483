package server

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // for the page's template and style
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gin-gonic/gin"
)

// The page at /docs is written by the server from the API document, once, as plain HTML: it needs no script and nothing from elsewhere, so its policy can
// forbid both. A renderer in the browser was weighed and left out: the usual one is 4 MB of code from others that would have to be trusted on the origin of
// the API, needs inline styles, and comes with a proxy and an assistant of its maker's.

//go:embed docs/page.html
var docsPage string

//go:embed docs/style.css
var docsStyle string

type docsView struct {
	Title, Version string
	Description    template.HTML
	Style          template.CSS
	Security       []docsRow
	Groups         []docsGroup
	Schemas        []docsSchema
}

type docsGroup struct {
	Name       string
	Operations []docsOperation
}

type docsOperation struct {
	ID, Method, Path, Summary, Curl string
	Description                     template.HTML
	Open                            bool
	Parameters, Bodies, Responses   []docsRow
}

type docsSchema struct {
	Name       string
	Properties []docsRow
}

// docsRow is a row of any of the tables.
type docsRow struct {
	Name, In, Status, Media, Where string
	Required                       bool
	Type, Description              template.HTML
}

// docs is the document as a page for people, and the Content-Security-Policy it is served under.
type docs struct {
	page   []byte
	policy string
}

func renderDocs(doc *huma.OpenAPI) (docs, error) {
	view := docsView{Title: doc.Info.Title, Version: doc.Info.Version, Description: markdown(doc.Info.Description), Style: template.CSS(docsStyle)} //nolint:gosec // our own file
	for _, name := range slices.Sorted(maps.Keys(doc.Components.SecuritySchemes)) {
		scheme := doc.Components.SecuritySchemes[name]
		where := scheme.In + " " + scheme.Name
		if scheme.Type == "http" {
			where = "header Authorization"
		}
		view.Security = append(view.Security, docsRow{Where: where, Description: inline(scheme.Description)})
	}
	for _, tag := range doc.Tags {
		g := docsGroup{Name: tag.Name}
		for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
			for _, op := range operations(doc.Paths[path]) {
				if slices.Contains(op.Tags, tag.Name) && op.Method != http.MethodHead {
					g.Operations = append(g.Operations, docsOperationOf(op))
				}
			}
		}
		view.Groups = append(view.Groups, g)
	}
	schemas := doc.Components.Schemas.Map()
	for _, name := range slices.Sorted(maps.Keys(schemas)) {
		view.Schemas = append(view.Schemas, docsSchema{Name: name, Properties: docsProperties(schemas[name])})
	}
	page, err := template.New("docs").Parse(docsPage)
	if err != nil {
		return docs{}, fmt.Errorf("documentation page: %w", err)
	}
	var out bytes.Buffer
	if err := page.Execute(&out, view); err != nil {
		return docs{}, fmt.Errorf("documentation page: %w", err)
	}
	// The style's hash is taken of the page as it is, since the template may rewrite what it inserts.
	_, style, _ := bytes.Cut(out.Bytes(), []byte("<style>"))
	style, _, _ = bytes.Cut(style, []byte("</style>"))
	sum := sha256.Sum256(style)
	return docs{out.Bytes(), "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}, nil
}

func (s *Server) getDocs(c *gin.Context) {
	docs, err := s.docs()
	if err != nil {
		s.fail(c, err)
		return
	}
	h := c.Writer.Header()
	h.Set("Content-Security-Policy", docs.policy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "public, max-age=300")
	s.sendBytes(c, http.StatusOK, "text/html; charset=utf-8", docs.page)
}

// operations returns those of a path in the order people think of them.
func operations(item *huma.PathItem) []*huma.Operation {
	return slices.DeleteFunc([]*huma.Operation{item.Post, item.Get, item.Head, item.Put, item.Patch, item.Delete}, func(op *huma.Operation) bool { return op == nil })
}

func docsOperationOf(op *huma.Operation) docsOperation {
	d := docsOperation{ID: op.OperationID, Method: op.Method, Path: op.Path, Summary: op.Summary, Description: inline(op.Description), Open: len(op.Security) == 0, Curl: curl(op)}
	for _, p := range op.Parameters {
		d.Parameters = append(d.Parameters, docsRow{Name: p.Name, In: p.In, Required: p.Required, Type: typeOf(p.Schema), Description: inline(p.Description)})
	}
	if op.RequestBody != nil {
		for _, media := range slices.Sorted(maps.Keys(op.RequestBody.Content)) {
			d.Bodies = append(d.Bodies, docsRow{Media: media, Type: typeOf(op.RequestBody.Content[media].Schema), Description: inline(op.RequestBody.Description)})
		}
	}
	for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
		r := op.Responses[status]
		row := docsRow{Status: status, Description: inline(r.Description)}
		for _, media := range slices.Sorted(maps.Keys(r.Content)) {
			row.Type = typeOf(r.Content[media].Schema)
		}
		d.Responses = append(d.Responses, row)
	}
	return d
}

// curl writes a call that can be pasted, for operations whose body has an example.
func curl(op *huma.Operation) string {
	if op.RequestBody == nil || op.RequestBody.Content[typeJSON] == nil || op.RequestBody.Content[typeJSON].Example == nil {
		return ""
	}
	body, err := json.Marshal(op.RequestBody.Content[typeJSON].Example)
	if err != nil {
		panic(err) // the examples are ours
	}
	return "curl -X " + op.Method + " \"$KEYFIRE_URL" + op.Path + "\" \\\n  -H \"Authorization: Bearer $KEYFIRE_KEY\" -H 'Content-Type: application/json' \\\n  -d '" + string(body) + "'"
}

func docsProperties(s *huma.Schema) []docsRow {
	rows := make([]docsRow, 0, len(s.Properties))
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		p := s.Properties[name]
		rows = append(rows, docsRow{Name: name, Required: slices.Contains(s.Required, name), Type: typeOf(p), Description: inline(p.Description)})
	}
	return rows
}

// typeOf names a schema's type, and links it when it is one of the objects.
func typeOf(s *huma.Schema) template.HTML {
	switch {
	case s == nil:
		return ""
	case s.Ref != "":
		name := template.HTMLEscapeString(s.Ref[strings.LastIndexByte(s.Ref, '/')+1:])
		return template.HTML(`<a href="#schema-` + name + `">` + name + `</a>`) //nolint:gosec // escaped above
	case len(s.AnyOf) == 2 && s.AnyOf[1].Type == "null":
		return typeOf(s.AnyOf[0]) + " or null"
	case s.Type == huma.TypeArray:
		return "list of " + typeOf(s.Items)
	case len(s.Enum) > 0:
		values := make([]string, len(s.Enum))
		for i, v := range s.Enum {
			values[i] = fmt.Sprint(v)
		}
		return inline(strings.Join(values, " | "))
	}
	text := s.Type
	if text == "" {
		text = "any value"
	}
	if s.Format != "" {
		text = s.Format
	}
	if s.Minimum != nil && s.Maximum != nil {
		text += fmt.Sprintf(" %v..%v", *s.Minimum, *s.Maximum)
	}
	if s.Default != nil {
		text += fmt.Sprintf(", default %v", s.Default)
	}
	if s.Nullable {
		text += " or null"
	}
	return inline(text)
}

var (
	codeSpan = regexp.MustCompile("`([^`]+)`")
	boldSpan = regexp.MustCompile(`\*\*([^*]+)\*\*`)
	linkSpan = regexp.MustCompile(`\[([^\]]+)\]\((https://[^)\s]+)\)`)
)

// inline renders the little Markdown that our descriptions use.
func inline(s string) template.HTML {
	s = template.HTMLEscapeString(s)
	s = codeSpan.ReplaceAllString(s, "<code>$1</code>")
	s = boldSpan.ReplaceAllString(s, "<strong>$1</strong>")
	s = linkSpan.ReplaceAllString(s, `<a href="$2">$1</a>`)
	return template.HTML(s) //nolint:gosec // escaped first
}

// markdown renders paragraphs of it.
func markdown(s string) template.HTML {
	var out template.HTML
	for p := range strings.SplitSeq(s, "\n\n") {
		out += "<p>" + inline(p) + "</p>\n"
	}
	return out
}
