package sim

import (
	"fmt"
	"strings"
	"time"

	"perdure/control/cluster"
)

// Fault is a set of kinds of faults.
type Fault uint32

// The kinds of faults. A seed draws which of them its run has; a failing run is shrunk by switching them off.
const (
	Delay        Fault = 1 << iota // a tail of long message delays
	Loss                           // messages and answers vanish
	Duplication                    // requests arrive twice, the second time perhaps much later
	Reordering                     // messages of one link overtake each other
	Isolation                      // a node is cut off
	OneWay                         // a link or a node is cut in one direction
	Partial                        // some links are cut, so that not everybody sees everybody
	MetadataCut                    // a node does not reach the metadata
	MetadataDown                   // nobody does, and changes end with unknown outcome
	Crash                          // a process dies and comes back as the node's next life
	PowerOne                       // one machine loses power
	PowerAll                       // all do
	PowerButOne                    // all but one do
	Pause                          // a process stands still
	Torn                           // of a batch that was not synced a part survives a loss of power
	SlowDisk                       // syncs take up to seconds
	DiskError                      // writes fail until the process restarts
	BitRot                         // durable records become unreadable on one node
	LostTail                       // one node's disk forgets the end of what it had synced
	DiskWiped                      // one node's disk comes back empty
	DiskSwapped                    // two machines get each other's disks for a while
	ClockSkew                      // wall clocks differ, and jump
	Move                           // leaders move, logs are reconfigured
	Trim                           // logs are trimmed: by leaders where there are some
	Faulty                         // service endpoints fail attempts, and do not repeat themselves
	Diverging                      // handlers do something else when they are replayed: their code was changed, or is not deterministic
	Operators                      // invocations are canceled, killed, paused, resumed, purged
	faultEnd
	AllFaults = faultEnd - 1
)

var faultNames = []string{"delay", "loss", "duplication", "reordering", "isolation", "one-way", "partial",
	"metadata-cut", "metadata-down", "crash", "power-one", "power-all", "power-but-one", "pause", "torn",
	"slow-disk", "disk-error", "bit-rot", "lost-tail", "disk-wiped", "disk-swapped", "clock-skew", "move", "trim", "faulty-services", "diverging-services", "operators"}

func (f Fault) with(o Fault) bool { return f&o != 0 }

func (f Fault) String() string {
	var names []string
	for i, n := range faultNames {
		if f&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ",")
}

// Options say what a run is. Everything else is drawn from the seed.
type Options struct {
	Seed uint64
	// Core adds processors, services and clients on top of the logs; without it clients append to the logs.
	Core bool
	// Pebble keeps the records in the real log store on a file system that loses what was not synced,
	// instead of the fast model of a disk.
	Pebble bool
	// Length is the simulated time with faults; healing and the end checks come after it.
	Length time.Duration
	// Without switches kinds of faults off that the seed has drawn.
	Without Fault
	// broken breaks a promise, for tests of the simulator.
	broken func(*world)
}

// config is what a seed has drawn.
type config struct {
	nodes       int
	replication int
	logs        int
	faults      Fault
	nemesisMean time.Duration // between faults
	appendMean  time.Duration // between the writes of one client
	syncLow     time.Duration
	syncHigh    time.Duration
	drop, dup   float64
	window      int
	single      bool           // each partition has one replica, on a node of its own, as in the product; else one on each node
	trimDelay   time.Duration  // from a durable point to the trim
	zones       int            // over how many zones the nodes are spread; copies are in two of them then. 0: no zones
	victim      cluster.NodeID // the only node whose disk may lose what it had; 0: none
}

func draw(e *engine, o Options) config {
	rng := e.rng[configuration]
	c := config{nodes: 1 + rng.IntN(7), logs: 1 + rng.IntN(2)}
	if o.Core {
		c.nodes, c.logs = 1+rng.IntN(5), 1+rng.IntN(3)
	}
	c.replication = 1 + rng.IntN(c.nodes)
	if rng.IntN(2) == 0 {
		c.replication = c.nodes/2 + 1
	}
	for f := Fault(1); f < faultEnd; f <<= 1 {
		if rng.IntN(2) == 0 {
			c.faults |= f
		}
	}
	if rng.IntN(20) == 0 {
		c.faults = 0
	}
	c.nemesisMean = [...]time.Duration{2 * time.Second, 5 * time.Second, 20 * time.Second}[rng.IntN(3)]
	c.appendMean = [...]time.Duration{time.Second, 4 * time.Second, 12 * time.Second}[rng.IntN(3)]
	if o.Core {
		c.nemesisMean *= 2
		c.appendMean = [...]time.Duration{1500 * time.Millisecond, 5 * time.Second, 15 * time.Second}[rng.IntN(3)]
	}
	c.syncLow, c.syncHigh = 100*time.Microsecond, [...]time.Duration{500 * time.Microsecond, 5 * time.Millisecond, 20 * time.Millisecond}[rng.IntN(3)]
	c.drop = [...]float64{0.002, 0.02, 0.1}[rng.IntN(3)]
	c.dup = [...]float64{0.01, 0.1}[rng.IntN(2)]
	c.window = 1 + rng.IntN(8)
	if c.nodes >= 2 && rng.IntN(4) == 0 {
		c.zones = 2 + rng.IntN(min(2, c.nodes-1))
	}
	if c.replication >= 2 && c.replication < c.nodes && c.zones == 0 {
		// Enough copies and enough servers are left when one disk is gone for good.
		c.victim = cluster.NodeID(1 + rng.IntN(c.nodes))
	}
	c.faults &^= o.Without
	c.single = c.nodes == 1 || rng.IntN(3) == 0
	c.trimDelay = 1000 * time.Hour
	if c.single && c.has(Trim) {
		c.trimDelay = [...]time.Duration{time.Second, 10 * time.Second, 40 * time.Second}[rng.IntN(3)]
	}
	return c
}

func (c *config) has(f Fault) bool { return c.faults&f != 0 }

// copies is how the records of a log are replicated.
func (c *config) copies() cluster.Replication {
	if c.zones == 0 {
		return cluster.ReplicateTo(c.replication)
	}
	r, err := cluster.ParseReplication(fmt.Sprintf("{zone: 2, node: %d}", max(c.replication, 2)))
	if err != nil {
		panic(err) // the text is of our own making
	}
	return r
}

// location is where a node is.
func (c *config) location(id cluster.NodeID) cluster.Location {
	if c.zones == 0 {
		return cluster.Location{}
	}
	return cluster.Location{Region: "r", Zone: string(rune('a' + int(id)%c.zones))}
}

func (c *config) String() string {
	replicas := "a replica on each"
	if c.single {
		replicas = "one replica"
	}
	return fmt.Sprintf("%d nodes in %d zones, %d copies, %d logs, %s, sync %v–%v, a write each %v per client, a fault each %v, faults: %v",
		c.nodes, c.zones, c.replication, c.logs, replicas, c.syncLow, c.syncHigh, c.appendMean, c.nemesisMean, c.faults)
}
