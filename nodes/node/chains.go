package node

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"perdure/control/chain"
	"perdure/control/cluster"
	"perdure/control/metadata"
	"perdure/nodes/bifrost"
)

// chains keeps the logs' chains in the metadata store, one key each: logs that change at the same time do
// not get in each other's way.
type chains struct{ store metadata.Store }

var _ bifrost.Chains = chains{}

// Get implements bifrost.Chains.
func (c chains) Get(ctx context.Context, log cluster.LogID) (chain.Chain, uint64, error) {
	v, err := c.store.Get(ctx, metadata.LogKey(log))
	if errors.Is(err, metadata.ErrNotFound) {
		return chain.Chain{}, 0, nil
	}
	if err != nil {
		return chain.Chain{}, 0, fmt.Errorf("read the chain of log %d: %w", log, err)
	}
	ch, err := chain.Decode(v.Data)
	if err != nil {
		return chain.Chain{}, 0, fmt.Errorf("read the chain of log %d: %w", log, err)
	}
	return ch, v.Version, nil
}

// CompareAndSwap implements bifrost.Chains.
func (c chains) CompareAndSwap(ctx context.Context, log cluster.LogID, ch chain.Chain, version uint64) (uint64, error) {
	data, err := ch.Encode()
	if err != nil {
		return 0, fmt.Errorf("encode the chain of log %d: %w", log, err)
	}
	v, err := c.store.Put(ctx, metadata.LogKey(log), data, metadata.AtVersion(version)) // version 0: absent
	var conflict *metadata.ConflictError
	switch {
	case err == nil:
		return v, nil
	case errors.As(err, &conflict):
		return 0, fmt.Errorf("%w: %w", bifrost.ErrConflict, err)
	case errors.Is(err, metadata.ErrUnknownOutcome):
		return 0, fmt.Errorf("%w: %w", bifrost.ErrCASUnknown, err)
	}
	return 0, fmt.Errorf("change the chain of log %d: %w", log, err)
}

// Watch implements bifrost.Chains.
func (c chains) Watch(log cluster.LogID, changed func(ch chain.Chain, version uint64)) (cancel func()) {
	key := metadata.LogKey(log)
	w := c.store.Watch(key)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-w.C():
			case <-stop:
				return
			}
			v, ok := w.Get(key)
			if !ok {
				continue
			}
			// What does not decode is reported by the next Get, which everybody does before acting on a chain.
			if ch, err := chain.Decode(v.Data); err == nil {
				changed(ch, v.Version)
			}
		}
	})
	return sync.OnceFunc(func() {
		close(stop)
		wg.Wait()
		w.Close()
	})
}
