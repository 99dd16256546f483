package engine

import (
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// prices charges a call for what it handles and makes, by its name and its values. CEL charges by the form of a call that was found when the expression was compiled. Of values from
// JSON no form is known then, and of the functions of its extensions none has a price, so that they would all cost 1: what a loop in a loop makes is measured every few hundred rounds
// only, and would be gigabytes by then.
type prices struct{}

// bytesPerUnit is CEL's own price of text.
const bytesPerUnit = 1 / cost.StringTraversalCostFactor

var standardPrices = cost.StandardOverloadTrackers()

// CallCost implements cost.ActualCostEstimator.
func (prices) CallCost(function, overload string, args []ref.Val, result ref.Val) *uint64 {
	total := uint64(1)
	switch function {
	case operators.Index, operators.OptIndex, operators.OptSelect, operators.Conditional, operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, operators.NotStrictlyFalse:
		// These hand on what there is.
	case operators.Add: // of lists it makes a view of both, and it is what every round of map and filter does
		total += textUnits(result)
	case operators.In:
		total += items(args[1])
	default:
		total += textUnits(result) + items(result)
		for _, arg := range args {
			total += textUnits(arg)
		}
	}
	if standard := standardPrices[overload]; standard != nil {
		if c := standard(args, result); c != nil {
			total = max(total, *c)
		}
	}
	return &total
}

// textUnits is the price of a text.
func textUnits(v ref.Val) uint64 {
	switch v := v.(type) {
	case types.String:
		return uint64(float64(len(v)) / bytesPerUnit)
	case types.Bytes:
		return uint64(float64(len(v)) / bytesPerUnit)
	}
	return 0
}

// items is the price of going through a list or, by its key, finding something in an object.
func items(v ref.Val) uint64 {
	if l, ok := v.(traits.Lister); ok {
		if n, ok := l.Size().(types.Int); ok {
			return uint64(max(n, 0))
		}
	}
	return 0
}
