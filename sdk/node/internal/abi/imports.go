//go:build wasip1

package abi

import "unsafe"

//go:wasmimport keyfire_v1 input_read
func inputRead(offset uint32, buf unsafe.Pointer, limit uint32) int32

//go:wasmimport keyfire_v1 output_write
func outputWrite(p unsafe.Pointer, n uint32) int32

//go:wasmimport keyfire_v1 error_set
func errorSet(p unsafe.Pointer, n uint32) int32

//go:wasmimport keyfire_v1 error_text
func errorText(buf unsafe.Pointer, limit uint32) int32

//go:wasmimport keyfire_v1 log
func logWrite(level int32, text string) int32

//go:wasmimport keyfire_v1 config_get
func configGet(name string, buf unsafe.Pointer, limit uint32) int32

//go:wasmimport keyfire_v1 secret_get
func secretGet(name string, buf unsafe.Pointer, limit uint32) int32

//go:wasmimport keyfire_v1 kv_get
func kvGet(key string, buf unsafe.Pointer, limit uint32) int32

//go:wasmimport keyfire_v1 kv_put
func kvPut(key string, value unsafe.Pointer, size uint32) int32

//go:wasmimport keyfire_v1 kv_cas
func kvCAS(key string, old unsafe.Pointer, oldSize uint32, value unsafe.Pointer, size uint32) int32

//go:wasmimport keyfire_v1 http_request
func httpRequest(head unsafe.Pointer, headLen uint32, body unsafe.Pointer, bodyLen uint32) int32

//go:wasmimport keyfire_v1 http_head
func httpHead(buf unsafe.Pointer, limit uint32) int32

//go:wasmimport keyfire_v1 http_body
func httpBody(offset uint32, buf unsafe.Pointer, limit uint32) int32

// Host calls the host. It has no fields: the linker keeps only the imports that a node's code can reach, and so a node asks for no more
// grants than it uses. Holding the imports in an interface or a variable would keep them all.
type Host struct{}

func data(b []byte) (unsafe.Pointer, uint32) {
	return unsafe.Pointer(unsafe.SliceData(b)), uint32(len(b))
}

// get calls a function that gives bytes until its buffer is large enough.
func get(call func(buf unsafe.Pointer, limit uint32) int32) ([]byte, Code) {
	b := make([]byte, 256)
	for {
		n := call(data(b))
		switch {
		case n < 0:
			return nil, Code(n)
		case int(n) <= len(b):
			return b[:n], OK
		}
		b = make([]byte, n)
	}
}

// Input reads the input. size is its length if that is known, or 0.
func (Host) Input(size int) []byte {
	b := make([]byte, 0, max(size, 4<<10))
	for {
		if len(b) == size && size > 0 {
			return b
		}
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		p, n := data(b[len(b):cap(b)])
		got := inputRead(uint32(len(b)), p, n)
		if got <= 0 {
			return b
		}
		b = b[:len(b)+int(got)]
	}
}

// Output adds to the output.
func (Host) Output(b []byte) { outputWrite(data(b)) }

// Fail says why the node fails, in the form of ABI.md.
func (Host) Fail(b []byte) { errorSet(data(b)) }

// ErrorText returns why the last function failed.
func (Host) ErrorText() string {
	b, _ := get(errorText)
	return string(b)
}

// Log writes lines to the log of the step.
func (Host) Log(level int32, text string) { logWrite(level, text) }

// Config returns the config as a JSON object.
func (Host) Config() ([]byte, Code) {
	return get(func(p unsafe.Pointer, n uint32) int32 { return configGet("", p, n) })
}

// Secret returns the value of a secret.
func (Host) Secret(name string) (string, Code) {
	b, code := get(func(p unsafe.Pointer, n uint32) int32 { return secretGet(name, p, n) })
	return string(b), code
}

// Get returns the value of a key.
func (Host) Get(key string) ([]byte, Code) {
	return get(func(p unsafe.Pointer, n uint32) int32 { return kvGet(key, p, n) })
}

// value is data, with nil as no value.
func value(b []byte) (unsafe.Pointer, uint32) {
	if b == nil {
		return nil, 0xffffffff
	}
	return data(b)
}

// Put sets the value of a key; nil removes it.
func (Host) Put(key string, v []byte) Code {
	p, n := value(v)
	return Code(kvPut(key, p, n))
}

// Swap sets the value of a key if it is old; nil is no value, in either place.
func (Host) Swap(key string, old, v []byte) Code {
	op, on := value(old)
	p, n := value(v)
	return Code(kvCAS(key, op, on, p, n))
}

// HTTP sends a request and returns the head and the body of the response.
func (Host) HTTP(head, body []byte) (responseHead, responseBody []byte, code Code) {
	hp, hn := data(head)
	bp, bn := data(body)
	n := httpRequest(hp, hn, bp, bn)
	if n < 0 {
		return nil, nil, Code(n)
	}
	responseHead = make([]byte, n)
	httpHead(data(responseHead))
	responseBody = make([]byte, 0, 4<<10)
	for {
		if len(responseBody) == cap(responseBody) {
			responseBody = append(responseBody, 0)[:len(responseBody)]
		}
		p, n := data(responseBody[len(responseBody):cap(responseBody)])
		got := httpBody(uint32(len(responseBody)), p, n)
		if got <= 0 {
			return responseHead, responseBody, OK
		}
		responseBody = responseBody[:len(responseBody)+int(got)]
	}
}
