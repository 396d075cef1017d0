package sim

import (
	"time"

	"perdure/control/cluster"
	"perdure/control/datadir"
)

// strike does something bad now, and again later.
func (w *world) strike() {
	w.after(w.exponential(nemesis, w.cfg.nemesisMean), func() {
		if w.quiet {
			return
		}
		w.fault()
		w.strike()
	})
}

// strikes are the kinds of faults that come as events; the others are properties of network and disks.
var strikes = []Fault{Isolation, OneWay, Partial, MetadataCut, MetadataDown, Crash, PowerOne, PowerAll, PowerButOne,
	Pause, SlowDisk, DiskError, BitRot, LostTail, DiskWiped, DiskSwapped, ClockSkew, Move, Trim, Diverging}

func (w *world) fault() {
	var kinds []Fault
	for _, f := range strikes {
		if w.cfg.has(f) {
			kinds = append(kinds, f)
		}
	}
	if len(kinds) == 0 {
		return
	}
	rng := w.rng[nemesis]
	kind := kinds[rng.IntN(len(kinds))]
	n := w.nodes[rng.IntN(len(w.nodes))]
	w.faultsDone++
	w.trace("fault "+kind.String(), uint64(n.id), 0, 0)
	long := w.exponential(nemesis, 3*time.Second)
	switch kind {
	case Isolation:
		w.cutNode(n, true, true, long)
	case OneWay:
		w.cutNode(n, rng.IntN(2) == 0, false, long)
	case Partial:
		for _, a := range w.nodes {
			for _, b := range w.nodes {
				if a != b && rng.IntN(3) == 0 {
					w.cut(a.id, b.id, long)
				}
			}
		}
	case MetadataCut:
		n.cutFromMetadata = true
		w.after(long, func() { n.cutFromMetadata = false })
	case MetadataDown:
		w.meta.down = true
		w.after(long/2, func() { w.meta.down = false })
	case Crash, PowerOne:
		w.restart(n, long)
	case PowerAll:
		for _, n := range w.nodes {
			w.restart(n, w.exponential(nemesis, time.Second))
		}
	case PowerButOne:
		for _, other := range w.nodes {
			if other != n {
				w.restart(other, w.exponential(nemesis, time.Second))
			}
		}
	case Pause:
		if n.up && !n.paused {
			n.pause()
			life := n.life
			w.after(2*long, func() {
				if n.life == life {
					n.resume()
				}
			})
		}
	case SlowDisk:
		n.slowDisk = true
		w.after(2*long, func() { n.slowDisk = false })
	case DiskError:
		if n.up {
			n.diskBroken = true
			life := n.life
			w.after(long, func() {
				if n.life == life {
					w.restart(n, time.Second) // a supervisor restarts the process
				}
			})
		}
	case BitRot:
		w.damage(func(v *node) bool { return v.store.rot(rng.IntN) })
	case LostTail:
		w.damage(func(v *node) bool {
			if !v.up {
				return false
			}
			v.end()
			lost := v.store.loseTail(rng.IntN)
			w.restart(v, long)
			return lost
		})
	case DiskWiped:
		w.wipe(long)
	case DiskSwapped:
		w.swapDisks(n, long)
	case ClockSkew:
		w.setClock(n)
	case Move:
		w.move()
	case Trim:
		w.trimSomething()
	case Diverging:
		if w.core != nil {
			w.core.services.change(long)
		}
	}
}

// cutNode cuts a node's links for a while.
func (w *world) cutNode(n *node, in, out bool, d time.Duration) {
	for _, other := range w.nodes {
		if other == n {
			continue
		}
		if in {
			w.cut(other.id, n.id, d)
		}
		if out || !in {
			w.cut(n.id, other.id, d)
		}
	}
}

func (w *world) cut(from, to cluster.NodeID, d time.Duration) {
	w.cuts[from-1][to-1]++
	w.after(d, func() { w.cuts[from-1][to-1]-- })
}

// restart ends a node's process and begins its next life after d.
func (w *world) restart(n *node, d time.Duration) {
	n.stop()
	down := n.life
	w.after(d, func() {
		if !n.up && n.life == down {
			n.start() // refused while the disk is another's: swapBack starts it then
		}
	})
}

// damage hurts the disk of the only node that may lose what it had.
func (w *world) damage(do func(*node) bool) {
	if w.cfg.victim == 0 || len(w.swapped) > 0 {
		return // the damage is to the victim's own disk
	}
	if v := w.nodes[w.cfg.victim-1]; !v.lost && do(v) {
		w.victimLost = true
		w.trace("damaged", uint64(v.id), 0, 0)
	}
}

// wipe empties the victim's disk. The node notices by its marker: its log store is declared lost and it runs
// no log server any more.
func (w *world) wipe(d time.Duration) {
	w.damage(func(v *node) bool {
		if len(w.swapped) > 0 {
			return false
		}
		v.stop()
		v.store.close()
		v.store, v.disk = w.newStorage(), datadir.Store{}
		w.restart(v, d)
		return true
	})
}

// setClock sets a node's clock: to the time of day now and then, and sometimes far from it.
func (w *world) setClock(n *node) {
	switch most := 10 * time.Second; w.rng[nemesis].IntN(5) {
	case 0:
		n.skew = 0
	case 1:
		most = time.Minute
		fallthrough
	default:
		n.skew = w.between(nemesis, -most, most)
	}
}

// swapDisks gives two machines each other's disks. Both refuse to run until they have their own back.
func (w *world) swapDisks(n *node, d time.Duration) {
	other := w.nodes[w.rng[nemesis].IntN(len(w.nodes))]
	if other == n || n.disk.Node != n.id || other.disk.Node != other.id || !n.disk.Exists || !other.disk.Exists {
		return
	}
	n.stop()
	other.stop()
	swap := func() {
		n.store, other.store = other.store, n.store
		n.disk, other.disk = other.disk, n.disk
	}
	swap()
	n.start()
	other.start()
	if n.up || other.up {
		violated("identity", "a node runs with the disk of another one")
	}
	w.swapped = append(w.swapped, swap)
	w.after(d, func() { w.swapBack(n, other) })
}

// swapBack gives all machines their own disks, and starts those that refused.
func (w *world) swapBack(nodes ...*node) {
	for i := len(w.swapped) - 1; i >= 0; i-- {
		w.swapped[i]()
	}
	w.swapped = nil
	for _, n := range nodes {
		if !n.up {
			n.start()
		}
	}
}

// move makes another node the writer of a log, or reconfigures it where it is.
func (w *world) move() {
	log := w.rng[nemesis].IntN(w.cfg.logs)
	n := w.nodes[w.rng[nemesis].IntN(len(w.nodes))]
	if w.core != nil {
		w.core.moveLeader(cluster.PartitionID(log), n)
		return
	}
	w.owners[log] = n.id
	if n.up && w.rng[nemesis].IntN(2) == 0 {
		n.logs[log].writable(true, func(error) {})
	}
}

// trimSomething trims a log up to somewhere below what was acknowledged.
func (w *world) trimSomething() {
	if w.core != nil {
		return // the leaders trim
	}
	log := w.rng[nemesis].IntN(w.cfg.logs)
	n := w.nodes[w.rng[nemesis].IntN(len(w.nodes))]
	if tail := w.oracle.logs[log].tail; n.up && tail > 300 {
		w.trims++
		n.logs[log].trim(tail - 250 + cluster.LSN(w.rng[nemesis].IntN(250)))
	}
}

// heal ends all faults.
func (w *world) heal() {
	w.quiet = true
	w.trace("heal", 0, 0, 0)
	if w.core != nil {
		w.core.operators.mend()
	}
	for i := range w.cuts {
		for j := range w.cuts[i] {
			w.cuts[i][j] = -1 << 30 // whatever ends later does not matter
		}
	}
	w.meta.down = false
	w.swapBack()
	for _, n := range w.nodes {
		n.cutFromMetadata, n.slowDisk, n.skew = false, false, 0
		switch {
		case !n.up:
			n.start()
		case n.diskBroken:
			w.restart(n, 0)
		default:
			n.resume()
		}
	}
}
