package wasm

import "slices"

// maxTurn is the most that one turn of a loop costs. It must be less than a slice, which may be asked for once for each turn.
const maxTurn = slice / 4

// loop is what plan knows of a loop.
type loop struct {
	price    uint32    // of one turn, without the loops within, which pay for themselves
	calls    bool      // there is a call in it, so the engine writes to the stack whatever is done here
	sets     []uint32  // the locals that it changes,
	many     bool      // unless they are more than maxSets
	dispatch *dispatch // nil for most
}

// maxSets is how many locals a loop changes at most that is spared writing them to the stack. Where there are more, that is little of what a turn does, and the
// longer way around it costs as much.
const maxSets = 3

// set notes that the loop changes a local.
func (l *loop) set(local uint32) {
	if l.many || slices.Contains(l.sets, local) {
		return
	}
	if l.many = len(l.sets) == maxSets; !l.many {
		l.sets = append(l.sets, local)
	}
}

// closed is told that the depth-th of the open blocks ends. What comes before its end is in the loop was, and what comes after it in the loop outer, -1 for none.
func (p *plan) closed(was, outer, depth int) {
	if was < 0 {
		return
	}
	l := &p.loops[was]
	if was == outer {
		l.dispatch.closed(depth, l.price)
		return
	}
	if d := l.dispatch; d != nil {
		if d.other {
			l.dispatch = nil
		} else {
			p.entry += l.price // it is no loop's
		}
	}
	if outer < 0 {
		p.outermost = -1
		return
	}
	o := &p.loops[outer]
	o.calls, o.many = o.calls || l.calls, o.many || l.many
	for _, local := range l.sets {
		o.set(local)
	}
}

// asks says whether the loop ever asks the host for fuel.
func (l *loop) asks() bool { return l.dispatch == nil || len(l.dispatch.jumps) > 0 }

// takes says whether a block takes values from the stack.
func (w *rewriter) takes(block instr) bool {
	t := int32(block.index)
	return t >= 0 && len(w.m.types[t].params) > 0
}

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
func (f *function) turn(header []byte, l *loop, apart bool) {
	if !apart {
		f.b = append(f.b, header...)
		if l.asks() {
			f.take(f.price(l.price))
			f.callCheck()
		}
		return
	}
	f.b = append(append(f.b, opBlock), header[1:]...)
	f.b = append(f.b, opLoop, typeEmpty, opBlock, typeEmpty)
	f.b = append(f.b, header...)
	if l.dispatch != nil {
		return // its jumps pay
	}
	f.lower(f.w.fuel, f.temp, f.price(l.price))
	f.branchBelow(1)
	f.set(f.w.fuel, f.temp)
}

// turned ends what turn began, after the loop's own end. What a loop that calls nothing changes goes through what calls the host, and comes back: otherwise the engine
// would write it to the stack in every turn, to have it after a call that almost never happens.
func (f *function) turned(l *loop) {
	f.op(opBr, 2)
	f.b = append(f.b, opEnd)
	if l.calls || l.many {
		f.op(opCall, f.w.check)
	} else {
		var types []byte
		for _, i := range l.sets {
			f.op(opLocalGet, i)
			types = append(types, f.locals[i])
		}
		f.op(opCall, f.w.refresh(types))
		for _, i := range slices.Backward(l.sets) {
			f.op(opLocalSet, i)
		}
	}
	f.op(opBr, 0)
	f.b = append(f.b, opEnd, opUnreachable, opEnd)
}

// labels finds where the original's branches lead in the rewritten code, where a loop may lie in blocks of its own.
type labels struct {
	open  []label
	depth uint32 // blocks that are open in the rewritten code
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
