package core

import (
	"context"
	"runtime"
	"testing"
)

// O2: when no slot is free, callers take turns for the next one.
func TestSlotsAreGivenInTurns(t *testing.T) {
	t.Parallel()
	s := NewSlots(1)
	if !s.Acquire(t.Context().Done(), "a", "first") {
		t.Fatal("a free slot was not given")
	}
	order := make(chan string)
	waits := func(caller string) {
		before := waiting(s)
		go func() {
			if s.Acquire(nil, "a", caller) {
				order <- caller
			}
		}()
		for waiting(s) == before {
			runtime.Gosched()
		}
	}
	for range 50 {
		waits("elephant")
	}
	waits("mouse")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if s.Acquire(gone.Done(), "a", "gone") {
		t.Error("a slot was given twice")
	}
	s.Release()
	at := 0
	for i := range 51 {
		if <-order == "mouse" {
			at = i
		}
		s.Release()
	}
	if at > 1 {
		t.Errorf("the mouse was number %d to get a slot", at)
	}
	if free, wait := s.State(); free != 1 || wait != 0 {
		t.Errorf("%d slots are free in the end, and %d wait", free, wait)
	}
}

func waiting(s *Slots) int {
	_, n := s.State()
	return n
}

// Who passes its slot on gets it back after everybody who waited already, and keeps it if nobody does.
func TestSlotsArePassedOn(t *testing.T) {
	t.Parallel()
	s := NewSlots(1)
	if !s.Try() || s.Try() {
		t.Fatal("there is not one slot")
	}
	if !s.PassOn(nil, "a", "first") {
		t.Fatal("nobody waits, and the slot was not kept")
	}
	order := make(chan string, 2)
	go func() {
		s.Acquire(nil, "b", "other")
		order <- "other"
		s.Release()
	}()
	for waiting(s) == 0 {
		runtime.Gosched()
	}
	if !s.PassOn(nil, "a", "first") {
		t.Error("the slot did not come back")
	}
	order <- "first"
	if one := <-order; one != "other" {
		t.Error("the one who waited was not the next")
	}
	// Who is stopped while it waits has none.
	stopped := make(chan bool)
	done := make(chan struct{})
	taken := make(chan struct{})
	go func() {
		s.Acquire(nil, "b", "other")
		close(taken)
	}()
	for waiting(s) == 0 {
		runtime.Gosched()
	}
	go func() { stopped <- s.PassOn(done, "a", "first") }()
	<-taken
	for waiting(s) == 0 {
		runtime.Gosched()
	}
	close(done)
	if <-stopped {
		t.Error("who was stopped has a slot")
	}
	s.Release()
	if free, wait := s.State(); free != 1 || wait != 0 {
		t.Errorf("%d slots are free in the end, and %d wait", free, wait)
	}
}
