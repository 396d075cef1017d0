// Package fsm is the state machine of a partition: it applies the commands of the partition's log, one
// after the other, to the rows of the partition's store.
//
// It is deterministic. What apply does depends only on the rows and the record: the time is the record's
// creation time, which may be lower than that of the record before; ids come with the command, no map is
// ranged over. Two replicas that applied the log up to the same LSN have byte-identical rows, whatever the
// batches were. Bad content of a command never fails apply: it is dropped and counted, so that one record
// cannot stop a partition. Errors are those of the store, and the machine and its transaction must then be
// thrown away.
//
// Effects on the world are returned as actions, which the leader carries out after the batch was
// committed. DESIGN.md tells the life of an invocation in rows.
package fsm

import (
	"fmt"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/mutant"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// Machine applies commands. One goroutine uses it.
type Machine struct {
	step
	partition cluster.PartitionID
	keys      cluster.KeyRange

	latest uint64 // creation time of the log's newest record so far, ms since the epoch

	// The parts. Rows that nearly every command changes are held in them and written once per batch, by Finish.
	counters counters
	rows     rows
	journal  journal
	dedup    dedup
	locks    locks
	outbox   outbox
	promises promises
	states   states
	timers   timers
}

// New makes the machine of a partition from what the store has.
func New(p cluster.PartitionID, keys cluster.KeyRange, r Reader) (*Machine, error) {
	m := &Machine{partition: p, keys: keys}
	m.rows = newRows(&m.step)
	m.journal = journal{&m.step, &m.rows}
	m.dedup.step = &m.step
	m.locks = newLocks(&m.step, &m.counters)
	m.outbox = outbox{&m.step, &m.counters}
	m.promises = promises{&m.step}
	m.states = states{&m.step}
	m.timers = timers{&m.step}
	if err := m.load(r); err != nil {
		return nil, fmt.Errorf("load the state of partition %d: %w", p, err)
	}
	return m, nil
}

func (m *Machine) load(r Reader) error {
	if err := m.counters.load(r); err != nil {
		return err
	}
	if err := m.dedup.load(r); err != nil {
		return err
	}
	v, ok, err := r.Get(keyspace.AppendMeta(nil, keyspace.MetaApplied))
	if err == nil && ok {
		_, m.latest, err = keyspace.AppliedOf(v)
	}
	return err
}

// Epoch is that of the last announced leader; 0 before the first one.
func (m *Machine) Epoch() cluster.Epoch { return m.dedup.epoch }

// LatestMs is the latest creation time of the records applied so far, in ms since the epoch, also of those that were
// applied before the start.
func (m *Machine) LatestMs() uint64 { return m.latest }

// Dropped counts the commands and effects that were ignored because they came twice, too late, or made no sense.
func (m *Machine) Dropped() uint64 { return m.dropped }

// Apply applies the command at lsn, created at createdAtMs (ms since the epoch). Actions are appended to
// out. The batch is not complete before Finish. cmd is kept and must not change afterwards.
func (m *Machine) Apply(txn Txn, lsn cluster.LSN, createdAtMs uint64, cmd *recordpb.Command, out *Actions) error {
	m.txn, m.lsn, m.now, m.out = txn, uint64(lsn), createdAtMs, out
	m.latest = max(m.latest, createdAtMs)
	if mutant.Is(mutant.TimeHeld) {
		m.now = m.latest
	}
	if mutant.Is(mutant.ApplyReadsClock) {
		m.now += mutant.Noise() % 2
	}
	defer func() { m.txn, m.out = nil, nil }()
	ok, err := m.dedup.accept(cmd.Dedup)
	if err != nil {
		return fmt.Errorf("deduplicate: %w", err)
	}
	if !ok {
		m.dropped++
		return nil
	}
	return m.dispatch(cmd)
}

// Finish writes what is held back until the end of a batch. It is called once after the last Apply, before
// the transaction commits. lsn is that of the batch's last record or gap.
func (m *Machine) Finish(txn Txn, lsn cluster.LSN) error {
	m.txn = txn
	defer func() { m.txn = nil }()
	if err := m.rows.flush(); err != nil {
		return err
	}
	if err := m.locks.flush(); err != nil {
		return err
	}
	if err := m.dedup.flush(); err != nil {
		return err
	}
	if err := m.counters.flush(&m.step); err != nil {
		return err
	}
	return txn.SetApplied(lsn, m.latest)
}

func (m *Machine) dispatch(cmd *recordpb.Command) error {
	switch k := cmd.Kind.(type) {
	case *recordpb.Command_Invoke:
		return m.invoke(k.Invoke)
	case *recordpb.Command_InvokerEffects:
		return m.effects(k.InvokerEffects)
	case *recordpb.Command_Timer:
		return m.timer(k.Timer)
	case *recordpb.Command_Response:
		return m.response(k.Response)
	case *recordpb.Command_Signal:
		return m.signalCommand(k.Signal, cmd.RequestId)
	case *recordpb.Command_Attach:
		return m.attach(k.Attach)
	case *recordpb.Command_GetOutput:
		return m.getOutput(k.GetOutput)
	case *recordpb.Command_Terminate:
		return m.terminate(k.Terminate, cmd.RequestId)
	case *recordpb.Command_Purge:
		return m.purge(k.Purge, cmd.RequestId)
	case *recordpb.Command_Pause:
		return m.pause(k.Pause, cmd.RequestId)
	case *recordpb.Command_Resume:
		return m.resume(k.Resume, cmd.RequestId)
	case *recordpb.Command_RestartAsNew:
		return m.restartAsNew(k.RestartAsNew, cmd.RequestId)
	case *recordpb.Command_PatchState:
		return m.patchState(k.PatchState, cmd.RequestId)
	case *recordpb.Command_AnnounceLeader:
		return m.dedup.announce(k.AnnounceLeader)
	case *recordpb.Command_TruncateOutbox:
		return m.outbox.truncate(k.TruncateOutbox.Index)
	case *recordpb.Command_PartitionDurability:
		return m.durability(k.PartitionDurability)
	case *recordpb.Command_VersionBarrier:
		return m.barrier(k.VersionBarrier)
	}
	m.dropped++
	return nil
}

// idOf reads the id of a command's subject; a command with a bad one, or one of another partition, is dropped.
func (m *Machine) idOf(raw []byte) (id ident.InvocationID, ok bool) {
	id, err := ident.InvocationIDFromBytes(raw)
	if err != nil || !m.keys.Contains(id.PartitionKey()) {
		m.dropped++
		return id, false
	}
	return id, true
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
