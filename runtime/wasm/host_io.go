package wasm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/tetratelabs/wazero/api"
)

func inputRead(g *guest, m api.Memory, p []uint64) int64 {
	return g.part(m, p[0], p[1], p[2], g.call.Input)
}

func outputWrite(g *guest, m api.Memory, p []uint64) int64 {
	b, ok := m.Read(uint32(p[0]), uint32(p[1]))
	if !ok {
		return g.badPointer()
	}
	g.write(b)
	return int64(abiOK)
}

// errorSet takes what the node says about its failure. It is read when the node has failed.
func errorSet(g *guest, m api.Memory, p []uint64) int64 {
	b, ok := m.Read(uint32(p[0]), uint32(p[1]))
	if !ok {
		return g.badPointer()
	}
	const most = 16 << 10
	if len(b) > most {
		return g.refuse(abiTooLarge, "an error has at most %s", byteSize(most))
	}
	g.spend(parseWork * len(b))
	if _, ok := explained(b, 0, true); !ok {
		return g.refuse(abiInvalid, `an error is {"error": {"class": "failed", "message": "..."}} or {"fail": {"status": 409, "code": "...", "message": "..."}}`)
	}
	g.said = bytes.Clone(b)
	return int64(abiOK)
}

func errorText(g *guest, m api.Memory, p []uint64) int64 {
	return g.give(m, p[0], p[1], []byte(g.why))
}

// logLevels are the levels of log lines by their number in the ABI.
var logLevels = [...]string{"debug", levelInfo, "warn", levelError}

func logWrite(g *guest, m api.Memory, p []uint64) int64 {
	b, ok := m.Read(uint32(p[1]), uint32(p[2]))
	if !ok {
		return g.badPointer()
	}
	level := uint32(p[0])
	if level >= uint32(len(logLevels)) {
		return g.refuse(abiInvalid, "a log level is 0 (debug), 1 (info), 2 (warn) or 3 (error)")
	}
	// No more than MaxLog of it can be kept.
	head := b[:min(len(b), MaxLog)]
	g.spend(parseWork * len(head))
	g.log.add(logLevels[level], head)
	for piece := range slices.Chunk(b[len(head):], bulkPiece) {
		g.log.drop(piece)
		g.spend(len(piece))
	}
	return int64(abiOK)
}

// add logs text at a level, line by line.
func (l *logBuffer) add(level string, text []byte) {
	l.flush(levelInfo)
	for {
		if text = withoutBreaks(text); len(text) == 0 {
			return
		}
		if l.room() == 0 {
			l.drop(text)
			return
		}
		line, rest, _ := bytes.Cut(text, []byte("\n"))
		l.Write(line)
		l.flush(level)
		text = rest
	}
}

// configGet gives the value of one name of the node's config as JSON, and all of it as an object for the empty name.
func configGet(g *guest, m api.Memory, p []uint64) int64 {
	name, ok := g.utf8Text(m, p[0], p[1])
	if !ok {
		return int64(abiInvalid)
	}
	v, ok := g.configValue(name)
	if !ok {
		return g.refuse(abiNotFound, "the node's config has no such name")
	}
	return g.give(m, p[2], p[3], v)
}

// configValue returns one value of the node's config, or all of it for the empty name.
func (g *guest) configValue(name string) (json.RawMessage, bool) {
	if g.config == nil {
		g.config = g.call.Config
		if len(g.config) == 0 {
			g.config = json.RawMessage("{}")
		}
		g.spend(parseWork * len(g.config))
		if err := json.Unmarshal(g.config, &g.byName); err != nil {
			g.abort(fmt.Errorf("the config is not a JSON object: %w", err))
		}
	}
	if name == "" {
		return g.config, true
	}
	v, ok := g.byName[name]
	return v, ok
}

// WithConfig returns an input, which must be a JSON object, with a config as one more member of that name. It is what a command reads.
func WithConfig(input []byte, config json.RawMessage) []byte {
	input = bytes.TrimRight(input, " \t\r\n")
	if len(config) == 0 || len(input) < 2 || input[len(input)-1] != '}' {
		return input
	}
	out := make([]byte, 0, len(input)+len(config)+len(`,"config":`))
	out = append(out, input[:len(input)-1]...)
	if len(bytes.TrimSpace(out)) > 1 {
		out = append(out, ',')
	}
	out = append(out, `"config":`...)
	return append(append(out, config...), '}')
}

func randomBytes(g *guest, m api.Memory, p []uint64) int64 {
	b, ok := m.Read(uint32(p[0]), uint32(p[1]))
	if !ok {
		return g.badPointer()
	}
	g.fillRandom(b)
	return int64(abiOK)
}

// clock gives milliseconds since 1970, UTC.
func clock(g *guest, _ api.Memory, _ []uint64) int64 { return g.now().UnixMilli() }
