package cli

import (
	"math"
	"runtime/debug"
	"sync"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// memoryRoom is how much memory the server may have: the limit of its control group, such as a container's, or what the machine has if that is less.
// Where neither can be found out, there is no bound.
var memoryRoom = sync.OnceValue(func() int64 {
	room := uint64(math.MaxInt64)
	for _, of := range []memlimit.Provider{memlimit.FromCgroup, memlimit.FromSystem} {
		if bytes, err := of(); err == nil && bytes > 0 {
			room = min(room, bytes)
		}
	}
	return int64(room)
})

// shareOf is a default size: most, or a fraction of the room where that is less, in whole MiB, but not below least.
func shareOf(room, fraction, least, most int64) string {
	return formatSize(max(least, min(most, room/fraction>>20<<20)))
}

// fitMemory has the server collect its garbage harder before its own memory, which is little of the room except while something large is published or
// answered, would have the kernel end it. GOMEMLIMIT, where it is set, has the last word.
func fitMemory(environ []string) {
	if lookup(environ, "GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryRoom() / 2)
	}
}
