package metadata

import (
	"slices"
	"strings"
	"sync"
)

// Cache holds the newest values that this process knows of and wakes those who watch them. Stores install what
// they learn; a key never goes back to an older version.
type Cache struct {
	mu      sync.Mutex
	entries map[string]Change
	watches map[*Watch]struct{}
}

// NewCache is an empty cache.
func NewCache() *Cache {
	return &Cache{entries: map[string]Change{}, watches: map[*Watch]struct{}{}}
}

// Install takes over those changes that are newer than what is cached.
func (c *Cache) Install(changes []Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, change := range changes {
		if change.Version <= c.entries[change.Key].Version {
			continue
		}
		c.entries[change.Key] = change
		for w := range c.watches {
			if strings.HasPrefix(change.Key, w.prefix) {
				w.wake()
			}
		}
	}
}

// Watch follows the keys that begin with prefix.
func (c *Cache) Watch(prefix string) *Watch {
	w := &Watch{cache: c, prefix: prefix, changed: make(chan struct{}, 1)}
	w.wake()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watches[w] = struct{}{}
	return w
}

// Watch tells that keys under a prefix have changed. It reports that there is something new, not each version: who
// looks sees the newest values, and may miss ones in between.
type Watch struct {
	cache   *Cache
	prefix  string
	changed chan struct{}
}

func (w *Watch) wake() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// C receives when something has changed since the last receive; the first receive succeeds at once, so that a loop
// of receiving and looking starts with what there is. It is never closed.
func (w *Watch) C() <-chan struct{} { return w.changed }

// Snapshot is the cached keys under the prefix, ascending, at one moment. It may lag behind the store.
func (w *Watch) Snapshot() []KeyValue {
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	var list []KeyValue
	for key, e := range w.cache.entries {
		if !e.Deleted && strings.HasPrefix(key, w.prefix) {
			list = append(list, KeyValue{key, Value{e.Version, e.Data}})
		}
	}
	slices.SortFunc(list, func(a, b KeyValue) int { return strings.Compare(a.Key, b.Key) })
	return list
}

// Get is the cached value of one key, which must begin with the prefix.
func (w *Watch) Get(key string) (Value, bool) {
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	e, ok := w.cache.entries[key]
	return Value{e.Version, e.Data}, ok && !e.Deleted && strings.HasPrefix(key, w.prefix)
}

// Close ends the watch; C receives no more after what is already in it. It may be called more than once.
func (w *Watch) Close() {
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	delete(w.cache.watches, w)
}
