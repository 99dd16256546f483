//go:build !wasip1

package abi

// Fake stands in for the host in a native build. Package nodetest has one.
type Fake interface {
	Log(level int32, text string)
	Config() []byte
	Secret(name string) (value string, code Code, text string)
	Get(key string) (value []byte, code Code)
	Swap(key string, value []byte, check bool, old []byte) Code
	HTTP(head, body []byte) (responseHead, responseBody []byte, code Code, text string)
}

// Host calls a Fake. The zero Host has none: it drops the log, has no config and grants nothing.
type Host struct {
	fake Fake
	text *string // of the last failure
}

// NewHost returns a Host that calls f.
func NewHost(f Fake) Host { return Host{fake: f, text: new(string)} }

const noHost = "there is no host: this is a native build; in a test, make the context with package nodetest"

func (h Host) failed(c Code, text string) Code {
	if h.text != nil && c != OK {
		*h.text = text
	}
	return c
}

// failedKV is failed for values. Whoever is denied them has not lost a race or missed a key.
func (h Host) failedKV(c Code, text string) Code {
	switch c {
	case Denied:
		text = "no values are granted here; in a test, set nodetest.Host.KV"
	case Invalid:
		text = "a key has 1 to 512 bytes of UTF-8, none of which is 0"
	case TooLarge:
		text = "a value has at most 64 KiB"
	}
	return h.failed(c, text)
}

// ErrorText returns why the last function failed.
func (h Host) ErrorText() string {
	if h.text == nil {
		return noHost
	}
	return *h.text
}

// Log writes lines to the log of the step.
func (h Host) Log(level int32, text string) {
	if h.fake != nil {
		h.fake.Log(level, text)
	}
}

// Config returns the config as a JSON object.
func (h Host) Config() ([]byte, Code) {
	if h.fake == nil {
		return []byte("{}"), OK
	}
	return h.fake.Config(), OK
}

// Secret returns the value of a secret.
func (h Host) Secret(name string) (string, Code) {
	if h.fake == nil {
		return "", Denied
	}
	value, code, text := h.fake.Secret(name)
	return value, h.failed(code, text)
}

// Get returns the value of a key.
func (h Host) Get(key string) ([]byte, Code) {
	if h.fake == nil {
		return nil, Denied
	}
	v, code := h.fake.Get(key)
	return v, h.failedKV(code, "the key has no value")
}

// Put sets the value of a key; nil removes it.
func (h Host) Put(key string, v []byte) Code {
	if h.fake == nil {
		return Denied
	}
	return h.failedKV(h.fake.Swap(key, v, false, nil), "the value cannot be kept")
}

// Swap sets the value of a key if it is old; nil is no value, in either place.
func (h Host) Swap(key string, old, v []byte) Code {
	if h.fake == nil {
		return Denied
	}
	return h.failedKV(h.fake.Swap(key, v, true, old), "the value is another one by now")
}

// HTTP sends a request and returns the head and the body of the response.
func (h Host) HTTP(head, body []byte) (responseHead, responseBody []byte, code Code) {
	if h.fake == nil {
		return nil, nil, Denied
	}
	responseHead, responseBody, code, text := h.fake.HTTP(head, body)
	return responseHead, responseBody, h.failed(code, text)
}
