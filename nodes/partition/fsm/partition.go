package fsm

import (
	"cmp"

	"perdure/control/cluster"
	"perdure/control/mutant"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// producers holds the last sequence of each producer that was seen. Producers are few: the partition's
// leaders as one, the outboxes of all partitions, and named ones outside.
type producers struct {
	known map[string]*producer
	dirty []*producer
}

type producer struct {
	key   string
	last  storepb.Producer
	known bool // has sent something that was applied
	dirty bool
}

// accept reports whether a command is to be applied: its sequence is above the last one of its producer,
// and its leader was not replaced. It then counts as seen.
func (m *Machine) accept(d *recordpb.Dedup) (bool, error) {
	var key []byte
	switch p := d.GetProducer().(type) {
	case *recordpb.Dedup_Self:
		if mutant.Is(mutant.EpochIgnored) {
			return true, nil
		}
		if d.Epoch < uint64(m.epoch) {
			return false, nil
		}
		key = keyspace.AppendSelfProducer(m.key[:0])
	case *recordpb.Dedup_Partition:
		if mutant.Is(mutant.DedupDropped) {
			return true, nil
		}
		key = keyspace.AppendPartitionProducer(m.key[:0], p.Partition)
	case *recordpb.Dedup_Other:
		key = keyspace.AppendOtherProducer(m.key[:0], p.Other)
	default:
		return true, nil // idempotent by content
	}
	m.key = key
	p, err := m.producers.of(&m.step, key)
	if err != nil {
		return false, err
	}
	if cmp.Or(cmp.Compare(d.Epoch, p.last.Epoch), cmp.Compare(d.Sequence, p.last.Sequence)) <= 0 && p.known {
		return false, nil
	}
	p.known, p.last.Epoch, p.last.Sequence = true, d.Epoch, d.Sequence
	if !p.dirty {
		p.dirty = true
		m.producers.dirty = append(m.producers.dirty, p)
	}
	return true, nil
}

func (ps *producers) of(s *step, key []byte) (*producer, error) {
	if p := ps.known[string(key)]; p != nil {
		return p, nil
	}
	p := &producer{key: string(key)}
	var err error
	if p.known, err = s.readCommitted(key, &p.last); err != nil {
		return nil, err
	}
	if ps.known == nil {
		ps.known = map[string]*producer{}
	}
	ps.known[p.key] = p
	return p, nil
}

func (ps *producers) flush(s *step) error {
	for _, p := range ps.dirty {
		p.dirty = false
		s.key = append(s.key[:0], p.key...)
		if err := s.write(s.key, &p.last); err != nil {
			return err
		}
	}
	ps.dirty = ps.dirty[:0]
	return nil
}

// announce makes a leader the one whose commands count from here on.
func (m *Machine) announce(a *recordpb.AnnounceLeader) error {
	if a.Epoch < uint64(m.epoch) {
		m.dropped++
		return nil
	}
	m.epoch = cluster.Epoch(a.Epoch)
	act := m.out.add(ActAnnounced)
	act.Epoch, act.LSN = m.epoch, cluster.LSN(m.lsn)
	act.Node = cluster.GenNodeID{ID: cluster.NodeID(a.NodeId), Generation: cluster.Generation(a.NodeGeneration)}
	m.key = keyspace.AppendMeta(m.key[:0], keyspace.MetaLeader)
	return m.write(m.key, &storepb.Leader{
		Epoch: a.Epoch, NodeId: a.NodeId, NodeGeneration: a.NodeGeneration,
		ConfigVersion: a.ConfigVersion, ReplicaSets: a.ReplicaSets, Lsn: m.lsn,
	})
}

func (m *Machine) durability(d *recordpb.PartitionDurability) error {
	act := m.out.add(ActDurable)
	act.LSN = cluster.LSN(d.DurableLsn)
	m.key = keyspace.AppendMeta(m.key[:0], keyspace.MetaDurability)
	return m.write(m.key, &storepb.Durability{DurableLsn: d.DurableLsn, AtMs: m.now})
}

func (m *Machine) barrier(b *recordpb.VersionBarrier) error {
	m.key = keyspace.AppendMeta(m.key[:0], keyspace.MetaBarrier)
	return m.write(m.key, &storepb.Barrier{MinVersion: b.MinVersion, Features: b.Features, Lsn: m.lsn})
}
