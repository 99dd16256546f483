//go:build !wasip1

package abi

// Fake stands in for the host in a native build. Package nodetest has one.
type Fake interface {
	Log(level int32, text string)
	Config() []byte
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

// HTTP sends a request and returns the head and the body of the response.
func (h Host) HTTP(head, body []byte) (responseHead, responseBody []byte, code Code) {
	if h.fake == nil {
		return nil, nil, Denied
	}
	responseHead, responseBody, code, text := h.fake.HTTP(head, body)
	return responseHead, responseBody, h.failed(code, text)
}
