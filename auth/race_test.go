//go:build race

package auth

// raceEnabled: the race detector slows down some steps and not others, so times mean nothing under it.
const raceEnabled = true
