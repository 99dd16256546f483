package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"
)

// The names expressions know.
const (
	rootInput   = "input"
	rootNodes   = "nodes"
	rootTrigger = "trigger"
	rootRun     = "run"

	// rootVariables is a name of its own, with a dot in it, so that trigger stays an object of texts, which holds no variables when it is read as a whole.
	rootVariables = rootTrigger + "." + variables
	variables     = "variables"
)

var (
	roots         = []string{rootInput, rootNodes, rootRun, rootTrigger}
	nodeFields    = []string{"error", "output", "status"}
	triggerFields = []string{"key_name", "type", variables}
	runFields     = []string{"id"}

	// What the format describes and this version does not have, by name, so that nobody looks for a misspelling.
	later              = map[string]string{"item": "for_each", "index": "for_each", "error": "on_error"}
	laterTriggerFields = []string{"event", "headers"}
)

// expression is a compiled ${{ }}.
type expression struct {
	program cel.Program // nil for a path
	path    *path
	nodes   []string // ids it names
	boolean bool     // may be true or false
}

// path is an expression that only names a value. It is walked rather than computed, so that the value is copied digit by digit,
// and often without being decoded.
type path struct {
	root  string
	steps []any // string or int
}

// flaw is what is wrong with an expression, and where in it: line from 1, column from 0.
type flaw struct {
	line, column int
	detail       string
}

// compile compiles the text of one expression; node reports whether a node with an id exists.
func compile(src string, nodes []string) (*expression, []flaw) {
	env, err := environment()
	if err != nil {
		return nil, []flaw{{1, 0, err.Error()}}
	}
	parsed, issues := env.Parse(src)
	if issues.Err() != nil {
		return nil, flaws(issues)
	}
	info := parsed.NativeRep().SourceInfo()
	w := walker{nodes: nodes, flaw: func(id int64, format string, args ...any) flaw {
		at := info.GetStartLocation(id)
		return flaw{at.Line(), at.Column(), fmt.Sprintf(format, args...)}
	}}
	w.visit(parsed.NativeRep().Expr(), nil)
	if len(w.flaws) > 0 {
		return nil, w.flaws
	}
	checked, issues := env.Check(parsed)
	if issues.Err() != nil {
		// The walk's guess at a misspelt name is worth more than the checker's words, but only the checker knows what is wrong.
		if len(w.unknown) > 0 {
			return nil, w.unknown
		}
		return nil, flaws(issues)
	}
	out := checked.OutputType()
	x := &expression{nodes: w.named, boolean: out.IsExactType(cel.BoolType) || out.IsExactType(cel.DynType)}
	if x.path = pathOf(parsed.NativeRep().Expr()); x.path != nil {
		return x, nil
	}
	x.program, err = env.Program(checked,
		cel.CostLimit(maxCost),
		cel.CostTracking(prices{}),
		cel.MemoryTracking(types.MemoryTrackerSizeCalculator(types.NewSizeCalculator(
			types.SizeCalculatorMaxDepth(128), types.SizeCalculatorMaxTraversal(maxElements))),
			types.MemoryTrackerSampleInterval(measureEvery)),
		cel.MemoryLimit(maxElements),
		cel.InterruptCheckFrequency(checkEvery),
	)
	if err != nil {
		return nil, []flaw{{1, 0, firstLine(err.Error())}}
	}
	return x, nil
}

// flaws lists what CEL found wrong, at most three per expression: the rest mostly follows from the first.
func flaws(issues *cel.Issues) []flaw {
	var list []flaw
	for _, e := range issues.Errors() {
		list = append(list, flaw{max(e.Location.Line(), 1), max(e.Location.Column(), 0), reworded(firstLine(e.Message))})
	}
	if len(list) == 0 {
		list = append(list, flaw{1, 0, firstLine(issues.Err().Error())})
	}
	return list[:min(len(list), 3)]
}

// walker collects the nodes that an expression names and refuses what cannot be known before the run.
type walker struct {
	nodes   []string // ids that exist
	named   []string
	flaws   []flaw
	unknown []flaw // names that nothing here declares; CEL may know them as types
	flaw    func(id int64, format string, args ...any) flaw
}

func (w *walker) visit(e ast.Expr, bound []string) {
	switch e.Kind() {
	case ast.IdentKind, ast.SelectKind, ast.CallKind:
		base, steps := access(e)
		for _, s := range steps {
			if s.index != nil && !s.known() {
				w.visit(s.index, bound)
			}
		}
		switch {
		case base.Kind() == ast.IdentKind:
			w.name(base, steps, bound)
		case base != e:
			w.visit(base, bound)
		case e.Kind() == ast.CallKind:
			call := e.AsCall()
			if call.IsMemberFunction() {
				w.visit(call.Target(), bound)
			}
			for _, arg := range call.Args() {
				w.visit(arg, bound)
			}
		}
	case ast.ListKind:
		for _, item := range e.AsList().Elements() {
			w.visit(item, bound)
		}
	case ast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			w.visit(entry.AsMapEntry().Key(), bound)
			w.visit(entry.AsMapEntry().Value(), bound)
		}
	case ast.StructKind:
		for _, field := range e.AsStruct().Fields() {
			w.visit(field.AsStructField().Value(), bound)
		}
	case ast.ComprehensionKind:
		w.comprehension(e, bound)
	}
}

func (w *walker) comprehension(e ast.Expr, bound []string) {
	c := e.AsComprehension()
	w.visit(c.IterRange(), bound)
	w.visit(c.AccuInit(), bound)
	names := []string{c.IterVar(), c.AccuVar()}
	if c.HasIterVar2() {
		names = append(names, c.IterVar2())
	}
	for _, name := range names {
		if slices.Contains(roots, name) {
			w.flaws = append(w.flaws, w.flaw(e.ID(), "%s already has a meaning here; choose another name for the variable", name))
			return
		}
	}
	inner := append(slices.Clone(bound), names...)
	w.visit(c.LoopCondition(), inner)
	w.visit(c.LoopStep(), inner)
	w.visit(c.Result(), inner)
}

// name judges one mention of a name with what is read from it.
func (w *walker) name(base ast.Expr, steps []step, bound []string) {
	name := strings.TrimPrefix(base.AsIdent(), ".")
	switch {
	case slices.Contains(bound, name):
	case name == rootNodes:
		w.node(base, steps)
	case name == rootTrigger:
		w.field(base, name, steps, triggerFields)
		if len(steps) > 0 && steps[0].optional && steps[0].text == variables {
			w.flaws = append(w.flaws, w.flaw(base.ID(), "trigger.variables is always there; write trigger.variables.?NAME.orValue(\"\") for one that may be missing"))
		}
	case name == rootRun:
		w.field(base, name, steps, runFields)
	case later[name] != "":
		w.flaws = append(w.flaws, w.flaw(base.ID(), "%s belongs to %s, which is not supported yet", name, later[name]))
	case name != rootInput:
		w.unknown = append(w.unknown, w.flaw(base.ID(), "unknown name %q%s; expressions know %s", clip(name), hint(name, roots), strings.Join(roots, ", ")))
	}
}

// field refuses what an object of known fields does not have.
func (w *walker) field(base ast.Expr, name string, steps []step, known []string) {
	if len(steps) == 0 || !steps[0].known() || slices.Contains(known, steps[0].text) {
		return
	}
	if name == rootTrigger && slices.Contains(laterTriggerFields, steps[0].text) {
		w.flaws = append(w.flaws, w.flaw(base.ID(), "trigger.%s is not supported yet", steps[0].text))
		return
	}
	w.flaws = append(w.flaws, w.flaw(base.ID(), "%s has no field %q%s; it has %s", name, clip(steps[0].text), hint(steps[0].text, known), strings.Join(known, ", ")))
}

func (w *walker) node(base ast.Expr, steps []step) {
	fail := func(format string, args ...any) { w.flaws = append(w.flaws, w.flaw(base.ID(), format, args...)) }
	if len(steps) == 0 || !steps[0].known() {
		fail("name the node, as nodes.<id> or nodes[\"<id>\"]: what a node needs must be known before the run")
		return
	}
	id := steps[0].text
	switch {
	case !slices.Contains(w.nodes, id):
		near := hint(id, w.nodes)
		for _, other := range w.nodes {
			if strings.HasPrefix(other, id+"-") && !steps[0].optional {
				near = fmt.Sprintf("; did you mean nodes[%q]? A hyphen is a minus elsewhere", other)
			}
		}
		fail("no node is called %q%s", clip(id), near)
	case len(steps) == 1 || !steps[1].known() || !slices.Contains(nodeFields, steps[1].text):
		near := ""
		if len(steps) > 1 && steps[1].known() {
			near = fmt.Sprintf("; did you mean output.%s?", clip(steps[1].text))
		}
		fail("a node has output, status and error: write %s%s", mention(id), near)
	case !slices.Contains(w.named, id):
		w.named = append(w.named, id)
	}
}

// mention writes how an expression reads a node's output.
func mention(id string) string {
	if strings.Contains(id, "-") {
		return fmt.Sprintf("nodes[%q].output", id)
	}
	return "nodes." + id + ".output"
}

// step is one ".field", "[index]" or their optional forms.
type step struct {
	text     string // of a field or a constant text index
	index    ast.Expr
	optional bool
	test     bool // inside has()
}

// known reports whether the step names a field as written.
func (s step) known() bool { return s.index == nil }

// access splits a chain of steps from what it begins with.
func access(e ast.Expr) (base ast.Expr, steps []step) {
	for {
		switch e.Kind() {
		case ast.SelectKind:
			sel := e.AsSelect()
			steps = append(steps, step{text: sel.FieldName(), test: sel.IsTestOnly()})
			e = sel.Operand()
			continue
		case ast.CallKind:
			call := e.AsCall()
			fn := call.FunctionName()
			if fn != operators.Index && fn != operators.OptIndex && fn != operators.OptSelect || len(call.Args()) != 2 {
				break
			}
			s := step{index: call.Args()[1], optional: fn != operators.Index}
			if s.index.Kind() == ast.LiteralKind {
				if text, ok := s.index.AsLiteral().(types.String); ok {
					s.text, s.index = string(text), nil
				}
			}
			steps = append(steps, s)
			e = call.Args()[0]
			continue
		}
		slices.Reverse(steps)
		return e, steps
	}
}

// pathOf returns the path that an expression is, or nil.
func pathOf(e ast.Expr) *path {
	base, steps := access(e)
	if base.Kind() != ast.IdentKind {
		return nil
	}
	p := &path{root: strings.TrimPrefix(base.AsIdent(), ".")}
	if !slices.Contains(roots, p.root) {
		return nil // a type
	}
	for _, s := range steps {
		switch {
		case s.optional || s.test:
			return nil
		case s.known():
			p.steps = append(p.steps, s.text)
		default:
			if s.index.Kind() != ast.LiteralKind {
				return nil
			}
			i, ok := s.index.AsLiteral().(types.Int)
			if !ok || i < 0 || i > 1<<30 {
				return nil
			}
			p.steps = append(p.steps, int(i))
		}
	}
	if p.root == rootTrigger && len(p.steps) > 0 && p.steps[0] == variables {
		p.root, p.steps = rootVariables, p.steps[1:]
	}
	return p
}

// resolve walks the path. The result is decoded JSON, or a *lazy that nobody had to decode.
func (p *path) resolve(s *scope) (any, error) {
	v, ok := s.ResolveName(p.root)
	if !ok {
		return nil, fmt.Errorf("%s is not known here", p.root)
	}
	for i, step := range p.steps {
		if l, ok := v.(*lazy); ok {
			tree, err := l.value()
			if err != nil {
				return nil, err
			}
			v = tree
		}
		var found bool
		switch step := step.(type) {
		case string:
			switch in := v.(type) {
			case *object:
				v, found = in.fields[step]
			case map[string]any: // of the scope itself
				v, found = in[step]
			}
		case int:
			if in, ok := v.(*array); ok && step < len(in.items) {
				v, found = in.items[step], true
			}
		}
		if !found {
			return nil, fmt.Errorf("%s has no %s", p.prefix(i), stepText(p.steps[i]))
		}
	}
	return v, nil
}

// prefix writes the first n steps of the path as an author would.
func (p *path) prefix(n int) string {
	var b strings.Builder
	b.WriteString(p.root)
	for _, step := range p.steps[:n] {
		switch step := step.(type) {
		case string:
			if plainName(step) {
				b.WriteString("." + step)
			} else {
				fmt.Fprintf(&b, "[%q]", step)
			}
		case int:
			fmt.Fprintf(&b, "[%d]", step)
		}
	}
	return clip(b.String())
}

func stepText(step any) string {
	if i, ok := step.(int); ok {
		return fmt.Sprintf("item %d", i)
	}
	return fmt.Sprintf("field %q", clip(step.(string)))
}

func plainName(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == "" && (s[0] > '9' || s[0] < '0')
}

// scope is what the names of an expression stand for during a run.
type scope struct {
	input   *lazy
	nodes   map[string]any
	trigger map[string]any
	run     map[string]any

	variables map[string]any
}

// ResolveName implements interpreter.Activation.
func (s *scope) ResolveName(name string) (any, bool) {
	switch strings.TrimPrefix(name, ".") {
	case rootInput:
		return s.input, true
	case rootNodes:
		return s.nodes, true
	case rootTrigger:
		return s.trigger, true
	case rootVariables:
		return s.variables, true
	case rootRun:
		return s.run, true
	}
	return nil, false
}

// Parent implements interpreter.Activation.
func (s *scope) Parent() interpreter.Activation { return nil }

// evaluate computes an expression. The error's text is for the caller of the workflow.
func (x *expression) evaluate(ctx context.Context, s *scope) (ref.Val, error) {
	if x.path != nil {
		v, err := x.path.resolve(s)
		if err != nil {
			return nil, err
		}
		env, err := environment()
		if err != nil {
			return nil, err
		}
		return env.CELTypeAdapter().NativeToValue(v), nil
	}
	v, _, err := x.program.ContextEval(ctx, s)
	if err != nil {
		return nil, evaluationError(ctx, err)
	}
	return v, nil
}

// write appends the value of an expression to w, as a value or as a part of a text.
func (x *expression) write(ctx context.Context, s *scope, w *writer, inText bool) error {
	if x.path != nil && !inText {
		v, err := x.path.resolve(s)
		if err != nil {
			return err
		}
		w.native(v)
		return w.err
	}
	v, err := x.evaluate(ctx, s)
	if err != nil {
		return err
	}
	if inText {
		w.interpolate(v)
	} else {
		w.value(v)
	}
	return w.err
}

// evaluationError makes what CEL reports fit to be shown.
func evaluationError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var cancelled interpreter.EvalCancelledError
	if errors.As(err, &cancelled) {
		return errors.New("the expression is too expensive: it must compute less, or on less")
	}
	if errors.Is(err, errManyValues) {
		return errManyValues
	}
	return errors.New(clip(reworded(firstLine(err.Error()))))
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimPrefix(s, "ERROR: "), "\n")
	return strings.TrimSpace(line)
}

// clip keeps a text that a message quotes from filling the message.
func clip(s string) string {
	const most = 200
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "..."
	}
	return s
}
