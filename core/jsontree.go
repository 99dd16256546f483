package core

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
)

// DecodeJSON decodes one JSON value. Numbers are json.Number, so that none is rounded.
func DecodeJSON(raw []byte) (any, error) {
	// Nearly every text has been through CheckJSON, and the same rules read it in a third of the time.
	c := jsonChecker{data: raw, lim: JSONLimits{Depth: DefaultJSONDepth, Values: math.MaxInt}}
	c.space()
	v, err := c.tree(0)
	if c.space(); err == nil && c.at == len(raw) {
		return v, nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	v = nil
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) { // More would take a bracket for the end
		return nil, errors.New("more than one JSON value")
	}
	return v, nil
}

// tree decodes the value that starts at c.at; depth is the number of open arrays and objects around it. The last of several members of one name counts.
func (c *jsonChecker) tree(depth int) (any, error) {
	start := c.at
	if start < len(c.data) && depth < c.lim.Depth {
		switch c.data[start] {
		case '"':
			return c.textValue()
		case '{':
			return c.treeObject(depth + 1)
		case '[':
			return c.treeArray(depth + 1)
		}
	}
	if err := c.value(c.lim.Depth); err != nil { // it is none of those, or one too many
		return nil, err
	}
	switch c.data[start] {
	case 't':
		return true, nil
	case 'f':
		return false, nil
	case 'n':
		return nil, nil
	}
	return json.Number(c.data[start:c.at]), nil
}

func (c *jsonChecker) treeObject(depth int) (any, error) {
	object := map[string]any{}
	c.at++
	if c.space(); c.at < len(c.data) && c.data[c.at] == '}' {
		c.at++
		return object, nil
	}
	for {
		if c.space(); c.at >= len(c.data) || c.data[c.at] != '"' {
			return nil, c.fail(c.at, "a member name in double quotes must follow")
		}
		name, err := c.textValue()
		if err != nil {
			return nil, err
		}
		if c.space(); c.at >= len(c.data) || c.data[c.at] != ':' {
			return nil, c.fail(c.at, "a colon must follow a member name")
		}
		c.at++
		c.space()
		value, err := c.tree(depth)
		if err != nil {
			return nil, err
		}
		object[name] = value
		c.space()
		if more, err := c.next('}', "an object goes on with a comma or ends with }"); err != nil || !more {
			return object, err
		}
	}
}

func (c *jsonChecker) treeArray(depth int) (any, error) {
	array := []any{}
	c.at++
	if c.space(); c.at < len(c.data) && c.data[c.at] == ']' {
		c.at++
		return array, nil
	}
	for {
		c.space()
		value, err := c.tree(depth)
		if err != nil {
			return nil, err
		}
		array = append(array, value)
		c.space()
		if more, err := c.next(']', "an array goes on with a comma or ends with ]"); err != nil || !more {
			return array, err
		}
	}
}

// textValue returns the string that starts at c.at.
func (c *jsonChecker) textValue() (string, error) {
	text, err := c.text()
	s := string(c.bytes(text))
	c.buf = c.buf[:0]
	return s, err
}
