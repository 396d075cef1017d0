package bifrost

import (
	"sort"
	"sync"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
)

// recordCache keeps the newest committed records of the loglets that this node sequences, so that
// the local reader needs neither disk nor decoding. It is bounded in bytes; the oldest batches go
// first. Safe for concurrent use.
type recordCache struct {
	mu      sync.Mutex
	limit   int
	bytes   int
	live    int
	loglets map[cluster.LogletID][]*cachedBatch // by growing offset
	age     []*cachedBatch                      // by time of insertion; dropped ones stay until compacted
}

type cachedBatch struct {
	loglet  cluster.LogletID
	first   cluster.Offset
	records []logserver.Record // nil when dropped
	bytes   int
}

func (b *cachedBatch) next() cluster.Offset { return b.first + cluster.Offset(len(b.records)) }

func newRecordCache(limit int) *recordCache {
	return &recordCache{limit: limit, loglets: map[cluster.LogletID][]*cachedBatch{}}
}

// put adds a committed batch; batches of a loglet come in order.
func (c *recordCache) put(id cluster.LogletID, first cluster.Offset, records []logserver.Record) {
	b := &cachedBatch{loglet: id, first: first, records: records}
	for i := range records {
		b.bytes += records[i].Size()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loglets[id] = append(c.loglets[id], b)
	c.age = append(c.age, b)
	c.bytes += b.bytes
	c.live++
	for c.bytes > c.limit && len(c.age) > 0 {
		c.dropLocked(c.age[0])
		c.age[0] = nil
		c.age = c.age[1:]
	}
	c.compactLocked()
}

// get returns the records from offset to the end of their batch, nil when they are not cached.
func (c *recordCache) get(id cluster.LogletID, offset cluster.Offset) []logserver.Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.findLocked(id, offset); b != nil {
		return b.records[offset-b.first:]
	}
	return nil
}

func (c *recordCache) findLocked(id cluster.LogletID, offset cluster.Offset) *cachedBatch {
	batches := c.loglets[id]
	i := sort.Search(len(batches), func(i int) bool { return batches[i].next() > offset })
	if i == len(batches) || batches[i].first > offset {
		return nil
	}
	return batches[i]
}

// release drops everything of the loglet below next: its only reader has it.
func (c *recordCache) release(id cluster.LogletID, next cluster.Offset) {
	c.mu.Lock()
	defer c.mu.Unlock()
	batches := c.loglets[id]
	for len(batches) > 0 && batches[0].next() <= next {
		c.dropLocked(batches[0])
		batches = c.loglets[id]
	}
}

// dropLocked removes a batch, which is the oldest of its loglet, unless it is gone already.
func (c *recordCache) dropLocked(b *cachedBatch) {
	if b.records == nil {
		return
	}
	batches := c.loglets[b.loglet]
	batches[0] = nil
	if len(batches) == 1 {
		delete(c.loglets, b.loglet)
	} else {
		c.loglets[b.loglet] = batches[1:]
	}
	b.records = nil
	c.bytes -= b.bytes
	c.live--
}

// compactLocked forgets dropped batches once they are the majority.
func (c *recordCache) compactLocked() {
	for len(c.age) > 0 && c.age[0].records == nil {
		c.age[0] = nil
		c.age = c.age[1:]
	}
	if len(c.age) < 2*c.live+64 {
		return
	}
	kept := make([]*cachedBatch, 0, c.live)
	for _, b := range c.age {
		if b.records != nil {
			kept = append(kept, b)
		}
	}
	c.age = kept
}
