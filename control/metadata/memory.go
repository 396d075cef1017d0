package metadata

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Call is a call on a Memory that a fault may be injected into.
type Call struct {
	Method string // "Get", "Put", "Delete", "Txn" or "List"
	Key    string // of the call; of the first put of a transaction; the prefix of a list
}

// Effect is what an injected fault does to a call.
type Effect uint8

// The effects.
const (
	Pass         Effect = iota // nothing
	Refuse                     // ErrUnavailable before anything is done
	LoseRequest                // ErrUnknownOutcome, and the write is never applied; reads: ErrUnavailable
	LoseResponse               // ErrUnknownOutcome, and the write was applied; reads: ErrUnavailable
	DeliverLate                // ErrUnknownOutcome, and the write is applied by DeliverDelayed; reads: ErrUnavailable
)

// Fault says what happens to one call.
type Fault struct {
	Delay  time.Duration // before the call has its effect; the context can end it
	Effect Effect
}

// Memory is a Store of this process only, with faults on demand: the twin of the replicated store for tests.
type Memory struct {
	cache *Cache
	mu    struct {
		sync.Mutex
		table *Table
		fault func(Call) Fault
		late  []func()
	}
}

var _ Store = (*Memory)(nil)

// NewMemory is an empty store without faults.
func NewMemory() *Memory {
	m := &Memory{cache: NewCache()}
	m.mu.table = NewTable()
	return m
}

// SetFault makes f decide on the fault of each call from now on; nil ends faults. f is called without locks held and
// possibly concurrently.
func (m *Memory) SetFault(f func(Call) Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.fault = f
}

// DeliverDelayed applies, in their order, the writes that were delayed by DeliverLate.
func (m *Memory) DeliverDelayed() {
	m.mu.Lock()
	late := m.mu.late
	m.mu.late = nil
	m.mu.Unlock()
	for _, apply := range late {
		apply()
	}
}

// Get implements Store.
func (m *Memory) Get(ctx context.Context, key string) (Value, error) {
	if err := CheckKey(key); err != nil {
		return Value{}, err
	}
	if err := m.read(ctx, Call{"Get", key}); err != nil {
		return Value{}, fmt.Errorf("get %q: %w", key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.mu.table.Get(key)
	if !ok {
		return v, fmt.Errorf("get %q: %w", key, ErrNotFound)
	}
	return v, nil
}

// List implements Store.
func (m *Memory) List(ctx context.Context, prefix string) ([]KeyValue, error) {
	if err := m.read(ctx, Call{"List", prefix}); err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.table.List(prefix), nil
}

// Put implements Store.
func (m *Memory) Put(ctx context.Context, key string, data []byte, p Precondition) (uint64, error) {
	r, err := m.write(ctx, "Put", []Compare{{key, p}}, []Put{{Key: key, Data: data}})
	if err != nil {
		return 0, fmt.Errorf("put %q: %w", key, err)
	}
	return r.Versions[0], nil
}

// Delete implements Store.
func (m *Memory) Delete(ctx context.Context, key string, p Precondition) (uint64, error) {
	r, err := m.write(ctx, "Delete", []Compare{{key, p}}, []Put{{Key: key, Delete: true}})
	if err != nil {
		return 0, fmt.Errorf("delete %q: %w", key, err)
	}
	return r.Versions[0], nil
}

// Txn implements Store.
func (m *Memory) Txn(ctx context.Context, compares []Compare, puts []Put) (Result, error) {
	r, err := m.write(ctx, "Txn", compares, puts)
	if err != nil {
		return Result{}, fmt.Errorf("transaction: %w", err)
	}
	return r, nil
}

// Watch implements Store.
func (m *Memory) Watch(prefix string) *Watch { return m.cache.Watch(prefix) }

// effectOf waits for the injected delay and says what happens to the call.
func (m *Memory) effectOf(ctx context.Context, c Call) (Effect, error) {
	m.mu.Lock()
	fault := m.mu.fault
	m.mu.Unlock()
	if fault == nil {
		return Pass, ctx.Err()
	}
	f := fault(c)
	if f.Delay > 0 {
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return f.Effect, ctx.Err()
}

func (m *Memory) read(ctx context.Context, c Call) error {
	effect, err := m.effectOf(ctx, c)
	if err != nil {
		return err
	}
	if effect != Pass {
		return ErrUnavailable
	}
	return nil
}

func (m *Memory) write(ctx context.Context, method string, compares []Compare, puts []Put) (Result, error) {
	if err := CheckOperation(compares, puts); err != nil {
		return Result{}, err
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	call := Call{Method: method}
	if len(puts) > 0 {
		call.Key = puts[0].Key
	}
	puts = copyPuts(puts)
	effect, err := m.effectOf(ctx, call)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
	switch effect {
	case Refuse:
		return Result{}, ErrUnavailable
	case LoseRequest:
		return Result{}, ErrUnknownOutcome
	case LoseResponse:
		_, _ = m.apply(compares, puts)
		return Result{}, ErrUnknownOutcome
	case DeliverLate:
		m.mu.Lock()
		defer m.mu.Unlock()
		m.mu.late = append(m.mu.late, func() { _, _ = m.apply(compares, puts) })
		return Result{}, ErrUnknownOutcome
	}
	return m.apply(compares, puts)
}

func (m *Memory) apply(compares []Compare, puts []Put) (Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	result, changes, conflict := m.mu.table.Apply(compares, puts)
	if conflict != nil {
		return Result{}, conflict
	}
	m.cache.Install(changes)
	return result, nil
}
