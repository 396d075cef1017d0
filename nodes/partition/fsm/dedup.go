package fsm

import (
	"cmp"

	"perdure/control/cluster"
	"perdure/control/mutant"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// dedup decides which commands count: of each producer only those whose (epoch, sequence) is above the last one, and of the
// partition's own leaders only those of the one that was announced last.
//
// Producers are few: the partition's leaders as one, the outboxes of all partitions, and named ones outside.
type dedup struct {
	*step
	epoch     cluster.Epoch // of the last announced leader; 0 before the first one
	producers map[string]*producer
	dirty     []*producer
}

type producer struct {
	key   string
	last  storepb.Producer
	known bool // has sent something that was applied
	dirty bool
}

// load reads the announced leader. Producers are read when they come.
func (d *dedup) load(r Reader) error {
	var l storepb.Leader
	if _, err := read(r, keyspace.AppendMeta(nil, keyspace.MetaLeader), &l); err != nil {
		return err
	}
	d.epoch = cluster.Epoch(l.Epoch)
	return nil
}

// accept reports whether a command is to be applied: its sequence is above the last one of its producer,
// and its leader was not replaced. It then counts as seen.
func (d *dedup) accept(x *recordpb.Dedup) (bool, error) {
	var key []byte
	switch p := x.GetProducer().(type) {
	case *recordpb.Dedup_Self:
		if mutant.Is(mutant.EpochIgnored) {
			return true, nil
		}
		if x.Epoch < uint64(d.epoch) {
			return false, nil
		}
		key = keyspace.AppendSelfProducer(d.key[:0])
	case *recordpb.Dedup_Partition:
		if mutant.Is(mutant.DedupDropped) {
			return true, nil
		}
		key = keyspace.AppendPartitionProducer(d.key[:0], p.Partition)
	case *recordpb.Dedup_Other:
		key = keyspace.AppendOtherProducer(d.key[:0], p.Other)
	default:
		return true, nil // idempotent by content
	}
	d.key = key
	p, err := d.of(key)
	if err != nil {
		return false, err
	}
	if cmp.Or(cmp.Compare(x.Epoch, p.last.Epoch), cmp.Compare(x.Sequence, p.last.Sequence)) <= 0 && p.known {
		return false, nil
	}
	p.known, p.last.Epoch, p.last.Sequence = true, x.Epoch, x.Sequence
	if !p.dirty {
		p.dirty = true
		d.dirty = append(d.dirty, p)
	}
	return true, nil
}

func (d *dedup) of(key []byte) (*producer, error) {
	if p := d.producers[string(key)]; p != nil {
		return p, nil
	}
	p := &producer{key: string(key)}
	var err error
	if p.known, err = d.readCommitted(key, &p.last); err != nil {
		return nil, err
	}
	if d.producers == nil {
		d.producers = map[string]*producer{}
	}
	d.producers[p.key] = p
	return p, nil
}

func (d *dedup) flush() error {
	for _, p := range d.dirty {
		p.dirty = false
		d.key = append(d.key[:0], p.key...)
		if err := d.write(d.key, &p.last); err != nil {
			return err
		}
	}
	d.dirty = d.dirty[:0]
	return nil
}

// announce makes a leader the one whose commands count from here on.
func (d *dedup) announce(a *recordpb.AnnounceLeader) error {
	if a.Epoch < uint64(d.epoch) {
		d.dropped++
		return nil
	}
	d.epoch = cluster.Epoch(a.Epoch)
	act := d.out.add(ActAnnounced)
	act.Epoch, act.LSN = d.epoch, cluster.LSN(d.lsn)
	act.Node = cluster.GenNodeID{ID: cluster.NodeID(a.NodeId), Generation: cluster.Generation(a.NodeGeneration)}
	d.key = keyspace.AppendMeta(d.key[:0], keyspace.MetaLeader)
	return d.write(d.key, &storepb.Leader{
		Epoch: a.Epoch, NodeId: a.NodeId, NodeGeneration: a.NodeGeneration,
		ConfigVersion: a.ConfigVersion, ReplicaSets: a.ReplicaSets, Lsn: d.lsn,
	})
}
