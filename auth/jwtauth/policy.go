package jwtauth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"cel.dev/cel-go/cel"
)

// maxCost bounds the work of one expression. Ordinary conditions cost less than 100.
const maxCost = 10_000

// policy is the compiled form of an issuer's rules and attributes.
type policy struct {
	rules      []compiledRule
	attributes map[string]cel.Program
}

type compiledRule struct {
	Rule
	program cel.Program
}

func newPolicy(rules []Rule, attributes map[string]string) (*policy, error) {
	env, err := cel.NewEnv(cel.Variable("claims", cel.MapType(cel.StringType, cel.DynType)), cel.CrossTypeNumericComparisons(true), cel.OptionalTypes())
	if err != nil {
		return nil, fmt.Errorf("expressions: %w", err)
	}
	p := &policy{attributes: make(map[string]cel.Program, len(attributes))}
	var problems []error
	for n, r := range rules {
		program, err := compile(env, r.If, cel.BoolType)
		switch {
		case err != nil:
			err = fmt.Errorf("rule %d: if: %w", n+1, err)
		case r.Account == "":
			err = fmt.Errorf("rule %d: no account", n+1)
		case slices.Contains(r.Scopes, ""):
			err = fmt.Errorf("rule %d: a scope is empty", n+1)
		}
		problems = append(problems, err)
		p.rules = append(p.rules, compiledRule{Rule: r, program: program})
	}
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		program, err := compile(env, attributes[name], cel.StringType)
		if err != nil {
			err = fmt.Errorf("attribute %s: %w", name, err)
		}
		problems = append(problems, err)
		p.attributes[name] = program
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return p, nil
}

// compile checks an expression for its type. Claims have no types, so an expression may also turn out to have the right one when it runs.
func compile(env *cel.Env, expression string, want *cel.Type) (cel.Program, error) {
	ast, issues := env.Compile(expression)
	if err := issues.Err(); err != nil {
		return nil, err
	}
	if got := ast.OutputType(); !got.IsExactType(want) && !got.IsExactType(cel.DynType) {
		return nil, fmt.Errorf("gives %s, want %s", got, want)
	}
	return env.Program(ast, cel.CostLimit(maxCost), cel.InterruptCheckFrequency(100))
}

// decide returns the first rule whose condition holds. A condition that cannot be evaluated does not.
func (p *policy) decide(ctx context.Context, claims map[string]any) (Rule, bool) {
	for _, r := range p.rules {
		if v, ok := eval[bool](ctx, r.program, claims); ok && v {
			return r.Rule, true
		}
	}
	return Rule{}, false
}

// describe returns the attributes that the claims have.
func (p *policy) describe(ctx context.Context, claims map[string]any) map[string]string {
	all := make(map[string]string, len(p.attributes))
	for name, program := range p.attributes {
		if v, ok := eval[string](ctx, program, claims); ok && printable(v) {
			all[name] = v
		}
	}
	return all
}

func eval[T any](ctx context.Context, program cel.Program, claims map[string]any) (T, bool) {
	out, _, err := program.ContextEval(ctx, map[string]any{"claims": claims})
	if err != nil {
		var zero T
		return zero, false
	}
	v, ok := out.Value().(T)
	return v, ok
}

// GitHub returns the attributes of tokens of GitHub Actions, https://token.actions.githubusercontent.com.
func GitHub() map[string]string {
	return map[string]string{
		"repo": "claims.repository", "ref": "claims.ref", "actor": "claims.actor", "sha": "claims.sha",
		"workflow": "claims.workflow_ref", "run_id": "claims.run_id", "environment": "claims.environment",
	}
}

// GitLab returns the attributes of ID tokens of GitLab CI.
func GitLab() map[string]string {
	return map[string]string{
		"repo": "claims.project_path", "ref": "claims.ref", "actor": "claims.user_login", "sha": "claims.sha",
		"run_id": "claims.pipeline_id", "environment": "claims.environment",
	}
}

// Kubernetes returns the attributes of service account tokens of Kubernetes.
func Kubernetes() map[string]string {
	return map[string]string{
		"namespace":       `claims["kubernetes.io"].namespace`,
		"service_account": `claims["kubernetes.io"].serviceaccount.name`,
		"pod":             `claims["kubernetes.io"].pod.name`,
	}
}
