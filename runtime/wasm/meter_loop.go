package wasm

// maxTurn is the most that one turn of a loop costs. It must be less than a slice, which may be asked for once for each turn.
const maxTurn = slice / 4

// turn begins a loop of the original, which pays for each turn. Where possible, what asks the host for fuel stands outside of it: a call within
// would cost every turn, paid or not, since the engine keeps nothing in registers across calls and knows nothing about the memory after one.
//
//	block done
//	  loop again
//	    block short
//	      loop                  ;; the original's
//	        temp = fuel - price
//	        br_if short, temp < 0
//	        fuel = temp
//	        ...
//	      end
//	      br done
//	    end
//	    call check              ;; fills the fuel up
//	    br again
//	  end
//	  unreachable
//	end
func (f *function) turn(header []byte, price uint32, around bool) {
	if !around {
		f.b = append(f.b, header...)
		f.pay(price)
		return
	}
	f.b = append(append(f.b, opBlock), header[1:]...)
	f.b = append(f.b, opLoop, typeEmpty, opBlock, typeEmpty)
	f.b = append(f.b, header...)
	f.op(opGlobalGet, f.w.fuel)
	f.constant(int32(min(price, maxTurn)))
	f.b = append(f.b, opSub)
	f.op(opLocalTee, f.temp)
	f.constant(0)
	f.b = append(f.b, opLtS)
	f.op(opBrIf, 1)
	f.op(opLocalGet, f.temp)
	f.op(opGlobalSet, f.w.fuel)
}

// turned ends what turn began, after the loop's own end.
func (f *function) turned() {
	f.op(opBr, 2)
	f.b = append(f.b, opEnd)
	f.op(opCall, f.w.check)
	f.op(opBr, 0)
	f.b = append(f.b, opEnd, opUnreachable, opEnd)
}

// labels finds where the original's branches lead in the rewritten code, where a loop may lie in blocks of its own.
type labels struct {
	open  []label
	depth uint32 // blocks that are open in the rewritten code
	loops int    // loops that are open and have blocks around them
}

type label struct {
	depth  uint32 // of the block, as the number of blocks that are open within it
	around bool
}

// aroundLoop is how many blocks turn puts around a loop, and maxLoops how many loops within each other get them: enough for whatever people
// write, and no multiple of what the engine has to bear.
const (
	aroundLoop = 3
	maxLoops   = 32
)

func (l *labels) push(around bool) {
	l.depth++
	if around {
		l.depth += aroundLoop
		l.loops++
	}
	l.open = append(l.open, label{l.depth, around})
}

// pop closes a block and reports whether it was a loop with blocks around it. The last end closes the function, which is no label of its own.
func (l *labels) pop() (around bool) {
	if len(l.open) == 0 {
		return false
	}
	last := l.open[len(l.open)-1]
	l.open = l.open[:len(l.open)-1]
	l.depth--
	if last.around {
		l.depth -= aroundLoop
		l.loops--
	}
	return last.around
}

// index is the original's i-th label from within.
func (l *labels) index(i uint32) uint32 {
	if n := uint32(len(l.open)); i < n {
		return l.depth - l.open[n-1-i].depth
	}
	return l.depth // the whole function
}
