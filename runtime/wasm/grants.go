package wasm

import (
	"fmt"
	"slices"
	"strings"

	"github.com/keyfire/keyfire/core"
)

// grant is a power that a workflow gives to a node. Most host functions need none.
type grant uint

const (
	grantHTTP grant = 1 << iota
	grantSecrets
	grantKVRead
	grantKVWrite
)

// grantLines says, for each grant, what it is called in a workflow file and the line that gives it.
var grantLines = []struct {
	grant      grant
	name, line string
}{
	{grantHTTP, "http", `grants: {http: ["GET https://api.example.com"]}`},
	{grantSecrets, "secrets", `grants: {secrets: [CRM_TOKEN]}`},
	{grantKVRead, "kv", `grants: {kv: read}`},
	{grantKVWrite, "kv: write", `grants: {kv: write}`},
}

func grantsOf(g core.Grants) (have grant) {
	if len(g.HTTP) > 0 {
		have |= grantHTTP
	}
	if len(g.Secrets) > 0 {
		have |= grantSecrets
	}
	switch g.KV {
	case core.KVRead:
		have |= grantKVRead
	case core.KVWrite:
		have |= grantKVRead | grantKVWrite
	}
	return have
}

// grantNames returns the names of the grants a module needs to be linked.
func (m *module) grantNames() (names []string) {
	var need grant
	for _, d := range m.imports {
		need |= grantOf(d.module + "." + d.name)
	}
	for _, l := range grantLines {
		if need&l.grant != 0 {
			names = append(names, l.name)
		}
	}
	return names
}

// grantOf returns the grant that an import, "module.name", needs; 0 for none.
func grantOf(full string) grant {
	if name, ok := strings.CutPrefix(full, keyfireModule+"."); ok {
		return abiFuncs[name].grant
	}
	if name, ok := strings.CutPrefix(full, extismModule+"."); ok {
		return extismFuncs[name].grant
	}
	return 0
}

// permitted refuses a call of a module that imports what the call does not grant. It returns nil, the interface, when all is well.
func (p *program) permitted(c *Call) error {
	have := grantsOf(c.Grants)
	for _, l := range grantLines {
		if have&l.grant == 0 && slices.Contains(p.info.Grants, l.name) {
			return errorf(core.ClassDenied, "the module uses %s, which the workflow does not grant; it would need %s", l.name, l.line)
		}
	}
	return nil
}

// Check compares a module with the node that uses it, at publish. What it returns is what is wrong, with pointers that begin at
// the node, such as "/grants/http/0", and a detail that says what would be right.
func (i Info) Check(n *core.Node) []core.Field {
	var wrong []core.Field
	if text := i.checkCall(n.Call); text != "" {
		wrong = append(wrong, core.Field{Pointer: "/call", Detail: text})
	}
	if most := n.Limits.Memory; most > 0 && i.MinMemory > wholePages(most) {
		wrong = append(wrong, core.Field{Pointer: "/limits/memory", Detail: fmt.Sprintf("the module starts with %s of memory; allow at least that, or leave the limit out", byteSize(i.MinMemory))})
	}
	have := grantsOf(n.Grants)
	for _, l := range grantLines {
		if have&l.grant != 0 || !slices.Contains(i.Grants, l.name) {
			continue
		}
		wrong = append(wrong, core.Field{Pointer: "/uses", Detail: fmt.Sprintf("the module imports %s, which needs a grant; add to the node, for example, %s", i.importOf(l.grant), l.line)})
	}
	return wrong
}

// importOf names the first import that needs a grant.
func (i Info) importOf(g grant) string {
	at := slices.IndexFunc(i.Imports, func(full string) bool { return grantOf(full)&g != 0 })
	if at < 0 {
		return "a host function"
	}
	return i.Imports[at]
}
