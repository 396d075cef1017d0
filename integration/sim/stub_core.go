package sim

import "perdure/control/cluster"

type core struct{}
type processor struct{}
type machineStore struct{}

func newCore(w *world) *core                          { return nil }
func (c *core) start(n *node)                         {}
func (c *core) begin()                                {}
func (c *core) unsettled() string                     { return "" }
func (c *core) final()                                {}
func (c *core) close()                                {}
func (c *core) moveLeader(cluster.PartitionID, *node) {}
func (p *processor) crash()                           {}
func newPebbleDisk(w *world) storage                  { return newDisk() }
func (c *core) finished() uint64                      { return 0 }
