package node

import (
	"context"
	"log/slog"
	"strconv"
	"strings"

	"github.com/keyfire/keyfire/sdk/node/internal/abi"
)

// logHandler writes records as "message key=value ...". The host adds the time, and carries the level beside the text.
type logHandler struct {
	host   abi.Host
	attrs  string // as they are written, each with a space before it
	prefix string // of keys, from groups
}

// Enabled implements slog.Handler. Which levels are kept is the host's business.
func (h *logHandler) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message)
	b.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		writeAttr(&b, h.prefix, a)
		return true
	})
	level := abi.Debug
	switch {
	case r.Level >= slog.LevelError:
		level = abi.Error
	case r.Level >= slog.LevelWarn:
		level = abi.Warn
	case r.Level >= slog.LevelInfo:
		level = abi.Info
	}
	h.host.Log(level, b.String())
	return nil
}

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var b strings.Builder
	for _, a := range attrs {
		writeAttr(&b, h.prefix, a)
	}
	return &logHandler{h.host, h.attrs + b.String(), h.prefix}
}

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return &logHandler{h.host, h.attrs, h.prefix + name + "."}
}

func writeAttr(b *strings.Builder, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, inner := range v.Group() {
			writeAttr(b, prefix, inner)
		}
		return
	}
	if a.Equal(slog.Attr{}) {
		return
	}
	text := v.String()
	if text == "" || strings.ContainsAny(text, " \t\r\n\"=") {
		text = strconv.Quote(text)
	}
	b.WriteString(" " + prefix + a.Key + "=" + text)
}
