package services

import (
	"context"
	"sync"
)

// Memory is what handlers leave behind outside of the server: executions counted by token, lines logged by token, and
// gates that hold handlers until a test opens them. Tokens are chosen by the test and must be unique to it.
type Memory struct {
	mu     sync.Mutex
	counts map[string]int
	lines  map[string][]string
	gates  map[string]chan struct{}
	free   bool
	change chan struct{} // closed and replaced at every change
}

// NewMemory returns an empty memory.
func NewMemory() *Memory {
	return &Memory{counts: map[string]int{}, lines: map[string][]string{}, gates: map[string]chan struct{}{}, change: make(chan struct{})}
}

func (m *Memory) changedLocked() {
	close(m.change)
	m.change = make(chan struct{})
}

// Count adds one to token's count and returns the new count.
func (m *Memory) Count(token string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts[token]++
	m.changedLocked()
	return m.counts[token]
}

// Counted is token's count.
func (m *Memory) Counted(token string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts[token]
}

// Note appends a line under token.
func (m *Memory) Note(token, line string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lines[token] = append(m.lines[token], line)
	m.changedLocked()
}

// Lines are the lines under token, in order.
func (m *Memory) Lines(token string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string{}, m.lines[token]...)
}

// Await blocks until ok, called with no lock held, reports true; it is asked again after every change. It reports
// false when ctx ended first.
func (m *Memory) Await(ctx context.Context, ok func() bool) bool {
	for {
		m.mu.Lock()
		ch := m.change
		m.mu.Unlock()
		if ok() {
			return true
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return false
		}
	}
}

func (m *Memory) gateLocked(token string) chan struct{} {
	g := m.gates[token]
	if g == nil {
		g = make(chan struct{})
		m.gates[token] = g
		if m.free {
			close(g)
		}
	}
	return g
}

func isClosed(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// Open opens token's gate for good.
func (m *Memory) Open(token string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if g := m.gateLocked(token); !isClosed(g) {
		close(g)
	}
	m.changedLocked()
}

// IsOpen reports whether token's gate is open.
func (m *Memory) IsOpen(token string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return isClosed(m.gateLocked(token))
}

// Pass blocks until token's gate is open. It returns ctx's error when the attempt is over first.
func (m *Memory) Pass(ctx context.Context, token string) error {
	m.mu.Lock()
	g := m.gateLocked(token)
	m.mu.Unlock()
	select {
	case <-g:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Release opens all gates, those not yet asked for included. For shutdown.
func (m *Memory) Release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free = true
	for _, g := range m.gates {
		if !isClosed(g) {
			close(g)
		}
	}
	m.changedLocked()
}
