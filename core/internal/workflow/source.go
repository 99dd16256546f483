package workflow

import (
	"cmp"
	"slices"
	"strings"
	"unicode"

	"github.com/keyfire/keyfire/core"
)

// source is the text of a file, by line, and the problems found in it.
type source struct {
	name     string
	lines    []string
	problems []problem
}

// problem is one thing that is wrong, and where.
type problem struct {
	pointer string
	at      place // zero: the file as a whole, which is shown at its beginning
	detail  string
}

const (
	maxProblems = 50  // reported of one file; more would bury the first ones
	maxExcerpt  = 120 // characters of a line that an excerpt shows
)

func newSource(name, text string) *source {
	return &source{name: name, lines: strings.Split(text, "\n")}
}

func (s *source) report(pointer string, at place, detail string) {
	s.problems = append(s.problems, problem{pointer, at, detail})
}

// err returns every problem as one error, in the order of the file, or nil when there is none.
func (s *source) err() error {
	if len(s.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(s.problems, func(a, b problem) int {
		return cmp.Or(cmp.Compare(a.at.line, b.at.line), cmp.Compare(a.at.column, b.at.column))
	})
	s.problems = slices.Compact(s.problems)
	err := core.Errorf(core.CodeInvalidWorkflow, "the workflow file has %d problems", len(s.problems))
	if len(s.problems) == 1 {
		err = core.Errorf(core.CodeInvalidWorkflow, "the workflow file has a problem")
	}
	for _, p := range s.problems[:min(len(s.problems), maxProblems)] {
		err.Fields = append(err.Fields, s.field(p))
	}
	return err
}

func (s *source) field(p problem) core.Field {
	if p.at.line < 1 {
		p.at = place{1, 1}
	}
	return core.Field{Pointer: p.pointer, Detail: p.detail, File: s.name, Line: p.at.line, Column: p.at.column, Excerpt: s.excerpt(p.at)}
}

// excerpt returns the line at p with a caret under its column, as two lines. A long line is shown around the column.
func (s *source) excerpt(p place) string {
	if p.line < 1 || p.line > len(s.lines) {
		return ""
	}
	line := []rune(s.lines[p.line-1])
	column := min(max(p.column, 1), len(line)+1) - 1
	first := max(0, min(column-maxExcerpt/2, len(line)-maxExcerpt))
	last := min(len(line), first+maxExcerpt)
	var shown, under strings.Builder
	for i, r := range line[first:last] {
		switch {
		case r == '\t':
			r = ' '
		case unicode.IsControl(r):
			r = unicode.ReplacementChar // what a terminal would obey is not shown to it
		}
		shown.WriteRune(r)
		if first+i < column {
			under.WriteByte(' ')
		}
	}
	return shown.String() + "\n" + under.String() + "^"
}

// inside returns where the character at (line, column) of the text v is found in the file. Texts that fold lines together answer
// with their beginning: to point somewhere is worth less than to point right.
func (s *source) inside(v *value, line, column int) place {
	if v.kind != text || v.at.line < 1 || v.at.line > len(s.lines) || line < 1 || column < 1 {
		return v.at
	}
	switch v.style {
	case block:
		return s.insideBlock(v, line, column)
	case folded:
		return v.at
	}
	if line > 1 {
		return v.at
	}
	rest := []rune(s.lines[v.at.line-1])
	rest = rest[min(v.at.column-1, len(rest)):]
	at := 0 // index in rest of the character that shows the next character of the text
	if v.style != plain {
		at = 1
	}
	for i, r := range []rune(v.text) {
		if i == column-1 {
			return place{v.at.line, v.at.column + at}
		}
		width := 1
		switch {
		case at >= len(rest):
			return v.at
		case v.style == singleQuoted && r == '\'':
			width = 2
		case v.style == doubleQuoted && rest[at] == '\\':
			if width = escapeWidth(rest[at:]); width == 0 {
				return v.at
			}
		case rest[at] != r:
			return v.at // the text continues on another line
		}
		at += width
	}
	return place{v.at.line, v.at.column + at}
}

// insideBlock maps a position of a literal block: each line of the text is one line of the file, moved to the right.
func (s *source) insideBlock(v *value, line, column int) place {
	content := strings.Split(v.text, "\n")
	fileLine := v.at.line + line // the block begins on the line after its "|"
	if line > len(content) || fileLine > len(s.lines) {
		return v.at
	}
	indent := strings.Index(s.lines[fileLine-1], content[line-1])
	if indent < 0 || strings.TrimLeft(s.lines[fileLine-1][:indent], " ") != "" {
		return v.at
	}
	return place{fileLine, indent + column}
}

// escapeWidth returns how many characters the escape at the start of s has, 0 when it stands for less or more than one character.
func escapeWidth(s []rune) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] {
	case 'x':
		return 4
	case 'u':
		if len(s) > 2 && (s[2] == 'd' || s[2] == 'D') {
			return 0 // perhaps half of a surrogate pair
		}
		return 6
	case 'U':
		return 10
	case '\n':
		return 0
	}
	return 2
}
