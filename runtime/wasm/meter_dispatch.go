package wasm

// dispatch is a loop that begins by jumping to one of the blocks it is made of, by a local that is set before each turn. Go's compiler makes one such
// loop of all of a function, for goroutines that go on in the middle of it, and turns it for every way back:
//
//	loop
//	  block block block
//	    br_table 0 1 2, x
//	  end
//	    ...
//	  end
//	    ...
//	    x = 0; br loop
//	  end
//	  ...
//	end
//
// A turn executes a small part of the loop, and would pay for all of it. So the function pays for all of it when it is entered: that is enough for every way
// through it that only leads forward, by jumps or without. A jump back pays for what lies between its target and itself, which is
// what may be executed again.
//
// This holds if a jump leads where the constant says. So nothing may come between setting the local, the branch and the table, and if there is
// any other way back to the loop's beginning, it is a loop like any other, which pays for each turn.
type dispatch struct {
	local  uint32
	first  int      // how many blocks are open in the first of its blocks, that one included
	left   int      // of its blocks, those that are open
	labels []uint32 // by the value of the local; the last one is for all others
	at     []uint32 // by label, the price of what lies before its target
	other  bool     // there are other ways back
	jumps  []jump
}

// jump is a branch to the loop's beginning that leads back.
type jump struct {
	at    int // where the instruction is
	price uint32
}

// dispatching is the price of the way from a jump to its target.
const dispatching = 3

// dispatch returns what the beginning of a loop of this kind says, nil for any other loop. So many blocks are open in it, itself included.
func (w *rewriter) dispatch(code []byte, header instr, open int) *dispatch {
	if w.takes(header) {
		return nil
	}
	d := &dispatch{first: open + 1}
	r := &reader{b: code, off: header.end}
	in := r.next()
	for ; r.err == nil && in.op == opBlock && code[in.start+1] == typeEmpty; in = r.next() {
		d.left++
	}
	table := r.next()
	if d.left == 0 || in.op != opLocalGet || table.op != opBrTable || r.err != nil {
		return nil
	}
	d.local = in.index
	targets := &reader{b: code[:table.end], off: table.start + 1}
	for range targets.u32() + 1 {
		l := targets.u32()
		if int64(l) >= int64(d.left) {
			return nil
		}
		d.labels = append(d.labels, l)
	}
	d.at = make([]uint32, d.left)
	return d
}

// closed is told that a block of the loop ends, the depth-th of those that are open, and what lies before its end costs.
func (d *dispatch) closed(depth int, price uint32) {
	if d == nil || d.left == 0 || depth != d.first+d.left-1 {
		return
	}
	d.at[len(d.at)-d.left] = price
	d.left--
}

// branch is told of a branch, of the two instructions before it, and of how many blocks are open around it.
func (p *plan) branch(code []byte, in instr, before [2]instr, open int) {
	if p.outermost < 0 || p.loops[p.outermost].dispatch == nil {
		return
	}
	d, price := p.loops[p.outermost].dispatch, p.loops[p.outermost].price
	leads := func(label uint32) bool { return int64(open)-int64(label) == int64(d.first-1) }
	switch in.op {
	case opBrTable:
		targets := &reader{b: code[:in.end], off: in.start + 1}
		for range targets.u32() + 1 {
			d.other = d.other || leads(targets.u32())
		}
		return
	case opBrIf:
		d.other = d.other || leads(in.index)
		return
	}
	if !leads(in.index) {
		return
	}
	if before[0].op != opI32Const || before[1].op != opLocalSet || before[1].index != d.local {
		d.other = true
		return
	}
	value := &reader{b: code, off: before[0].start + 1}
	label := d.labels[min(int64(uint32(value.signed(32))), int64(len(d.labels)-1))]
	if int(label) < len(d.at)-d.left { // its block has ended, so the target is behind
		d.jumps = append(d.jumps, jump{in.start, price - d.at[label] + dispatching})
	}
}

// jump pays for a branch that is copied next, to the label that it has in the rewritten code, if it is a jump of the loop's. The local is set, so asking the
// host for fuel and beginning the loop again leads to the same place.
func (f *function) jump(l *loop, in instr, label uint32) {
	d := l.dispatch
	if d == nil || len(d.jumps) == 0 || d.jumps[0].at != in.start {
		return
	}
	f.take(f.price(d.jumps[0].price))
	f.branchBelow(label + 1)
	d.jumps = d.jumps[1:]
}
