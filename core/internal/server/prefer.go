package server

import (
	"errors"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
)

// preference is what a Prefer header (RFC 7240) asks for. Preferences that are not known, or that make no sense, are not applied, which the
// absence of Preference-Applied tells.
type preference struct {
	async   bool
	waiting bool          // wait was given
	wait    time.Duration // for which the answer is waited for, at most the server's own bound
}

// parsePrefer reads the values of a Prefer header. The first of several equal preferences counts.
func parsePrefer(values []string, most time.Duration) preference {
	var p preference
	for _, v := range values {
		for pref := range preferences(v) {
			pref, _, _ = strings.Cut(pref, ";")
			name, value, _ := strings.Cut(pref, "=")
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "respond-async":
				p.async = true
			case "wait":
				seconds, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
				if (err == nil || errors.Is(err, strconv.ErrRange)) && !p.waiting { // too long to count is too long to wait, too
					p.waiting, p.wait = true, min(time.Duration(seconds)*time.Second, most)
				}
			}
		}
	}
	return p
}

// preferences are the elements of a Prefer header; a comma in a quoted string is part of one.
func preferences(list string) iter.Seq[string] {
	return func(yield func(string) bool) {
		start, quoted := 0, false
		for i := 0; i < len(list); i++ {
			switch {
			case list[i] == '"':
				quoted = !quoted
			case list[i] == '\\' && quoted:
				i++
			case list[i] == ',' && !quoted:
				if !yield(list[start:i]) {
					return
				}
				start = i + 1
			}
		}
		yield(list[start:])
	}
}

// asks reports whether there is anything to apply.
func (p preference) asks() bool { return p.async || p.waiting }

// applied says in the answer what was applied, and what became of wait where the server waits less.
func (p preference) applied(c *gin.Context) {
	var all []string
	if p.async {
		all = append(all, "respond-async")
	}
	if p.waiting {
		all = append(all, "wait="+strconv.Itoa(int(p.wait/time.Second)))
	}
	if len(all) > 0 {
		c.Header("Preference-Applied", strings.Join(all, ", "))
	}
}

// patience is how long a caller waits for a durable run before it is answered with 202.
func (s *Server) patience(p preference, async bool) time.Duration {
	switch {
	case p.waiting:
		return p.wait
	case p.async || async:
		return 0
	}
	return min(s.SyncWait, s.MaxWait)
}
