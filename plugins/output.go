package plugins

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of what is kept of a plugin's output.
const (
	maxLine  = 4 << 10 // bytes of a line; the rest of it is dropped
	keptLine = 200     // lines kept for Logs
	lineRate = 20      // lines a second that are taken in, after a burst of lineMax
	lineMax  = 100
)

// LogLine is one line a plugin wrote to standard error, with everything that does not print escaped.
type LogLine struct {
	Time time.Time
	PID  int
	Text string
}

// output takes in what the processes of one plugin write. It reads as fast as they write, so that a flood blocks nobody, and lets
// through a bounded rate of lines; how many it dropped is said in their place.
type output struct {
	logger *slog.Logger
	now    func() time.Time

	mu      sync.Mutex
	lines   []LogLine // ring
	next    int
	tokens  float64
	filled  time.Time
	dropped int64
}

func newOutput(logger *slog.Logger, now func() time.Time) *output {
	return &output{logger: logger, now: now, tokens: lineMax, filled: now()}
}

// copy reads r to its end.
func (o *output) copy(r io.Reader, pid int) {
	br := bufio.NewReaderSize(r, maxLine)
	for {
		line, more, err := br.ReadLine()
		if err != nil {
			return
		}
		dropped, ok := o.admit()
		text, cut := "", more
		if ok {
			text = escape(line) // before the next read reuses the buffer
		}
		for more && err == nil {
			_, more, err = br.ReadLine()
		}
		if cut {
			text += " [cut]"
		}
		if ok {
			o.line(text, pid, dropped)
		}
	}
}

// admit reports whether one more line may be taken in, and how many before it were not. It is decided before a line is looked at, so
// that a flood costs little more than reading it.
func (o *output) admit() (dropped int64, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.now()
	o.tokens = min(lineMax, o.tokens+lineRate*now.Sub(o.filled).Seconds())
	o.filled = now
	if o.tokens < 1 {
		o.dropped++
		return 0, false
	}
	o.tokens--
	dropped, o.dropped = o.dropped, 0
	return dropped, true
}

func (o *output) line(text string, pid int, dropped int64) {
	level := slog.LevelInfo
	switch {
	case strings.HasPrefix(text, "[ERROR]"), strings.HasPrefix(text, "panic: "), strings.HasPrefix(text, "fatal error: "):
		level = slog.LevelError
	case strings.HasPrefix(text, "[WARN]"):
		level = slog.LevelWarn
	case strings.HasPrefix(text, "[DEBUG]"):
		level = slog.LevelDebug
	}
	if dropped > 0 {
		o.keep(fmt.Sprintf("(%d lines dropped)", dropped), pid)
		o.logger.Warn("plugin wrote more than its share of the log", "pid", pid, "dropped_lines", dropped)
	}
	o.keep(text, pid)
	o.logger.Log(context.Background(), level, "plugin output", "pid", pid, "text", text)
}

func (o *output) keep(text string, pid int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := LogLine{Time: o.now(), PID: pid, Text: text}
	if len(o.lines) < keptLine {
		o.lines = append(o.lines, l)
		return
	}
	o.lines[o.next] = l
	o.next = (o.next + 1) % keptLine
}

// kept returns the newest lines, oldest first.
func (o *output) kept() []LogLine {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append(append([]LogLine(nil), o.lines[o.next:]...), o.lines[:o.next]...)
}

// escape makes a line harmless for terminals and log files.
func escape(line []byte) string {
	s := string(line)
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) && r != '\t' }) < 0 {
		return s
	}
	quoted := strconv.QuoteToGraphic(s)
	return quoted[1 : len(quoted)-1]
}
