package sim

import (
	"errors"
	"slices"
	"time"

	"github.com/zeebo/xxh3"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
)

// storage is where a log server keeps its loglets: the fast model in this file or the real store in pebble.go.
// Everything given to persist is durable when it returns; what is not durable yet waits in the node's queue.
type storage interface {
	persist(w *logserver.Write)
	load(id cluster.LogletID) logserver.Meta
	read(id cluster.LogletID, from, to cluster.Offset, maxBytes int) ([]logserver.Found, cluster.Offset, error)
	digest(id cluster.LogletID, from, to cluster.Offset) []logserver.Range
	has(id cluster.LogletID, o cluster.Offset) bool
	// rot makes a durable record unreadable; false when there is none to choose.
	rot(pick func(n int) int) bool
	// crash is the end of the process and of what was not durable.
	crash()
	// loseTail is a crash of a disk that also forgets what it had made durable last, records or a seal, in a way that the
	// store can notice; false when there is nothing to forget.
	loseTail(pick func(n int) int) bool
	close()
}

// disk is the model: the records of each loglet with explicit durability.
type disk struct {
	loglets map[cluster.LogletID]*diskLog
	order   []*diskLog // in the order of creation, to choose from
}

type diskLog struct {
	id    cluster.LogletID
	meta  logserver.Meta
	base  cluster.Offset // offset of slots[0]
	slots []slot
}

type slot struct {
	record logserver.Record
	state  uint8 // 0 nothing, 1 readable, 2 rotten
}

func newDisk() *disk { return &disk{loglets: map[cluster.LogletID]*diskLog{}} }

func (d *disk) log(id cluster.LogletID) *diskLog {
	l := d.loglets[id]
	if l == nil {
		l = &diskLog{id: id, base: 1}
		d.loglets[id] = l
		d.order = append(d.order, l)
	}
	return l
}

func (d *disk) persist(w *logserver.Write) {
	l := d.log(w.Loglet)
	switch w.Kind {
	case logserver.WriteRecords:
		if !w.Sequencer.IsZero() {
			l.meta.Sequencer = w.Sequencer
		}
		for i := range w.Records {
			l.put(w.First+cluster.Offset(i), w.Records[i])
		}
		l.meta.LocalTail = max(l.meta.LocalTail, w.Next())
	case logserver.WriteSeal:
		l.meta.Sealed = true
	case logserver.WriteTrim:
		l.meta.TrimPoint = max(l.meta.TrimPoint, w.TrimPoint)
		l.trim()
	}
	l.meta.GlobalTail = max(l.meta.GlobalTail, w.GlobalTail)
}

func (l *diskLog) put(o cluster.Offset, r logserver.Record) {
	if o < l.base {
		return
	}
	if n := int(o-l.base) + 1; n > cap(l.slots) {
		l.slots = slices.Grow(l.slots, n) // doubled; append would copy long slices more often
	}
	for int(o-l.base) >= len(l.slots) {
		l.slots = append(l.slots, slot{})
	}
	l.slots[o-l.base] = slot{record: r, state: 1}
}

func (l *diskLog) trim() {
	if n := int(l.meta.TrimPoint) + 1 - int(l.base); n > 0 {
		n = min(n, len(l.slots))
		clear(l.slots[:n])
		l.slots = l.slots[n:]
		l.base = l.meta.TrimPoint + 1
	}
}

func (d *disk) load(id cluster.LogletID) logserver.Meta {
	if l := d.loglets[id]; l != nil {
		return l.meta
	}
	return logserver.Meta{}
}

func (l *diskLog) at(o cluster.Offset) *slot {
	if l == nil || o < l.base || int(o-l.base) >= len(l.slots) {
		return nil
	}
	return &l.slots[o-l.base]
}

var errRotten = errors.New("record is damaged")

func (d *disk) read(id cluster.LogletID, from, to cluster.Offset, maxBytes int) (found []logserver.Found, next cluster.Offset, err error) {
	l, bytes := d.loglets[id], 0
	for o := from; o < to; o++ {
		s := l.at(o)
		if s == nil || s.state == 0 {
			continue
		}
		if s.state == 2 {
			if len(found) > 0 {
				return found, o, nil
			}
			return nil, o, errRotten
		}
		if found == nil { // most records are of one size
			found = make([]logserver.Found, 0, min(int(to-o), maxBytes/s.record.Size()+1))
		}
		found = append(found, logserver.Found{Offset: o, Record: s.record})
		if bytes += s.record.Size(); bytes >= maxBytes {
			return found, o + 1, nil
		}
	}
	return found, to, nil
}

func (d *disk) digest(id cluster.LogletID, from, to cluster.Offset) (rs []logserver.Range) {
	l := d.loglets[id]
	for o := from; o < to; o++ {
		if s := l.at(o); s != nil && s.state != 0 {
			if n := len(rs); n > 0 && rs[n-1].To == o {
				rs[n-1].To++
			} else {
				rs = append(rs, logserver.Range{From: o, To: o + 1})
			}
		}
	}
	return rs
}

func (d *disk) has(id cluster.LogletID, o cluster.Offset) bool {
	l := d.loglets[id]
	s := l.at(o)
	return s != nil && s.state != 0
}

func (d *disk) rot(pick func(int) int) bool {
	if len(d.order) == 0 {
		return false
	}
	l := d.order[len(d.order)-1-pick(min(3, len(d.order)))]
	if len(l.slots) == 0 {
		return false
	}
	s := &l.slots[pick(len(l.slots))]
	if s.state != 1 {
		return false
	}
	s.state = 2
	s.record = logserver.Record{}
	return true
}

func (d *disk) loseTail(pick func(int) int) bool {
	if len(d.order) == 0 {
		return false
	}
	l := d.order[len(d.order)-1-pick(min(3, len(d.order)))]
	if l.meta.Sealed {
		l.meta.Sealed, l.meta.DataLoss = false, true
		if len(l.slots) == 0 || pick(2) == 0 {
			return true
		}
	}
	if len(l.slots) == 0 {
		return false
	}
	n := 1 + pick(min(5, len(l.slots)))
	clear(l.slots[len(l.slots)-n:])
	l.slots = l.slots[:len(l.slots)-n]
	tail := l.base + cluster.Offset(len(l.slots))
	for tail > l.base && l.slots[tail-l.base-1].state == 0 {
		tail--
	}
	l.meta.LocalTail, l.meta.DataLoss = tail, true
	return true
}

func (d *disk) crash() {}
func (d *disk) close() {}

// contentOf names what a record holds, without a 0.
func contentOf(r *logserver.Record) uint64 { return xxh3.Hash(r.Payload) | 1 }

// submit queues a write; one sync at a time takes everything that is queued, as the real log store does.
func (n *node) submit(w *logserver.Write) {
	n.queue = append(n.queue, w)
	if n.syncing == 0 {
		n.sync()
	}
}

func (n *node) sync() {
	n.syncing = len(n.queue)
	c := &n.w.cfg
	d := n.w.between(disks, c.syncLow, c.syncHigh)
	if !n.w.quiet && c.has(SlowDisk) && (n.slowDisk || n.w.chance(disks, 0.01)) {
		d += n.w.between(disks, 100*time.Millisecond, 3*time.Second)
	}
	n.schedule(d, (*diskSync)(n))
}

// diskSync is the end of the sync that is under way.
type diskSync node

func (d *diskSync) run() { (*node)(d).synced() }

// synced makes the oldest writes durable and tells their loglets.
func (n *node) synced() {
	count := n.syncing
	n.syncing = 0
	if n.diskBroken {
		n.queue = nil
		for _, id := range n.logletOrder {
			n.loglets[id].Failed(&n.out)
			n.carryOut()
		}
		return
	}
	for _, w := range n.queue[:count] {
		n.w.oracle.stored(n, w)
		n.store.persist(w)
	}
	n.durable = append(n.durable[:0], n.queue[:count]...)
	n.queue = slices.Delete(n.queue, 0, count)
	for _, w := range n.durable {
		l := n.loglets[w.Loglet]
		l.Durable(&n.out)
		n.w.oracle.durable(n, l, w)
		n.carryOut()
	}
	clear(n.durable)
	if len(n.queue) > 0 && n.syncing == 0 {
		n.sync()
	}
}

// losePower drops what was not synced, but perhaps for a part of it.
func (n *node) losePower() {
	if n.w.cfg.has(Torn) && !n.diskBroken && len(n.queue) > 0 {
		for _, w := range n.queue[:n.w.rng[disks].IntN(len(n.queue)+1)] {
			n.w.oracle.stored(n, w)
			n.store.persist(w)
		}
	}
	n.queue = nil
	n.syncing = 0
}
