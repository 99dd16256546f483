package engine

import (
	"errors"
	"fmt"
	"regexp"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"

	"github.com/keyfire/keyfire/runtime/wasm"
)

// Bounds of one expression. The author of a workflow is trusted with the account's runs, not with the server.
const (
	maxExpression  = 8 << 10   // characters
	maxNesting     = 60        // levels of the expression's own syntax
	maxParts       = 5_000     // parts of the syntax tree, macros expanded
	maxLoops       = 4         // comprehensions inside each other
	maxPattern     = 2_000     // instructions of a regular expression
	maxPatternText = 2_000     // bytes of one
	maxMatching    = 5_000_000 // instructions of a regular expression times bytes of the text it is matched with
	maxPatterns    = 256       // compiled regular expressions that are kept
	maxCost        = 2_000_000
	maxElements    = 2_000_000   // values inside one value, shared ones counted each time
	maxDistinct    = 1_000       // items of a list whose items are compared with each other
	maxSearch      = 100_000_000 // bytes of a text times bytes of what indexOf looks for, as it compares at every place anew
	checkEvery     = 1           // rounds of a loop between two looks at the deadline
	measureEvery   = 256         // rounds of a loop between two measurements of what it has built; each costs as much as that is large
)

// environment returns what expressions are compiled in. It is built once: it never changes.
var environment = sync.OnceValues(newEnvironment)

func newEnvironment() (*cel.Env, error) {
	registry, err := types.NewRegistry()
	if err != nil {
		return nil, err
	}
	std, err := cel.NewEnv()
	if err != nil {
		return nil, err
	}
	operators, err := operatorsOf(std)
	if err != nil {
		return nil, err
	}
	env, err := cel.NewCustomEnv(append(operators,
		cel.EagerlyValidateDeclarations(true),
		cel.CustomTypeAdapter(adapter{registry}),
		cel.Variable(rootInput, cel.DynType),
		cel.Variable(rootNodes, cel.MapType(cel.StringType, cel.MapType(cel.StringType, cel.DynType))),
		cel.Variable(rootTrigger, cel.MapType(cel.StringType, cel.StringType)),
		cel.Variable(rootVariables, cel.MapType(cel.StringType, cel.StringType)),
		cel.Variable(rootRun, cel.MapType(cel.StringType, cel.StringType)),
		cel.OptionalTypes(),
		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		cel.EnableIdentifierEscapeSyntax(),
		cel.ParserExpressionSizeLimit(maxExpression),
		cel.ParserRecursionLimit(maxNesting),
		cel.ExpressionNodeLimit(maxParts),
		cel.ASTValidators(
			cel.ValidateDurationLiterals(),
			cel.ValidateTimestampLiterals(),
			cel.ValidateRegexLiterals(),
			cel.ValidateRegexProgramSizeLimit(maxPattern),
			cel.ValidateComprehensionNestingLimit(maxLoops),
		),
		ext.Strings(), ext.Lists(ext.ListsMaxRangeSize(100_000)), ext.Math(), ext.Encoders(), ext.TwoVarComprehensions(),
	)...)
	if err != nil {
		return nil, fmt.Errorf("expression environment: %w", err)
	}
	if env, err = guarded(env); err != nil {
		return nil, err
	}
	// The first mistake makes CEL list all it knows, to suggest a name, while others who check an expression read where that list will be.
	if _, issues := env.Compile("nope"); issues.Err() == nil {
		return nil, errors.New("expression environment: a name that was not declared is known")
	}
	return env, nil
}

// guarded puts a check before the functions whose result can be far larger than the step that makes it, and before those that take the
// product of two lengths. CEL's limits judge such a call only after it.
func guarded(env *cel.Env) (*cel.Env, error) {
	small := func(bytes int) ref.Val {
		if bytes > wasm.MaxInput {
			// Anew each time: CEL notes in an error where it happened, and evaluations go on beside each other.
			return types.NewErr("the text would be longer than %d bytes", wasm.MaxInput)
		}
		return nil
	}
	searchable := func(args []ref.Val) ref.Val {
		if length(args[0])*length(args[1]) > maxSearch {
			return types.NewErr("the texts are too long to search one in the other; contains can tell whether it is there")
		}
		return nil
	}
	guards := map[string]func(args []ref.Val) ref.Val{
		"string_replace_string_string":     func(args []ref.Val) ref.Val { return small(replaced(args)) },
		"string_replace_string_string_int": func(args []ref.Val) ref.Val { return small(replaced(args)) },
		"list_join":                        func(args []ref.Val) ref.Val { return small(joined(args[0], 0)) },
		"list_join_string":                 func(args []ref.Val) ref.Val { return small(joined(args[0], length(args[1]))) },
		"string_format":                    func(args []ref.Val) ref.Val { return small(length(args[0]) + joined(args[1], 0)) },
		"string_index_of_string":           searchable,
		"string_index_of_string_int":       searchable,
		"string_last_index_of_string":      searchable,
		"string_last_index_of_string_int":  searchable,
		"list_distinct": func(args []ref.Val) ref.Val {
			if l, ok := args[0].(traits.Lister); ok && l.Size().(types.Int) > maxDistinct {
				return types.NewErr("distinct takes at most %d items", maxDistinct)
			}
			return nil
		},
	}
	var opts []cel.EnvOption
	for _, name := range []string{"replace", "join", "format", "indexOf", "lastIndexOf", "distinct"} {
		fn := env.Functions()[name]
		bindings, err := fn.Bindings()
		if err != nil {
			return nil, fmt.Errorf("expression function %s: %w", name, err)
		}
		for _, overload := range fn.OverloadDecls() {
			guard := guards[overload.ID()]
			if guard == nil {
				return nil, fmt.Errorf("expression function %s has the form %s, which has no guard", name, overload.ID())
			}
			for _, b := range bindings {
				if b.Operator != overload.ID() {
					continue
				}
				opts = append(opts, cel.Function(name, cel.MemberOverload(overload.ID(), overload.ArgTypes(), overload.ResultType(),
					cel.FunctionBinding(func(args ...ref.Val) ref.Val {
						if refusal := guard(args); refusal != nil {
							return refusal
						}
						switch {
						case b.Unary != nil:
							return b.Unary(args[0])
						case b.Binary != nil:
							return b.Binary(args[0], args[1])
						}
						return b.Function(args...)
					}))))
			}
		}
	}
	if len(opts) != len(guards) {
		return nil, fmt.Errorf("expression functions: %d of %d guards are in place", len(opts), len(guards))
	}
	return env.Extend(opts...)
}

// patterns matches texts with regular expressions. Go's engine takes time by the product of the two, half a minute for a pattern of ten
// characters and 1 MiB, and nothing stops it on the way. It is safe for concurrent use.
type patterns struct {
	mu       sync.Mutex
	compiled map[string]compiledPattern
}

type compiledPattern struct {
	*regexp.Regexp
	instructions int
}

func newPatterns() *patterns { return &patterns{compiled: map[string]compiledPattern{}} }

// match is the implementation of matches.
func (p *patterns) match(text, pattern ref.Val) ref.Val {
	s, ok := text.(types.String)
	source, also := pattern.(types.String)
	if !ok || !also {
		return mismatch(overloads.Matches, text, pattern)
	}
	re, err := p.compile(string(source))
	if err != nil {
		return types.WrapErr(err)
	}
	if most := maxMatching / re.instructions; len(s) > most {
		return types.NewErr("the text is too long for this pattern; it can match %d bytes", most)
	}
	return types.Bool(re.MatchString(string(s)))
}

func (p *patterns) compile(source string) (compiledPattern, error) {
	p.mu.Lock()
	re, ok := p.compiled[source]
	p.mu.Unlock()
	if ok {
		return re, nil
	}
	// Of a long one it takes much to find out how large it is, and all of it would be kept.
	if len(source) > maxPatternText {
		return compiledPattern{}, errPatternTooLarge
	}
	size, err := types.RegexProgramSize(source)
	if err != nil {
		return compiledPattern{}, errNoPattern
	}
	if size > maxPattern {
		return compiledPattern{}, errPatternTooLarge
	}
	compiled, err := regexp.Compile(source)
	if err != nil {
		return compiledPattern{}, errNoPattern
	}
	re = compiledPattern{compiled, max(size, 1)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.compiled) >= maxPatterns {
		for other := range p.compiled { // any one: patterns are few, unless somebody makes them up from inputs
			delete(p.compiled, other)
			break
		}
	}
	p.compiled[source] = re
	return re, nil
}

var (
	errPatternTooLarge = errors.New("the pattern is too large")
	errNoPattern       = errors.New("the pattern is no regular expression of the RE2 syntax")
)

// length returns the bytes of a text, or of the longest text that another value is formatted as.
func length(v ref.Val) int {
	switch v := v.(type) {
	case types.String:
		return len(v)
	case types.Bytes:
		return len(v)
	}
	return 32
}

// replaced returns how long the result of replace can be.
func replaced(args []ref.Val) int {
	in, old, with := length(args[0]), length(args[1]), length(args[2])
	if with <= old {
		return in
	}
	return in + (in/max(old, 1)+1)*(with-old)
}

// joined returns how long the texts of a list are together, up to the first point where it is too long.
func joined(list ref.Val, separator int) int {
	l, ok := list.(traits.Lister)
	if !ok {
		return 0
	}
	n := 0
	size, _ := l.Size().(types.Int)
	for i := types.Int(0); i < size && n <= wasm.MaxInput; i++ {
		n += deepLength(l.Get(i)) + separator
	}
	return n
}

// deepLength is length for values that format writes out: lists and objects inside.
func deepLength(v ref.Val) int {
	switch v := v.(type) {
	case traits.Mapper:
		n := 2
		for it := v.Iterator(); it.HasNext() == types.True && n <= wasm.MaxInput; {
			key := it.Next()
			n += length(key) + 4 + deepLength(v.Get(key))
		}
		return n
	case traits.Lister:
		return joined(v, 2)
	}
	return length(v)
}
