package wasm

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keyfire/keyfire/core"
)

// Levels of log lines.
const (
	levelInfo  = "info"
	levelError = "error"
)

// logBuffer turns what a guest writes into log lines, within MaxLog bytes and MaxLogLines lines. Lines are safe to print: valid UTF-8,
// without control characters. Empty lines are left out.
type logBuffer struct {
	now     func() time.Time
	lines   []core.LogLine
	partial []byte // the line being written
	used    int    // bytes of lines and partial
	dropped int64
}

// Write takes bytes as they come; a line ends at "\n".
func (l *logBuffer) Write(p []byte) {
	for len(p) > 0 {
		line, rest := p, []byte(nil)
		end := false
		for i, c := range p {
			if c == '\n' {
				line, rest, end = p[:i], p[i+1:], true
				break
			}
		}
		room := MaxLog - l.used
		if len(l.lines) >= MaxLogLines {
			room = 0
		}
		if len(line) > room {
			l.dropped += int64(len(line) - room)
			line = line[:room]
		}
		l.partial = append(l.partial, line...)
		l.used += len(line)
		if end {
			l.flush(levelInfo)
		}
		p = rest
	}
}

// flush ends the line being written.
func (l *logBuffer) flush(level string) {
	if text := printable(string(l.partial)); text != "" {
		l.lines = append(l.lines, core.LogLine{Time: l.now(), Level: level, Message: text})
	}
	l.partial = l.partial[:0]
}

// error adds lines of the host's own, such as the trace of a trap.
func (l *logBuffer) error(text string) {
	l.flush(levelInfo)
	for line := range strings.Lines(text) {
		l.Write([]byte(strings.TrimRight(line, "\n")))
		l.flush(levelError)
	}
}

// printable replaces invalid UTF-8, turns tabs into spaces and removes other control and format characters, so that guest text can break
// neither a log, nor a terminal, nor a reader's idea of where a line ends.
func printable(s string) string {
	clean := true
	for _, c := range s {
		if c == utf8.RuneError || unicode.In(c, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			clean = false
			break
		}
	}
	if !clean {
		s = strings.Map(func(c rune) rune {
			if c == '\t' {
				return ' '
			}
			if unicode.In(c, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
				return -1
			}
			return c
		}, strings.ToValidUTF8(s, "\uFFFD"))
	}
	return strings.TrimRight(s, " ")
}
