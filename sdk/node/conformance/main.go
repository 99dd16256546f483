//go:build wasip1

// Command conformance is a node that calls host functions with whatever arguments its input says, and gives back what they returned. It
// depends on nothing but ABI.md, so any host can be checked with it. Its input is a list of calls:
//
//	[{"fn": "config_get", "args": [{"text": "name"}, {"room": 64}]}]
//
// An argument is a number, which is passed as it is; a text, which is put into memory and passed as pointer and length; or room for so many
// bytes, which is passed as pointer and limit, and whose bytes are given back. The output has, for each call, its result and the
// bytes of its rooms, as far as the result says that they were written:
//
//	[{"result": 5, "rooms": ["\"eu\""]}]
package main

import (
	"encoding/json"
	"unsafe"
)

//go:wasmimport keyfire_v1 input_read
func inputRead(offset, buf, limit uint32) int32

//go:wasmimport keyfire_v1 output_write
func outputWrite(ptr, size uint32) int32

//go:wasmimport keyfire_v1 error_set
func errorSet(ptr, size uint32) int32

//go:wasmimport keyfire_v1 error_text
func errorText(buf, limit uint32) int32

//go:wasmimport keyfire_v1 log
func logWrite(level, ptr, size uint32) int32

//go:wasmimport keyfire_v1 config_get
func configGet(name, nameSize, buf, limit uint32) int32

//go:wasmimport keyfire_v1 random
func random(buf, size uint32) int32

//go:wasmimport keyfire_v1 clock
func clock() int64

//go:wasmimport keyfire_v1 secret_get
func secretGet(name, nameSize, buf, limit uint32) int32

//go:wasmimport keyfire_v1 kv_get
func kvGet(key, keySize, buf, limit uint32) int32

//go:wasmimport keyfire_v1 kv_put
func kvPut(key, keySize, value, valueSize uint32) int32

//go:wasmimport keyfire_v1 kv_cas
func kvCAS(key, keySize, old, oldSize, value, valueSize uint32) int32

//go:wasmimport keyfire_v1 http_request
func httpRequest(head, headSize, body, bodySize uint32) int32

//go:wasmimport keyfire_v1 http_head
func httpHead(buf, limit uint32) int32

//go:wasmimport keyfire_v1 http_body
func httpBody(offset, buf, limit uint32) int32

// functions calls a host function by its name with the arguments in a.
var functions = map[string]func(a []uint32) int64{
	"input_read":   func(a []uint32) int64 { return int64(inputRead(a[0], a[1], a[2])) },
	"output_write": func(a []uint32) int64 { return int64(outputWrite(a[0], a[1])) },
	"error_set":    func(a []uint32) int64 { return int64(errorSet(a[0], a[1])) },
	"error_text":   func(a []uint32) int64 { return int64(errorText(a[0], a[1])) },
	"log":          func(a []uint32) int64 { return int64(logWrite(a[0], a[1], a[2])) },
	"config_get":   func(a []uint32) int64 { return int64(configGet(a[0], a[1], a[2], a[3])) },
	"random":       func(a []uint32) int64 { return int64(random(a[0], a[1])) },
	"clock":        func([]uint32) int64 { return clock() },
	"secret_get":   func(a []uint32) int64 { return int64(secretGet(a[0], a[1], a[2], a[3])) },
	"kv_get":       func(a []uint32) int64 { return int64(kvGet(a[0], a[1], a[2], a[3])) },
	"kv_put":       func(a []uint32) int64 { return int64(kvPut(a[0], a[1], a[2], a[3])) },
	"kv_cas":       func(a []uint32) int64 { return int64(kvCAS(a[0], a[1], a[2], a[3], a[4], a[5])) },
	"http_request": func(a []uint32) int64 { return int64(httpRequest(a[0], a[1], a[2], a[3])) },
	"http_head":    func(a []uint32) int64 { return int64(httpHead(a[0], a[1])) },
	"http_body":    func(a []uint32) int64 { return int64(httpBody(a[0], a[1], a[2])) },
}

type call struct {
	Fn    string            `json:"fn"`
	Args  []json.RawMessage `json:"args"`
	Times int               `json:"times"` // how often to call it; 0 is once
}

type answer struct {
	Result int64    `json:"result"`
	Rooms  []string `json:"rooms,omitempty"`
}

// Texts and rooms live here until the end, so that their addresses stay good.
var kept [][]byte

func address(b []byte) uint32 {
	kept = append(kept, b)
	return uint32(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
}

// run is the entrance. It returns 7 when error_set was called, so that the error counts.
//
//go:wasmexport run
func run(size int32) int32 {
	input := make([]byte, size)
	if n := inputRead(0, address(input), uint32(size)); n != size {
		panic("input_read did not give the whole input")
	}
	var calls []call
	if err := json.Unmarshal(input, &calls); err != nil {
		panic(err)
	}
	code := int32(0)
	written := false
	answers := make([]answer, len(calls))
	for i, c := range calls {
		var args []uint32
		var rooms [][]byte
		for _, raw := range c.Args {
			var number uint32
			if json.Unmarshal(raw, &number) == nil {
				args = append(args, number)
				continue
			}
			var memory struct {
				Text *string `json:"text"`
				Room int     `json:"room"`
			}
			if err := json.Unmarshal(raw, &memory); err != nil {
				panic(err)
			}
			b := make([]byte, memory.Room, memory.Room+1)
			if memory.Text != nil {
				b = append([]byte(*memory.Text), 0)[:len(*memory.Text)]
			} else {
				rooms = append(rooms, b)
			}
			args = append(args, address(b), uint32(len(b)))
		}
		for range max(c.Times, 1) {
			answers[i].Result = functions[c.Fn](args)
		}
		for _, b := range rooms {
			answers[i].Rooms = append(answers[i].Rooms, string(b[:max(0, min(int64(len(b)), answers[i].Result))]))
		}
		switch c.Fn {
		case "error_set":
			if answers[i].Result == 0 {
				code = 7
			}
		case "output_write":
			written = written || answers[i].Result == 0
		}
	}
	if written {
		return code
	}
	output, err := json.Marshal(answers)
	if err != nil {
		panic(err)
	}
	outputWrite(address(output), uint32(len(output)))
	return code
}

func main() {}
