package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"
)

// asker reads what must not be an argument, where the process list and the shell's history would show it: from a terminal without echo, otherwise from standard
// input, one line for each answer.
type asker struct {
	a        *app
	in       *bufio.Reader
	terminal *os.File // nil when nobody can be asked
}

func (a *app) asker() *asker {
	k := &asker{a: a, in: bufio.NewReader(a.Stdin)}
	if f, ok := a.Stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		k.terminal = f
	}
	return k
}

// maxAnswer is the longest line that is read.
const maxAnswer = 4 << 10

// line reads an answer that may be seen.
func (k *asker) line(what string) (string, error) {
	if k.terminal != nil {
		fmt.Fprintf(k.a.Stderr, "%s: ", what)
	}
	return k.next(what)
}

// secret reads an answer that may not be seen.
func (k *asker) secret(what string) (string, error) {
	if k.terminal == nil {
		return k.next(what)
	}
	fmt.Fprintf(k.a.Stderr, "%s: ", what)
	text, err := readHidden(k.terminal)
	fmt.Fprintln(k.a.Stderr)
	if err != nil {
		return "", fmt.Errorf("read the %s: %w", strings.ToLower(what), err)
	}
	if text == "" {
		return "", usagef("the %s is empty", strings.ToLower(what))
	}
	return text, nil
}

// newPassword reads a password that is being chosen: twice from a person, who cannot see what they type.
func (k *asker) newPassword(what string) (string, error) {
	text, err := k.secret(what)
	if err != nil || k.terminal == nil {
		return text, err
	}
	again, err := k.secret(what + ", again")
	if err == nil && again != text {
		err = usagef("the two are not the same")
	}
	return text, err
}

// next reads the next line of standard input.
func (k *asker) next(what string) (string, error) {
	var b strings.Builder
	for b.Len() <= maxAnswer {
		c, err := k.in.ReadByte()
		if errors.Is(err, io.EOF) || err == nil && c == '\n' {
			text := strings.TrimSuffix(b.String(), "\r")
			if text == "" {
				return "", usagef("standard input has no %s; it is read from there, one line for each answer, or asked for on a terminal", strings.ToLower(what))
			}
			return text, nil
		}
		if err != nil {
			return "", fmt.Errorf("read the %s: %w", strings.ToLower(what), err)
		}
		b.WriteByte(c)
	}
	return "", usagef("the %s is longer than %d bytes", strings.ToLower(what), maxAnswer)
}

// readHidden reads a line without echo. Whoever gives up with Ctrl-C gets the terminal back as it was.
func readHidden(f *os.File) (string, error) {
	fd := int(f.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", err
	}
	interrupted, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupted)
	defer close(done)
	go func() {
		select {
		case <-interrupted:
			_ = term.Restore(fd, before) // there is nothing else to do about it
			os.Exit(exitFailed)
		case <-done:
		}
	}()
	raw, err := term.ReadPassword(fd)
	return string(raw), err
}
