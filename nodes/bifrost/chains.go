package bifrost

import (
	"context"
	"errors"
	"sync"

	"perdure/control/chain"
	"perdure/control/cluster"
)

// Chains is what bifrost needs of the cluster's metadata: one versioned chain per log.
type Chains interface {
	// Get returns the newest chain and its version; the zero chain and version 0 when the log does not exist.
	Get(ctx context.Context, log cluster.LogID) (chain.Chain, uint64, error)
	// CompareAndSwap stores c if the stored version is still version (0: the log does not exist), and
	// returns the new version. Its error wraps ErrConflict when it is not, ErrCASUnknown when the
	// change may or may not have happened; any other error means that it did not.
	CompareAndSwap(ctx context.Context, log cluster.LogID, c chain.Chain, version uint64) (uint64, error)
	// Watch calls changed with the current chain, if there is one, and with newer ones as they become
	// known; versions in between may be missed. changed does not block. It is not called any more
	// after cancel has returned.
	Watch(log cluster.LogID, changed func(c chain.Chain, version uint64)) (cancel func())
}

// Errors of Chains.CompareAndSwap.
var (
	ErrConflict   = errors.New("chain was changed by somebody else")
	ErrCASUnknown = errors.New("outcome of the chain change is unknown")
)

// MemoryChains keeps chains in memory: the twin of the cluster's metadata for tests and simulations.
// Safe for concurrent use.
type MemoryChains struct {
	mu       sync.Mutex
	logs     map[cluster.LogID]versionedChain
	watchers map[cluster.LogID]map[*chainWatcher]struct{}
}

type versionedChain struct {
	chain   chain.Chain
	version uint64
}

type chainWatcher struct {
	mu      sync.Mutex
	changed func(chain.Chain, uint64)
}

func (w *chainWatcher) tell(v versionedChain) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed != nil {
		w.changed(v.chain, v.version)
	}
}

// NewMemoryChains returns a store without logs.
func NewMemoryChains() *MemoryChains {
	return &MemoryChains{logs: map[cluster.LogID]versionedChain{}, watchers: map[cluster.LogID]map[*chainWatcher]struct{}{}}
}

// Get implements Chains.
func (m *MemoryChains) Get(ctx context.Context, log cluster.LogID) (chain.Chain, uint64, error) {
	if err := ctx.Err(); err != nil {
		return chain.Chain{}, 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.logs[log]
	return v.chain, v.version, nil
}

// CompareAndSwap implements Chains.
func (m *MemoryChains) CompareAndSwap(ctx context.Context, log cluster.LogID, c chain.Chain, version uint64) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	if m.logs[log].version != version {
		m.mu.Unlock()
		return 0, ErrConflict
	}
	v := versionedChain{c, version + 1}
	m.logs[log] = v
	watchers := make([]*chainWatcher, 0, len(m.watchers[log]))
	for w := range m.watchers[log] {
		watchers = append(watchers, w)
	}
	m.mu.Unlock()
	for _, w := range watchers {
		w.tell(v)
	}
	return v.version, nil
}

// Watch implements Chains.
func (m *MemoryChains) Watch(log cluster.LogID, changed func(chain.Chain, uint64)) (cancel func()) {
	w := &chainWatcher{changed: changed}
	m.mu.Lock()
	if m.watchers[log] == nil {
		m.watchers[log] = map[*chainWatcher]struct{}{}
	}
	m.watchers[log][w] = struct{}{}
	v := m.logs[log]
	m.mu.Unlock()
	if v.version != 0 {
		w.tell(v)
	}
	return func() {
		m.mu.Lock()
		delete(m.watchers[log], w)
		m.mu.Unlock()
		w.mu.Lock()
		w.changed = nil
		w.mu.Unlock()
	}
}

var _ Chains = (*MemoryChains)(nil)
