package core

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"slices"
	"strings"
)

// Mask takes secrets out of bytes, in the forms in which a [Redactor] finds them, and can put them back: where the Redactor leaves a word, it notes which secret stood
// there. A nil one finds nothing. It may be used concurrently.
type Mask struct {
	replacer *strings.Replacer
	mark     string // what no text holds; four bytes follow it, an index of holes
	holes    []Hole
	values   map[string]string
}

// Hole is where a secret stood, and in which of its forms.
type Hole struct {
	Secret string
	Form   int
}

// Piece is a part of a masked text: bytes, or a hole.
type Piece struct {
	Bytes []byte
	Hole  Hole // of bytes the zero value
}

// NewMask returns a Mask for secrets, by name.
func NewMask(secrets map[string]string) *Mask {
	m := &Mask{mark: "\x00" + rand.Text(), values: secrets}
	type form struct {
		text string
		Hole
	}
	var forms []form
	for name, value := range secrets {
		for i, text := range secretForms(value) {
			forms = append(forms, form{text, Hole{name, i}})
		}
	}
	if len(forms) == 0 {
		return nil
	}
	slices.SortFunc(forms, func(a, b form) int {
		return cmp.Or(len(b.text)-len(a.text), strings.Compare(a.text, b.text), strings.Compare(a.Secret, b.Secret), a.Form-b.Form)
	})
	forms = slices.CompactFunc(forms, func(a, b form) bool { return a.text == b.text })
	pairs := make([]string, 0, 2*len(forms))
	for i, f := range forms {
		pairs = append(pairs, f.text, m.mark+string(binary.BigEndian.AppendUint32(nil, uint32(i))))
		m.holes = append(m.holes, f.Hole)
	}
	m.replacer = strings.NewReplacer(pairs...)
	return m
}

// Cut returns b in pieces: one, unless it holds secrets, and none if it is empty.
func (m *Mask) Cut(b []byte) (pieces []Piece) {
	var texts [][]byte
	if m != nil {
		texts = bytes.Split([]byte(m.replacer.Replace(string(b))), []byte(m.mark))
	} else {
		texts = [][]byte{b}
	}
	for i, text := range texts {
		if i > 0 {
			pieces = append(pieces, Piece{Hole: m.holes[binary.BigEndian.Uint32(text)]})
			text = text[4:]
		}
		if len(text) > 0 {
			pieces = append(pieces, Piece{Bytes: text})
		}
	}
	return pieces
}

// Join fills the holes of pieces again. One of a secret that the mask does not have is filled with Redacted.
func (m *Mask) Join(pieces []Piece) []byte {
	b := []byte{}
	for _, p := range pieces {
		if p.Hole.Secret == "" {
			b = append(b, p.Bytes...)
			continue
		}
		forms := []string{Redacted}
		if m != nil {
			if of := secretForms(m.values[p.Hole.Secret]); len(of) > 0 {
				forms = of
			}
		}
		i := p.Hole.Form
		if i < 0 || i >= len(forms) {
			i = 0 // of another value, which does not have as many
		}
		b = append(b, forms[i]...)
	}
	return b
}
