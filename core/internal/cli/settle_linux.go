package cli

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// dropProgram takes the pages of the program's file out of this process. They stay in the kernel's cache of the file, and those that are used come
// back by themselves, at the price of a fault each for a few.
func dropProgram() {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		var mode string
		// What may be written is no longer the file's.
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || strings.Contains(mode, "w") || !strings.HasSuffix(strings.TrimSpace(line), " "+program) {
			continue
		}
		// An error leaves the pages where they are.
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, from, to-from, syscall.MADV_DONTNEED)
	}
}
