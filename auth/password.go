package auth

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"github.com/keyfire/keyfire/core"
)

// Bounds of a password, in bytes. The most is there because an attacker would otherwise choose how much we hash.
const (
	MinPassword = 10
	MaxPassword = 1024
)

// PasswordHash is a password as it is stored: argon2id over HMAC-SHA-256(pepper, password), with the parameters it was made with. Without the pepper, which is not
// in the database, no guess can be tried.
type PasswordHash struct {
	Text   string // "$argon2id$v=19$m=<KiB>,t=<passes>,p=<threads>$<salt>$<hash>"
	Pepper int    // version of the pepper
}

// PasswordConfig configures Passwords. Pepper and Random are required; zero values of the rest are the defaults given.
type PasswordConfig struct {
	Pepper *Pepper
	Random io.Reader // a cryptographic source

	Memory  int // KiB that one hash takes; 0 is 32 MiB
	Passes  int // over the memory; 0 is 3
	Threads int // 0 is 1

	// AtOnce bounds how many hashes are computed at the same time, and with it their memory; 0 is 2. Waiting bounds how many more may wait, for
	// at most Patience; the next one is refused with CodeOverloaded. 0 is 32, and 5 s.
	AtOnce   int
	Waiting  int
	Patience time.Duration
}

// Passwords hashes and verifies passwords. It is safe for concurrent use.
type Passwords struct {
	cfg   PasswordConfig
	room  chan struct{} // places for those who hash or wait
	slots chan struct{} // places for those who hash
}

// Bounds of the parameters of a stored hash: whoever can write to the database must not choose how much memory the server takes.
const (
	maxMemory  = 1 << 20 // KiB
	maxPasses  = 64
	maxThreads = 16
	saltLen    = 16
	sumLen     = 32
)

// NewPasswords returns Passwords.
func NewPasswords(cfg PasswordConfig) (*Passwords, error) {
	if cfg.Pepper == nil || cfg.Random == nil {
		return nil, errors.New("passwords: Pepper and Random are required")
	}
	for _, n := range []struct {
		value *int
		or    int
	}{{&cfg.Memory, 32 << 10}, {&cfg.Passes, 3}, {&cfg.Threads, 1}, {&cfg.AtOnce, 2}, {&cfg.Waiting, 32}} {
		if *n.value == 0 {
			*n.value = n.or
		}
	}
	if cfg.Patience == 0 {
		cfg.Patience = 5 * time.Second
	}
	if cfg.Memory < 8*cfg.Threads || cfg.Memory > maxMemory || cfg.Passes < 1 || cfg.Passes > maxPasses || cfg.Threads < 1 || cfg.Threads > maxThreads || cfg.AtOnce < 1 || cfg.Waiting < 0 {
		return nil, errors.New("passwords: parameters out of bounds")
	}
	return &Passwords{cfg: cfg, room: make(chan struct{}, cfg.AtOnce+cfg.Waiting), slots: make(chan struct{}, cfg.AtOnce)}, nil
}

// Hash returns how to store a password. It is CodeOverloaded when too many hashes are being computed.
func (p *Passwords) Hash(ctx context.Context, password Secret) (PasswordHash, error) {
	params := argonParams{memory: uint32(p.cfg.Memory), passes: uint32(p.cfg.Passes), threads: uint8(p.cfg.Threads), salt: make([]byte, saltLen)} // NewPasswords has bounded them
	if _, err := io.ReadFull(p.cfg.Random, params.salt); err != nil {
		return PasswordHash{}, fmt.Errorf("salt: %w", err)
	}
	pepper := p.cfg.Pepper.Newest()
	sum, err := p.compute(ctx, params, pepper, password)
	if err != nil {
		return PasswordHash{}, err
	}
	params.sum = sum
	return PasswordHash{Text: params.String(), Pepper: pepper}, nil
}

// Verify reports whether password is the one that stored was made of. stored is nil for a user who does not exist: the answer is then no, after the same work.
// again reports that the password is right and should be stored anew, because the parameters or the pepper have changed since. CodeOverloaded as for Hash.
func (p *Passwords) Verify(ctx context.Context, password Secret, stored *PasswordHash) (ok, again bool, err error) {
	current := argonParams{memory: uint32(p.cfg.Memory), passes: uint32(p.cfg.Passes), threads: uint8(p.cfg.Threads)} // NewPasswords has bounded them
	params, pepper := current, p.cfg.Pepper.Newest()
	params.salt, params.sum = make([]byte, saltLen), make([]byte, sumLen)
	if stored != nil {
		if params, err = parseArgon(stored.Text); err != nil {
			return false, false, fmt.Errorf("stored password: %w", err)
		}
		pepper = stored.Pepper
	}
	sum, err := p.compute(ctx, params, pepper, password)
	if err != nil {
		return false, false, err
	}
	ok = subtle.ConstantTimeCompare(sum, params.sum) == 1 && stored != nil
	same := params.memory == current.memory && params.passes == current.passes && params.threads == current.threads && pepper == p.cfg.Pepper.Newest()
	return ok, ok && !same, nil
}

// compute takes a place, or waits for one.
func (p *Passwords) compute(ctx context.Context, params argonParams, pepper int, password Secret) ([]byte, error) {
	busy := core.Errorf(core.CodeOverloaded, "too many logins at once; try again")
	busy.RetryAfter = time.Second
	select {
	case p.room <- struct{}{}:
		defer func() { <-p.room }()
	default:
		return nil, busy
	}
	patience := time.NewTimer(p.cfg.Patience)
	defer patience.Stop()
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-patience.C:
		return nil, busy
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	keyed, ok := p.cfg.Pepper.Hash(pepper, password)
	if !ok {
		return nil, fmt.Errorf("password was made with version %d of the pepper, which is not in its file", pepper)
	}
	return argon2.IDKey(keyed[:], params.salt, params.passes, params.memory, params.threads, sumLen), nil
}

// argonParams is a stored hash taken apart.
type argonParams struct {
	memory, passes uint32
	threads        uint8
	salt, sum      []byte
}

var base64Raw = base64.RawStdEncoding.Strict()

// String returns the usual text form.
func (a argonParams) String() string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, a.memory, a.passes, a.threads, base64Raw.EncodeToString(a.salt), base64Raw.EncodeToString(a.sum))
}

func parseArgon(text string) (argonParams, error) {
	var a argonParams
	wrong := errors.New("not an argon2id hash within bounds")
	parts := strings.Split(text, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return a, wrong
	}
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &a.memory, &a.passes, &a.threads); err != nil || n != 3 {
		return a, wrong
	}
	var err1, err2 error
	a.salt, err1 = base64Raw.DecodeString(parts[4])
	a.sum, err2 = base64Raw.DecodeString(parts[5])
	if err := errors.Join(err1, err2); err != nil || len(a.salt) < saltLen || len(a.sum) != sumLen || a.memory > maxMemory || a.passes < 1 || a.passes > maxPasses ||
		a.threads < 1 || a.threads > maxThreads || a.memory < 8*uint32(a.threads) || a.String() != text {
		return a, wrong
	}
	return a, nil
}

// CheckPassword says what is wrong with a password that a user of the given name shall have, in a few words without a subject, or "" when it is good enough: 10 to
// 1024 bytes of printing text that is not made up of the words that every guesser tries first. The known defaults of this server and of the products it stands in for are among them.
func CheckPassword(user string, password Secret) string {
	text := password.Reveal()
	if text != "" && wellKnown(user, text) { // one that was left out is only too short
		return "is one that everybody tries first; choose another one"
	}
	switch {
	case len(text) < MinPassword:
		return fmt.Sprintf("must have at least %d characters", MinPassword)
	case len(text) > MaxPassword:
		return fmt.Sprintf("must have at most %d bytes", MaxPassword)
	case !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl):
		return "must be text in UTF-8 without control characters"
	}
	distinct := map[rune]bool{}
	for _, r := range text {
		distinct[r] = true
	}
	if len(distinct) < 5 {
		return "must have more different characters"
	}
	return ""
}

// guesses are what a well-known password is made of.
var guesses = []string{
	"langflow", "keyfire", "keyflow", "miiflow", "bifrost", "admin", "administrator", "root", "superuser", "super", "user", "operator", "owner", "password", "passwd", "pass", "pwd",
	"changeme", "changeit", "change", "me", "now", "please", "it", "this", "default", "secret", "letmein", "welcome", "qwerty", "qwertyuiop", "asdfghjkl", "abc", "abcdef", "abcdefghijkl", "iloveyou", "dragon", "monkey",
	"test", "testing", "guest", "demo", "example", "login", "temp", "temporary", "new", "my", "the", "your",
}

// wellKnown reports whether nothing is left of a password when digits, punctuation, the user's own name and the words of guesses are taken out of it, whatever the case and the
// usual stand-ins for letters.
func wellKnown(user, text string) bool {
	letters := func(s string, standIns bool) string {
		return strings.Map(func(r rune) rune {
			if standIns {
				switch r {
				case '0':
					return 'o'
				case '1', '!':
					return 'i'
				case '3':
					return 'e'
				case '4', '@':
					return 'a'
				case '5', '$':
					return 's'
				case '7':
					return 't'
				}
			}
			if !unicode.IsLetter(r) {
				return -1
			}
			return unicode.ToLower(r)
		}, s)
	}
	words := guesses
	for part := range strings.FieldsFuncSeq(user, func(r rune) bool { return !unicode.IsLetter(r) }) {
		words = append(words[:len(words):len(words)], strings.ToLower(part))
	}
	words = append(words[:len(words):len(words)], letters(user, false))
	other := func(r rune) bool { return !unicode.IsLetter(r) }
	for _, part := range []string{text, strings.TrimLeftFunc(text, other), strings.TrimRightFunc(text, other), strings.TrimFunc(text, other)} { // a 1 in "passw0rd1" is no letter, and in "adm1n" it is
		if madeOf(letters(part, false), words) || madeOf(letters(part, true), words) {
			return true
		}
	}
	return false
}

// madeOf reports whether text is a sequence of words.
func madeOf(text string, words []string) bool {
	if len(text) > MaxPassword {
		return false
	}
	reached := make([]bool, len(text)+1)
	reached[0] = true
	for i := range text {
		if !reached[i] {
			continue
		}
		for _, w := range words {
			if w != "" && strings.HasPrefix(text[i:], w) {
				reached[i+len(w)] = true
			}
		}
	}
	return reached[len(text)]
}
