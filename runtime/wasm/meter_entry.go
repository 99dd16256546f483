package wasm

// maxPassed is how many parameters are passed on to call a function again. A module may have a great number of small functions with a thousand each.
const maxPassed = 16

// outOfLine says whether what asks the host for fuel when the function is entered stands outside of it, which is the rule. Inside it would cost every call, paid or
// not: the engine keeps nothing in registers across a call, so it would write all parameters to the stack, to have them after one that almost never happens.
// A price of more than maxTurn might never be paid by trying again.
func (f *function) outOfLine() bool { return len(f.typ.params) <= maxPassed && f.p.entry <= maxTurn }

// enter begins a function that pays, which also counts its depth if it calls others:
//
//	block short
//	  temp = fuel - price
//	  other = depth - weight
//	  br_if short, (temp | other) < 0
//	  fuel = temp
//	  depth = other
//	  block
//	    ...                ;; the original's
//	  end
//	  depth = depth + weight
//	  return
//	end
//	depth = other
//	retry                  ;; asks the host, which looks at both, and calls this function again
//	depth = depth + weight
//
// The depth is counted twice in the last case, because then there are two frames.
func (f *function) enter() {
	if !f.p.pays {
		return
	}
	apart := f.outOfLine()
	if apart {
		f.b = append(f.b, opBlock, typeEmpty)
		f.lower(f.w.fuel, f.temp, f.price(f.p.entry))
	} else {
		f.take(func() { f.constant(int32(f.p.entry)) })
	}
	if f.p.depth {
		f.lower(f.w.depth, f.other, func() { f.constant(f.weight) })
		if !apart {
			f.set(f.w.depth, f.other)
		}
		f.b = append(f.b, opOr)
	}
	if apart {
		f.branchBelow(0)
		f.set(f.w.fuel, f.temp)
		if f.p.depth {
			f.set(f.w.depth, f.other)
		}
	} else {
		f.callCheck()
	}
	if apart || f.p.depth {
		f.b = append(f.b, opBlock)
		f.blockType(f.typ.results)
	}
}

// left ends what enter began, after the code's own end, which has closed the inner block.
func (f *function) left() {
	apart := f.p.pays && f.outOfLine()
	f.rise()
	if apart {
		f.b = append(f.b, opReturn, opEnd)
		if f.p.depth {
			f.set(f.w.depth, f.other)
		}
		for i := range f.typ.params {
			f.op(opLocalGet, uint32(i))
		}
		f.op(opCall, f.w.retry(f.index))
		f.rise()
	}
	if apart || f.p.depth {
		f.b = append(f.b, opEnd)
	}
}

// rise gives back the depth of a function that counts it.
func (f *function) rise() {
	if !f.p.depth {
		return
	}
	f.op(opGlobalGet, f.w.depth)
	f.constant(f.weight)
	f.b = append(f.b, opAdd)
	f.op(opGlobalSet, f.w.depth)
}

// helper is a function that is added.
type helper struct {
	typ  uint32
	body []byte
}

// helper adds a function behind all others and returns its index.
func (w *rewriter) helper(typ uint32, body []byte) uint32 {
	w.behind = append(w.behind, helper{typ, body})
	return w.funcCount() + added + uint32(w.helpers()+len(w.behind)-1)
}

// retry adds what asks the host for fuel and calls the i-th function with the same parameters.
func (w *rewriter) retry(i int) uint32 {
	typ := w.m.funcs[i]
	b := w.checked(len(w.m.types[typ].params))
	return w.helper(typ, append(appendU32(append(b, opCall), uint32(w.imported+added+i)), opEnd))
}

// refresh returns what asks the host for fuel and returns its parameters, which have these types.
func (w *rewriter) refresh(types []byte) uint32 {
	if len(types) == 0 {
		return w.check
	}
	i, ok := w.refreshes[string(types)]
	if !ok {
		i = w.helper(w.typeIndex(funcType{params: types, results: types}), append(w.checked(len(types)), opEnd))
		w.refreshes[string(types)] = i
	}
	return i
}

// checked begins a function that asks the host for fuel, and puts its parameters on the stack.
func (w *rewriter) checked(params int) []byte {
	b := appendU32([]byte{0, opCall}, w.check)
	for i := range params {
		b = appendU32(append(b, opLocalGet), uint32(i))
	}
	return b
}
