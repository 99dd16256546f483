package wasm

import (
	"bytes"
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
	for {
		if len(l.partial) == 0 {
			p = withoutBreaks(p)
		}
		if len(p) == 0 {
			return
		}
		room := l.room()
		if room == 0 && len(l.partial) == 0 {
			l.drop(p)
			return
		}
		line, rest, end := bytes.Cut(p, []byte("\n"))
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

// withoutBreaks steps over empty lines, which are left out and take no room, so that a guest may send any number of them.
func withoutBreaks(p []byte) []byte {
	n := 0
	for n < len(p) && p[n] == '\n' {
		n++
	}
	return p[n:]
}

// room is how many bytes are still kept.
func (l *logBuffer) room() int {
	if len(l.lines) >= MaxLogLines {
		return 0
	}
	return MaxLog - l.used
}

// drop counts bytes that are not kept. A guest may send gigabytes of them, so they are not looked at one by one.
func (l *logBuffer) drop(p []byte) {
	l.dropped += int64(len(p) - bytes.Count(p, []byte("\n")))
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
