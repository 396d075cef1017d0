package partition

import (
	"fmt"
	"sync"

	"perdure/control/cluster"
	"perdure/nodes/bifrost"
	"perdure/nodes/record"
	"perdure/nodes/record/recordpb"
)

// appender is the ordered writer of one log, as bifrost makes it.
type appender interface {
	// Append enqueues; it returns bifrost.ErrFull without effect when its memory budget is used up. done
	// is called once, in the order of the appends; after one failed, all later ones fail.
	Append(recs []bifrost.Record, done func(last cluster.LSN, err error)) error
	Close()
}

// proposer puts the commands of one leader into the partition's log. It may be used by any goroutine:
// requests, attempts and the leader's own loop propose concurrently, and the lock makes the order of the
// sequence numbers the order in the log.
//
// Its own commands carry (epoch, sequence): from the next leader's announcement on every replica drops
// them. Commands of other partitions' outboxes carry that outbox's index instead.
type proposer struct {
	epoch cluster.Epoch
	now   func() uint64 // ms since the epoch
	fail  func(error)   // called once, with what ended the leader's writing

	mu     sync.Mutex
	log    appender
	seq    uint64
	failed error
	heard  map[cluster.PartitionID]Origin // of the last batch that was taken of each partition
}

func newProposer(epoch cluster.Epoch, log appender, now func() uint64, fail func(error)) *proposer {
	return &proposer{epoch: epoch, log: log, now: now, fail: fail}
}

// propose appends a command of this leader.
func (p *proposer) propose(c *recordpb.Command) error {
	c.Dedup = nil
	payload, err := record.Encode(c)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil {
		return p.failed
	}
	d := &recordpb.Dedup{Producer: selfProducer, Epoch: uint64(p.epoch), Sequence: p.seq}
	c.Dedup = d
	if payload, err = record.AppendDedup(payload, d); err != nil {
		return err
	}
	if err := p.log.Append([]bifrost.Record{p.record(c, payload)}, p.committed); err != nil {
		return err
	}
	p.seq++
	return nil
}

var selfProducer = &recordpb.Dedup_Self{Self: true}

// ingest appends commands that carry another producer's dedup, all or none. done is called once unless
// an error is returned.
func (p *proposer) ingest(from Origin, cs []*recordpb.Command, done func(error)) error {
	recs := make([]bifrost.Record, len(cs))
	payloads := make([][]byte, len(cs))
	for i, c := range cs {
		var err error
		if payloads[i], err = record.Encode(c); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil {
		return p.failed
	}
	if last, known := p.heard[from.Partition]; from.Batch > 0 && !known || known && !from.follows(last) {
		return ErrOutOfStep
	}
	for i, c := range cs {
		recs[i] = p.record(c, payloads[i])
	}
	err := p.log.Append(recs, func(_ cluster.LSN, err error) {
		if err != nil {
			p.stop(err)
		}
		done(err)
	})
	if err != nil {
		return err
	}
	if p.heard == nil {
		p.heard = map[cluster.PartitionID]Origin{}
	}
	p.heard[from.Partition] = from
	return nil
}

// record stamps a command with the leader's clock, also when that went back: see DESIGN.md.
func (p *proposer) record(c *recordpb.Command, payload []byte) bifrost.Record {
	return bifrost.Record{
		Key:       c.PartitionKey,
		Keyed:     record.Keyed(c),
		CreatedAt: p.now(),
		Payload:   payload,
		Decoded:   c,
	}
}

func (p *proposer) committed(_ cluster.LSN, err error) {
	if err != nil {
		p.stop(err)
	}
}

// stop makes every later proposal fail. The order of the log cannot be kept once an append failed, so
// the leader is over.
func (p *proposer) stop(cause error) {
	p.mu.Lock()
	first := p.failed == nil
	if first {
		p.failed = fmt.Errorf("%w: %w", ErrLostLeadership, cause)
	}
	p.mu.Unlock()
	if first {
		p.fail(cause)
	}
}

// close ends the proposer and answers every append that is still under way.
func (p *proposer) close() {
	p.stop(errStopped)
	p.log.Close()
}
