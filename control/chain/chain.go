// Package chain describes a log as a chain of segments and how it may change. Each change is a function from the
// old chain to the new one or a refusal; the caller makes it durable by a compare-and-set on the log's metadata
// key. The functions neither block nor look at anything but their arguments.
//
// The invariants, which Validate checks and each change keeps:
//
//   - the base LSNs of the segments grow strictly and a segment ends where the next one begins, so only the last
//     segment can be open;
//   - segment indexes grow and are never given out twice, also when an empty segment is replaced;
//   - the tail of a segment, once recorded by a seal marker or by a successor, does not change;
//   - a prefix is trimmed by whole segments below the trim point, the last segment stays.
package chain

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"

	"perdure/control/cluster"
	"perdure/control/mutant"
)

// Params say which nodes hold a segment. They do not change during the life of the segment.
type Params struct {
	// Sequencer is the one process that orders the segment's records.
	Sequencer   cluster.GenNodeID
	Replication cluster.Replication
	// NodeSet are the log servers, without repetitions; positions in quorum checks refer to this order.
	NodeSet []cluster.NodeID
}

// Segment is a stretch of the log in one loglet.
type Segment struct {
	Loglet cluster.LogletID // log and index of the segment
	Base   cluster.LSN      // LSN of the first record
	Params
}

// Index numbers the segment in its log.
func (s Segment) Index() cluster.SegmentIndex { return s.Loglet.SegmentIndex() }

// LSN is the position in the log of an offset in the segment.
func (s Segment) LSN(o cluster.Offset) cluster.LSN { return s.Base + cluster.LSN(o) - 1 }

// Offset is the position in the segment of lsn, which must not be below Base; it is larger than any offset when
// the segment can not reach that far.
func (s Segment) Offset(lsn cluster.LSN) cluster.Offset {
	return cluster.Offset(min(uint64(lsn-s.Base)+1, math.MaxUint32))
}

// Seal is the marker that ends a chain whose last segment is sealed and has no successor yet.
type Seal struct {
	// Tail is the end of the last segment, exclusive.
	Tail cluster.LSN
	// Permanent forbids a successor.
	Permanent bool
	// By and AtMillis (Unix time) say who sealed and when, for people.
	By       cluster.GenNodeID
	AtMillis int64
}

// Chain is the segments of one log, oldest first. It is a value: changes return another one and holders may read
// theirs for as long as they like. The zero value is no chain; see New.
type Chain struct {
	log      cluster.LogID
	segments []Segment
	seal     *Seal
}

// The reasons for which a change is refused.
var (
	ErrPermanentlySealed = errors.New("log is permanently sealed")
	ErrTailMismatch      = errors.New("tail does not agree with the chain")
	ErrBadParams         = errors.New("segment parameters are not valid")
	ErrExhausted         = errors.New("log has used up its segment indexes")
)

// MismatchError refuses a change that was meant for another last segment: somebody else was faster. The caller
// loads the chain anew and looks again whether there is anything left to do.
type MismatchError struct {
	Expected, Actual cluster.SegmentIndex
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("last segment is %d, not %d: the chain was changed by somebody else", e.Actual, e.Expected)
}

// New is the chain of a new log with one open segment that begins at the oldest LSN.
func New(log cluster.LogID, p Params) (Chain, error) {
	if err := p.validate(); err != nil {
		return Chain{}, fmt.Errorf("create log %d: %w", log, err)
	}
	return Chain{log: log, segments: []Segment{newSegment(log, 0, cluster.OldestLSN, p)}}, nil
}

func newSegment(log cluster.LogID, index cluster.SegmentIndex, base cluster.LSN, p Params) Segment {
	p.NodeSet = slices.Clone(p.NodeSet)
	return Segment{Loglet: cluster.NewLogletID(log, index), Base: base, Params: p}
}

func (p Params) validate() error {
	if err := p.Replication.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrBadParams, err)
	}
	switch n := len(p.NodeSet); {
	case p.Sequencer.ID == 0 || p.Sequencer.Generation == 0:
		return fmt.Errorf("%w: no sequencer", ErrBadParams)
	case n < p.Replication.NodeCopies():
		return fmt.Errorf("%w: %d nodes can not hold %s", ErrBadParams, n, p.Replication)
	case n > cluster.MaxNodeSet:
		return fmt.Errorf("%w: a node set has at most %d nodes, not %d", ErrBadParams, cluster.MaxNodeSet, n)
	}
	for i, id := range p.NodeSet { // there are few, and this needs no memory
		if id == 0 || slices.Contains(p.NodeSet[:i], id) {
			return fmt.Errorf("%w: the node set has a node twice or an invalid one", ErrBadParams)
		}
	}
	return nil
}

// Log is the log that c describes.
func (c Chain) Log() cluster.LogID { return c.log }

// IsZero reports whether c is no chain at all.
func (c Chain) IsZero() bool { return len(c.segments) == 0 }

// Len is the number of segments, at least 1.
func (c Chain) Len() int { return len(c.segments) }

// Segment is the i-th segment, counted from the oldest one that is left; not its index.
func (c Chain) Segment(i int) Segment { return c.segments[i] }

// First is the oldest segment that is left.
func (c Chain) First() Segment { return c.segments[0] }

// Last is the newest segment; it is open unless Sealed says otherwise.
func (c Chain) Last() Segment { return c.segments[len(c.segments)-1] }

// LastIndex is what changes are conditional on.
func (c Chain) LastIndex() cluster.SegmentIndex { return c.Last().Index() }

// Sealed is the seal marker, if the chain ends in one.
func (c Chain) Sealed() (Seal, bool) {
	if c.seal == nil {
		return Seal{}, false
	}
	return *c.seal, true
}

// TrimPoint is the last LSN that is known to be trimmed because its segment is gone; 0 if there is none. The
// loglets know more precisely.
func (c Chain) TrimPoint() cluster.LSN { return c.First().Base - 1 }

// Tail is the end, exclusive, of the i-th segment; ok is false when it is open.
func (c Chain) Tail(i int) (tail cluster.LSN, ok bool) {
	switch {
	case i+1 < len(c.segments):
		return c.segments[i+1].Base, true
	case c.seal != nil:
		return c.seal.Tail, true
	}
	return 0, false
}

// Place says where an LSN is in a chain.
type Place uint8

// The places.
const (
	InSegment  Place = iota // in the segment, or its future place when the segment is open
	Trimmed                 // below the first segment
	BeyondTail              // at or above the tail of a sealed chain: the segment does not exist yet
)

// Found is the result of FindSegment.
type Found struct {
	Place Place
	// Position is that of the segment in the chain: the one that holds the LSN, or the first one if it was
	// trimmed, or the last one if it is beyond the tail.
	Position int
	Segment  Segment
	// Tail is the segment's end, exclusive; MaxLSN when the segment is open.
	Tail cluster.LSN
}

// FindSegment says in which segment lsn is.
func (c Chain) FindSegment(lsn cluster.LSN) Found {
	next := sort.Search(len(c.segments), func(i int) bool { return c.segments[i].Base > lsn })
	at := max(next-1, 0)
	f := Found{Position: at, Segment: c.segments[at], Tail: cluster.MaxLSN}
	if tail, ok := c.Tail(at); ok {
		f.Tail = tail
	}
	switch {
	case next == 0:
		f.Place = Trimmed
	case c.seal != nil && lsn >= c.seal.Tail:
		f.Place = BeyondTail
	}
	return f
}

// FindLoglet is the position of the segment with the given index; ok is false if there is none (it was trimmed,
// replaced because it was empty, or is not known here yet).
func (c Chain) FindLoglet(index cluster.SegmentIndex) (position int, ok bool) {
	return sort.Find(len(c.segments), func(i int) int { return int(int64(index) - int64(c.segments[i].Index())) })
}

func (c Chain) expect(last cluster.SegmentIndex) error {
	if actual := c.LastIndex(); actual != last {
		return &MismatchError{Expected: last, Actual: actual}
	}
	return nil
}

// Extend puts a new open segment at the end of a chain whose last segment is expectLast and has its tail at
// base. The caller must have sealed that loglet and base must be its sealed tail. A seal marker is replaced and
// must agree. A last segment in which nothing was written is replaced too; the new one has a higher index still.
func (c Chain) Extend(expectLast cluster.SegmentIndex, base cluster.LSN, p Params) (Chain, error) {
	if err := c.checkExtend(expectLast, base, p); err != nil {
		return c, fmt.Errorf("extend log %d at %d: %w", c.log, base, err)
	}
	keep := c.segments
	if base == c.Last().Base {
		keep = keep[:len(keep)-1]
	}
	segments := make([]Segment, len(keep), len(keep)+1)
	copy(segments, keep)
	return Chain{log: c.log, segments: append(segments, newSegment(c.log, expectLast+1, base, p))}, nil
}

func (c Chain) checkExtend(expectLast cluster.SegmentIndex, base cluster.LSN, p Params) error {
	if err := c.expect(expectLast); err != nil {
		return err
	}
	switch {
	case c.seal != nil && c.seal.Permanent:
		return ErrPermanentlySealed
	case c.seal != nil && c.seal.Tail != base:
		return fmt.Errorf("%w: the chain was sealed at %d", ErrTailMismatch, c.seal.Tail)
	case base < c.Last().Base:
		return fmt.Errorf("%w: the last segment begins at %d", ErrTailMismatch, c.Last().Base)
	case expectLast == math.MaxUint32 || base == cluster.MaxLSN:
		return ErrExhausted
	}
	return p.validate()
}

// Seal records that the last segment, expectLast, is sealed at seal.Tail, which must be the sealed tail of its
// loglet. Sealing again at the same tail changes nothing, but may turn the seal into a permanent one.
func (c Chain) Seal(expectLast cluster.SegmentIndex, seal Seal) (Chain, error) {
	err := c.expect(expectLast)
	switch {
	case err != nil:
	case seal.Tail < c.Last().Base:
		err = fmt.Errorf("%w: the last segment begins at %d", ErrTailMismatch, c.Last().Base)
	case c.seal != nil && c.seal.Tail != seal.Tail:
		err = fmt.Errorf("%w: the chain was sealed at %d", ErrTailMismatch, c.seal.Tail)
	case c.seal != nil && (c.seal.Permanent || !seal.Permanent):
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("seal log %d at %d: %w", c.log, seal.Tail, err)
	}
	return Chain{log: c.log, segments: c.segments, seal: &seal}, nil
}

// TrimPrefix drops the segments that lie wholly at or below trimPoint (the last LSN that is not needed any
// more). The last segment stays. The second result is the segments that were dropped, whose loglets may now be
// deleted; it is empty if the chain is unchanged.
func (c Chain) TrimPrefix(trimPoint cluster.LSN) (Chain, []Segment) {
	n := 0
	for n+1 < len(c.segments) && (c.segments[n+1].Base-1 <= trimPoint || mutant.Is(mutant.PrefixTooLong) && c.segments[n].Base <= trimPoint) {
		n++
	}
	if n == 0 {
		return c, nil
	}
	kept := slices.Clone(c.segments[n:])
	return Chain{log: c.log, segments: kept, seal: c.seal}, slices.Clone(c.segments[:n])
}

// Uses reports whether a segment has the node in its node set.
func (c Chain) Uses(id cluster.NodeID) bool {
	return slices.ContainsFunc(c.segments, func(s Segment) bool { return slices.Contains(s.NodeSet, id) })
}

// Validate checks what must hold of every chain; an error means damaged or foreign data.
func (c Chain) Validate() error {
	if c.IsZero() {
		return errors.New("chain has no segments")
	}
	for i, s := range c.segments {
		switch {
		case s.Loglet.LogID() != c.log:
			return fmt.Errorf("segment %d belongs to another log", s.Index())
		case s.Base < cluster.OldestLSN || s.Base == cluster.MaxLSN:
			return fmt.Errorf("segment %d has no valid base", s.Index())
		case i > 0 && (s.Index() <= c.segments[i-1].Index() || s.Base <= c.segments[i-1].Base):
			return fmt.Errorf("segment %d does not follow its predecessor", s.Index())
		}
		if err := s.Params.validate(); err != nil {
			return fmt.Errorf("segment %d: %w", s.Index(), err)
		}
	}
	if c.seal != nil && c.seal.Tail < c.Last().Base {
		return fmt.Errorf("the seal at %d lies below the last segment", c.seal.Tail)
	}
	return nil
}
