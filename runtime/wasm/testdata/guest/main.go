// Command guest is a node that does what its input says, for the tests of package wasm.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"time"
)

type request struct {
	Op   string `json:"op"`
	Size int    `json:"size"`
	Text string `json:"text"`
}

var counter int // survives only if an instance is used twice

func main() {
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		fail(err)
	}
	var req request
	if err := json.Unmarshal(in, &req); err != nil {
		fail(err)
	}
	switch req.Op {
	case "echo":
		os.Stdout.Write(in)
	case "exit":
		os.Stdout.WriteString(req.Text)
		os.Exit(req.Size)
	case "log":
		for range req.Size {
			fmt.Fprintln(os.Stderr, req.Text)
		}
		os.Stdout.WriteString("null")
	case "flood":
		for {
			os.Stdout.WriteString(strings.Repeat("x", 4096))
		}
	case "spin":
		for i := 0; ; i++ {
			counter += i
		}
	case "sleep":
		time.Sleep(time.Duration(req.Size) * time.Millisecond)
		os.Stdout.WriteString("null")
	case "hog":
		var keep [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			keep = append(keep, b)
			counter = len(keep)
		}
	case "allocate":
		b := make([]byte, req.Size)
		for i := range b {
			b[i] = 1
		}
		counter = int(b[len(b)-1])
		os.Stdout.WriteString("null")
	case "panic":
		panic(req.Text)
	case "recurse":
		fmt.Println(recurse(req.Size))
	case "work":
		fmt.Println(work(req.Size))
	case "probe":
		probe()
	case "random":
		order := ""
		for k := range map[string]int{"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1, "h": 1} {
			order += k
		}
		counter++
		answer(map[string]any{"rand": fmt.Sprint(rand.Uint64(), rand.Uint64()), "order": order, "counter": counter})
	default:
		fail(fmt.Errorf("unknown op %q", req.Op))
	}
}

func recurse(n int) int {
	if n == 0 {
		return 0
	}
	return 1 + recurse(n-1)
}

// work encodes, decodes and sums n numbers, a thousand at a time.
func work(n int) (sum int) {
	for ; n > 0; n -= 1000 {
		list := make([]int, 1000)
		for i := range list {
			list[i] = i * n
		}
		b, err := json.Marshal(list)
		if err != nil {
			fail(err)
		}
		var back []int
		if err := json.Unmarshal(b, &back); err != nil {
			fail(err)
		}
		for _, v := range back {
			sum += v
		}
	}
	return sum
}

// probe reports everything ambient that it can find.
func probe() {
	found := map[string]any{"args": len(os.Args), "env": len(os.Environ())}
	for _, path := range []string{"/", ".", "/etc/passwd", "/dev/stdin", "..", "/proc/self/environ"} {
		if _, err := os.Stat(path); err == nil {
			found["stat "+path] = true
		}
		if _, err := os.ReadFile(path); err == nil {
			found["read "+path] = true
		}
	}
	if err := os.WriteFile("/tmp/x", nil, 0o600); err == nil {
		found["write"] = true
	}
	if ns := time.Now().Nanosecond(); ns%1_000_000 != 0 {
		found["clock"] = ns
	}
	answer(found)
}

func answer(v any) {
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
