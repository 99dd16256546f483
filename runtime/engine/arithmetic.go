package engine

import (
	"fmt"
	"math"
	"math/big"
	"slices"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// CEL refuses to add an int to a double. In a language whose numbers come from its own literals that is a type error found early. Here
// they come from JSON, where 12 and 12.5 are one type: an expression tested with 12.5 would fail in production with 12. So the
// arithmetic operators take every pair of numbers, and the comparisons also take numbers that no CEL number holds. What cannot be
// converted exactly is an error.

// arithmetic is what an operator does with two numbers of one type, or with anything else it is defined for.
var arithmetic = map[string]func(l, r ref.Val) ref.Val{
	operators.Add: func(l, r ref.Val) ref.Val {
		if a, ok := l.(traits.Adder); ok {
			return a.Add(r)
		}
		return nil
	},
	operators.Subtract: func(l, r ref.Val) ref.Val {
		if s, ok := l.(traits.Subtractor); ok {
			return s.Subtract(r)
		}
		return nil
	},
	operators.Multiply: func(l, r ref.Val) ref.Val {
		if m, ok := l.(traits.Multiplier); ok {
			return m.Multiply(r)
		}
		return nil
	},
	operators.Divide: func(l, r ref.Val) ref.Val {
		if d, ok := l.(traits.Divider); ok {
			return d.Divide(r)
		}
		return nil
	},
}

// orders says which results of a comparison an operator accepts.
var orders = map[string][]int{
	operators.Less:          {-1},
	operators.LessEquals:    {-1, 0},
	operators.Greater:       {1},
	operators.GreaterEquals: {0, 1},
}

// operatorsOf declares the operators again, with the forms that std declares and ours.
func operatorsOf(std *cel.Env) ([]cel.EnvOption, error) {
	exclude := &env.LibrarySubset{}
	var opts []cel.EnvOption
	declare := func(name string, forms []cel.FunctionOpt, implementation func(l, r ref.Val) ref.Val) error {
		fn := std.Functions()[name]
		if fn == nil {
			return fmt.Errorf("the operator %s is not in CEL's standard library", name)
		}
		exclude.ExcludeFunctions = append(exclude.ExcludeFunctions, &env.Function{Name: name})
		for _, o := range fn.OverloadDecls() {
			form := cel.Overload
			if o.IsMemberFunction() {
				form = cel.MemberOverload
			}
			forms = append(forms, form(o.ID(), o.ArgTypes(), o.ResultType()))
		}
		forms = append(forms, cel.SingletonBinaryBinding(implementation))
		opts = append(opts, cel.Function(name, forms...))
		return nil
	}
	numbers := []*cel.Type{cel.IntType, cel.UintType, cel.DoubleType}
	for name, operate := range arithmetic {
		var forms []cel.FunctionOpt
		for _, l := range numbers {
			for _, r := range numbers {
				if l == r {
					continue
				}
				result := cel.IntType
				if l == cel.DoubleType || r == cel.DoubleType {
					result = cel.DoubleType
				}
				id := fmt.Sprintf("keyfire_%s_%s_%s", name, l.TypeName(), r.TypeName())
				forms = append(forms, cel.Overload(id, []*cel.Type{l, r}, result))
			}
		}
		err := declare(name, forms, func(l, r ref.Val) ref.Val {
			l, r, err := alike(l, r)
			if err != nil {
				return types.WrapErr(err)
			}
			if v := operate(l, r); v != nil && !isNoOverload(v, l, r) {
				return v
			}
			return mismatch(name, l, r)
		})
		if err != nil {
			return nil, err
		}
	}
	for name, accepted := range orders {
		err := declare(name, nil, func(l, r ref.Val) ref.Val {
			order, err := compare(name, l, r)
			if err != nil {
				return err
			}
			return types.Bool(slices.Contains(accepted, order))
		})
		if err != nil {
			return nil, err
		}
	}
	if err := declare(operators.Modulo, nil, modulo); err != nil {
		return nil, err
	}
	if err := declare(overloads.Matches, nil, newPatterns().match); err != nil {
		return nil, err
	}
	opts = append(opts, cel.Function(overloads.TypeConvertString, cel.Overload("keyfire_string_of_digits", []*cel.Type{inexactType}, cel.StringType,
		cel.UnaryBinding(func(v ref.Val) ref.Val { return v.ConvertToType(types.StringType) }))))
	return append([]cel.EnvOption{cel.StdLib(cel.StdLibSubset(exclude))}, opts...), nil
}

// modulo is the remainder of two whole numbers, however they are written: 4.0 is one.
func modulo(l, r ref.Val) ref.Val {
	l, r, err := alike(whole(l), whole(r))
	if err != nil {
		return types.WrapErr(err)
	}
	if m, ok := l.(traits.Modder); ok && l.Type() == r.Type() {
		return m.Modulo(r)
	}
	if rational(l) != nil && rational(r) != nil {
		return types.NewErr("%% takes whole numbers")
	}
	return mismatch(operators.Modulo, l, r)
}

// whole converts a double to the int that it is, if it is one that a double holds exactly, and leaves other values as they are.
func whole(v ref.Val) ref.Val {
	const exact = 1 << 53
	if d, ok := v.(types.Double); ok && float64(d) == math.Trunc(float64(d)) && d <= exact && d >= -exact {
		return types.Int(d)
	}
	return v
}

// alike converts two numbers of different types to one that holds both.
func alike(l, r ref.Val) (ref.Val, ref.Val, error) {
	if _, ok := l.(inexact); ok {
		return nil, nil, errTooManyDigits
	}
	if _, ok := r.(inexact); ok {
		return nil, nil, errTooManyDigits
	}
	switch lv := l.(type) {
	case types.Double:
		r, err := toDouble(r)
		return l, r, err
	case types.Int:
		switch rv := r.(type) {
		case types.Double:
			l, err := toDouble(l)
			return l, r, err
		case types.Uint:
			if rv > math.MaxInt64 {
				return nil, nil, errTooManyDigits
			}
			return l, types.Int(rv), nil
		}
	case types.Uint:
		switch r.(type) {
		case types.Double:
			l, err := toDouble(l)
			return l, r, err
		case types.Int:
			if lv > math.MaxInt64 {
				return nil, nil, errTooManyDigits
			}
			return types.Int(lv), r, nil
		}
	}
	return l, r, nil
}

var errTooManyDigits = fmt.Errorf("a number has too many digits to compute with; it can be copied and compared")

// toDouble converts an integer that a double holds exactly, and leaves other values as they are.
func toDouble(v ref.Val) (ref.Val, error) {
	const exact = 1 << 53
	switch n := v.(type) {
	case types.Int:
		if n > exact || n < -exact {
			return nil, errTooManyDigits
		}
		return types.Double(n), nil
	case types.Uint:
		if n > exact {
			return nil, errTooManyDigits
		}
		return types.Double(n), nil
	}
	return v, nil
}

// isNoOverload reports whether v is CEL's complaint about the types of l and r: theirs to get wrong, ours to explain.
func isNoOverload(v, l, r ref.Val) bool {
	return types.IsError(v) && l.Type() != r.Type()
}

func mismatch(operator string, l, r ref.Val) ref.Val {
	symbol, ok := operators.FindReverse(operator)
	if !ok {
		symbol = operator
	}
	return types.NewErr("%s does not take %s and %s", symbol, typeName(l), typeName(r))
}

// compare returns -1, 0 or 1, or an error value.
func compare(operator string, l, r ref.Val) (int, ref.Val) {
	_, long := l.(inexact)
	if _, other := r.(inexact); long || other {
		if a, b := rational(l), rational(r); a != nil && b != nil {
			return a.Cmp(b), nil
		}
	}
	c, ok := l.(traits.Comparer)
	if !ok {
		return 0, mismatch(operator, l, r)
	}
	switch order := c.Compare(r).(type) {
	case types.Int:
		return int(order), nil
	case *types.Err:
		if l.Type() == r.Type() {
			return 0, order
		}
	}
	return 0, mismatch(operator, l, r)
}

// rational returns the exact value of a number, nil of anything else.
func rational(v ref.Val) *big.Rat {
	switch v := v.(type) {
	case inexact:
		if r, ok := new(big.Rat).SetString(string(v)); ok {
			return r
		}
	case types.Int:
		return new(big.Rat).SetInt64(int64(v))
	case types.Uint:
		return new(big.Rat).SetUint64(uint64(v))
	case types.Double:
		return new(big.Rat).SetFloat64(float64(v)) // nil for what is no number
	}
	return nil
}
