package loglet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

// The simulation runs the step machines of several log servers, of sequencers and of finders in one
// goroutine under a seeded schedule of loss, duplication, reordering, partitions, slow disks and
// crashes, and checks after each step what must never be violated:
//
//   - L1: a server holds, durably, everything between the tail it knows to be committed and its own;
//   - one content per position;
//   - what was acknowledged is below the tail with which its segment ended, and can still be read;
//   - after a sealed tail was found nothing at or above it is acknowledged, and every finder that
//     reports the segment sealed, then or later, reports at least what was acknowledged.

type simServer struct {
	id      cluster.NodeID
	up      bool
	core    *logserver.Loglet
	meta    logserver.Meta
	records map[cluster.Offset]string // durable
	queue   []*logserver.Write        // not durable
	cut     bool                      // partitioned away
	life    int
}

type simEvent struct {
	at  time.Duration
	seq int
	run func()
}

type simSegment struct {
	params  Params
	servers []*simServer // of the node set
	seq     *Sequencer   // nil when its process has crashed
	seqLife int
	acked   map[cluster.Offset]string
	trimmed cluster.Offset // highest trim point that was asked for
	tail    cluster.Offset // as recorded in the chain, 0 while open
	sealed  cluster.Offset // highest sealed tail that any finder reported
}

type sim struct {
	t        testing.TB
	seed     uint64
	rng      *rand.Rand
	now      time.Duration
	events   []simEvent
	count    int
	n, r     int
	segments []*simSegment
	nextID   int
	drop     float64
	dup      float64
	quiet    bool // no more faults
	trace    []string
	finders  int
	acks     int
}

func newSim(t testing.TB, seed uint64) *sim {
	rng := rand.New(rand.NewPCG(seed, 1))
	s := &sim{t: t, seed: seed, rng: rng, n: 1 + rng.IntN(5)}
	s.r = 1 + rng.IntN(s.n)
	if rng.IntN(2) == 0 {
		s.r = s.n/2 + 1
	}
	s.drop = []float64{0, 0, 0.01, 0.1}[rng.IntN(4)]
	s.dup = []float64{0, 0.05, 0.2}[rng.IntN(3)]
	return s
}

func (s *sim) fatalf(format string, args ...any) {
	s.t.Helper()
	for _, line := range s.trace[max(0, len(s.trace)-60):] {
		s.t.Log(line)
	}
	s.t.Fatalf("seed %d (n=%d r=%d) at %v: %s", s.seed, s.n, s.r, s.now, fmt.Sprintf(format, args...))
}

func (s *sim) logf(format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf("%10v ", s.now)+fmt.Sprintf(format, args...))
}

func (s *sim) after(d time.Duration, run func()) {
	s.count++
	s.events = append(s.events, simEvent{s.now + d, s.count, run})
}

// step runs the earliest event.
func (s *sim) step() bool {
	if len(s.events) == 0 {
		return false
	}
	best := 0
	for i, e := range s.events {
		if b := s.events[best]; e.at < b.at || (e.at == b.at && e.seq < b.seq) {
			best = i
		}
	}
	e := s.events[best]
	s.events[best] = s.events[len(s.events)-1]
	s.events = s.events[:len(s.events)-1]
	s.now = e.at
	e.run()
	return true
}

func (s *sim) delay() time.Duration {
	d := time.Duration(s.rng.IntN(3000)) * time.Microsecond
	if !s.quiet && s.rng.IntN(20) == 0 {
		d += time.Duration(s.rng.IntN(800)) * time.Millisecond
	}
	return d
}

// carry delivers something over the network, or not, or twice.
func (s *sim) carry(sv *simServer, f func()) {
	copies := 1
	if !s.quiet {
		if s.rng.Float64() < s.drop {
			copies = 0
		}
		if s.rng.Float64() < s.dup {
			copies++
		}
	}
	for range copies {
		s.after(s.delay(), func() {
			if !sv.cut {
				f()
			}
		})
	}
}

// call sends a request to a server of a segment; done gets the answer, perhaps several times.
func (s *sim) call(sv *simServer, from cluster.GenNodeID, m transport.Message, done func(transport.Message, error)) {
	if !sv.up {
		s.after(s.delay(), func() { done(nil, transport.ErrUnreachable) })
		return
	}
	s.carry(sv, func() {
		if !sv.up {
			return
		}
		sv.handle(s, from, m, func(r transport.Message) { s.carry(sv, func() { done(r, nil) }) })
	})
}

func (sv *simServer) handle(s *sim, from cluster.GenNodeID, m transport.Message, reply func(transport.Message)) {
	out := &logserver.Output{}
	switch r := m.(type) {
	case *logserver.StoreRequest:
		sv.core.Store(reply, from, r, out)
	case *logserver.SealRequest:
		sv.core.Seal(reply, r, out)
	case *logserver.InfoRequest:
		sv.core.Info(reply, r, out)
	case *logserver.WaitTailRequest:
		sv.core.WaitTail(reply, r, out)
	case *logserver.TrimRequest:
		sv.core.Trim(reply, r, out)
	case *logserver.ReadRequest:
		rng, state := sv.core.Readable(r.Header, r.From, r.To, out)
		res := &logserver.ReadReply{StateReply: state, Next: rng.From}
		for o := rng.From; o < rng.To && len(res.Records) < 3; o++ {
			if c, ok := sv.records[o]; ok {
				res.Records = append(res.Records, logserver.Found{Offset: o, Record: logserver.Record{Payload: []byte(c)}})
			}
		}
		reply(res)
	case *logserver.DigestRequest:
		rng, state := sv.core.Readable(r.Header, r.From, r.To, out)
		res := &logserver.DigestReply{StateReply: state}
		for o := rng.From; o < rng.To; o++ {
			if _, ok := sv.records[o]; ok {
				res.Exists = append(res.Exists, logserver.Range{From: o, To: o + 1})
			}
		}
		reply(res)
	}
	sv.finish(s, out)
}

func (sv *simServer) finish(s *sim, out *logserver.Output) {
	for _, w := range out.Writes {
		sv.queue = append(sv.queue, w)
		life := sv.life
		d := time.Duration(100+s.rng.IntN(3000)) * time.Microsecond
		if !s.quiet && s.rng.IntN(50) == 0 {
			d += time.Second
		}
		s.after(d, func() {
			if sv.life == life && len(sv.queue) > 0 {
				sv.sync(s)
			}
		})
	}
	for _, r := range out.Replies {
		state := r.State
		r.Token.(func(transport.Message))(&state)
	}
}

// persist makes the oldest queued write durable.
func (sv *simServer) persist(s *sim) *logserver.Write {
	w := sv.queue[0]
	sv.queue = sv.queue[1:]
	switch w.Kind {
	case logserver.WriteRecords:
		if !w.Sequencer.IsZero() {
			sv.meta.Sequencer = w.Sequencer
		}
		for i, r := range w.Records {
			o := w.First + cluster.Offset(i)
			if old, ok := sv.records[o]; ok && old != string(r.Payload) {
				s.fatalf("server %d: offset %d has %q, now %q", sv.id, o, old, r.Payload)
			}
			sv.records[o] = string(r.Payload)
		}
		sv.meta.LocalTail = max(sv.meta.LocalTail, w.Next())
	case logserver.WriteSeal:
		sv.meta.Sealed = true
	case logserver.WriteTrim:
		sv.meta.TrimPoint = w.TrimPoint
		for o := range sv.records {
			if o <= w.TrimPoint {
				delete(sv.records, o)
			}
		}
	}
	sv.meta.GlobalTail = max(sv.meta.GlobalTail, w.GlobalTail)
	return w
}

func (sv *simServer) sync(s *sim) {
	sv.persist(s)
	out := &logserver.Output{}
	sv.core.Durable(out)
	sv.check(s)
	sv.finish(s, out)
}

// check is invariant L1.
func (sv *simServer) check(s *sim) {
	out := &logserver.Output{}
	_, state := sv.core.Readable(logserver.Header{}, 0, 0, out)
	for o := state.KnownGlobalTail; o < state.LocalTail; o++ {
		if _, ok := sv.records[o]; !ok {
			s.fatalf("server %d lacks %d between its global tail %d and local tail %d", sv.id, o, state.KnownGlobalTail, state.LocalTail)
		}
	}
}

// crash loses what is not durable, except perhaps a prefix of it.
func (sv *simServer) crash(s *sim) {
	sv.up = false
	sv.life++
	for len(sv.queue) > 0 && s.rng.IntN(2) == 0 {
		sv.persist(s)
	}
	sv.queue = nil
}

func (sv *simServer) restart(loglet cluster.LogletID) {
	sv.up = true
	sv.life++
	sv.core = logserver.NewLoglet(loglet, sv.meta)
}

// begin puts a new segment with a new sequencer at the end of the chain.
func (s *sim) begin() {
	index := len(s.segments)
	seg := &simSegment{acked: map[cluster.Offset]string{}}
	ids := make([]cluster.NodeID, s.n)
	for i := range ids {
		ids[i] = cluster.NodeID(i + 1)
		sv := &simServer{id: ids[i], records: map[cluster.Offset]string{}}
		sv.restart(cluster.NewLogletID(1, cluster.SegmentIndex(index)))
		seg.servers = append(seg.servers, sv)
	}
	seg.params = Params{
		ID:        cluster.NewLogletID(1, cluster.SegmentIndex(index)),
		Sequencer: cluster.GenNodeID{ID: 100, Generation: cluster.Generation(index + 1)},
		Quorum:    cluster.NewQuorum(ids, cluster.ReplicateTo(s.r), healthyView{}),
	}
	seg.seq = NewSequencer(seg.params, SequencerConfig{MaxInFlight: 20, Window: 1 + s.rng.IntN(4)})
	s.segments = append(s.segments, seg)
	s.logf("segment %d begins", index)
}

type healthyView struct{}

func (healthyView) Storage(cluster.NodeID) (cluster.StorageState, cluster.Location) {
	return cluster.StorageReadWrite, cluster.Location{}
}

// append gives a batch of 1 to 4 records to a segment's sequencer.
func (s *sim) append(index int) {
	seg := s.segments[index]
	if seg.seq == nil {
		return
	}
	records := make([]logserver.Record, 1+s.rng.IntN(4))
	for i := range records {
		s.nextID++
		records[i].Payload = []byte(strconv.Itoa(s.nextID))
	}
	out := &SequencerOutput{}
	err := seg.seq.Append(s.now+1, records, nil, out)
	if err != nil && !errors.Is(err, ErrFull) && seg.seq.Stopped() == nil {
		s.fatalf("append to segment %d: %v", index, err)
	}
	s.execute(index, out)
}

// execute carries out what a sequencer wants.
func (s *sim) execute(index int, out *SequencerOutput) {
	seg, life := s.segments[index], s.segments[index].seqLife
	for _, c := range out.Commits {
		if c.Err != nil {
			continue
		}
		if seg.sealed != 0 && c.Last() >= seg.sealed {
			s.fatalf("segment %d acknowledged %d after it was found sealed at %d", index, c.Last(), seg.sealed)
		}
		for i, r := range c.Records {
			seg.acked[c.First+cluster.Offset(i)] = string(r.Payload)
			s.acks++
		}
		s.logf("segment %d acknowledged [%d,%d]", index, c.First, c.Last())
	}
	for _, send := range out.Sends {
		s.call(seg.servers[send.Node], seg.params.Sequencer, send.Msg, func(m transport.Message, err error) {
			if seg.seqLife != life {
				return
			}
			out := &SequencerOutput{}
			seg.seq.Answer(s.now+1, &Answer{Send: send, Reply: m, Err: err}, out)
			s.execute(index, out)
		})
	}
	if at, ok := seg.seq.NextTick(); ok {
		s.after(max(at-s.now, time.Millisecond), func() {
			if seg.seqLife == life {
				out := &SequencerOutput{}
				seg.seq.Tick(s.now+1, out)
				if len(out.Sends)+len(out.Commits) > 0 {
					s.execute(index, out)
				}
			}
		})
	}
}

// find runs a finder on a segment; done gets its result.
func (s *sim) find(index int, mode FinderMode, done func(TailResult)) {
	seg := s.segments[index]
	f := NewFinder(seg.params, mode, FinderConfig{})
	if seg.seq == nil {
		f.SequencerGone()
	}
	s.finders++
	over := false
	lower := cluster.Offset(1) // what was acknowledged before the finder began
	for o := range seg.acked {
		lower = max(lower, o+1)
	}
	var execute func(sends []Send)
	finish := func() bool {
		res, ok := f.Done()
		if !ok || over {
			return ok
		}
		over = true
		s.finders--
		s.logf("segment %d found at %+v", index, res)
		if res.Tail < lower {
			s.fatalf("segment %d: tail %d is below %d, which was acknowledged before", index, res.Tail, lower)
		}
		if res.Sealed {
			s.checkSealed(index, res.Tail)
		}
		done(res)
		return true
	}
	tick := func() {}
	arm := func() {
		if at, ok := f.NextTick(); ok {
			s.after(max(at-s.now, time.Millisecond), tick)
		}
	}
	pending := false
	tick = func() {
		pending = false
		if !over {
			execute(f.Tick(s.now + 1))
		}
	}
	execute = func(sends []Send) {
		if finish() {
			return
		}
		for _, send := range sends {
			s.call(seg.servers[send.Node], cluster.GenNodeID{ID: 200, Generation: 1}, send.Msg, func(m transport.Message, err error) {
				if !over {
					execute(f.Answer(s.now+1, &Answer{Send: send, Reply: m, Err: err}))
				}
			})
		}
		if !pending {
			pending = true
			arm()
		}
	}
	execute(f.Start(s.now + 1))
}

// checkSealed checks a reported sealed tail.
func (s *sim) checkSealed(index int, tail cluster.Offset) {
	seg := s.segments[index]
	seg.sealed = max(seg.sealed, tail)
	for o := range seg.acked {
		if o >= tail {
			s.fatalf("segment %d was found sealed at %d but %d was acknowledged", index, tail, o)
		}
	}
	for o := seg.trimmed + 1; o < tail; o++ {
		var has cluster.Members
		content := ""
		for i, sv := range seg.servers {
			c, ok := sv.records[o]
			if !ok {
				continue
			}
			if has.Add(i); content != "" && c != content {
				s.fatalf("segment %d offset %d is %q and %q", index, o, content, c)
			}
			content = c
		}
		if !seg.params.Quorum.WriteQuorum(has) {
			s.fatalf("segment %d offset %d below the sealed tail %d is on %d servers only", index, o, tail, has.Len())
		}
		if want, ok := seg.acked[o]; ok && want != content {
			s.fatalf("segment %d offset %d was acknowledged as %q and is %q", index, o, want, content)
		}
	}
}

// reconfigure seals the last segment and extends the chain; several may race.
func (s *sim) reconfigure() {
	index := len(s.segments) - 1
	s.logf("somebody reconfigures segment %d", index)
	s.find(index, SealTail, func(res TailResult) {
		seg := s.segments[index]
		if seg.tail != 0 || index != len(s.segments)-1 {
			return // lost the compare-and-set
		}
		seg.tail = res.Tail
		s.begin()
	})
}

// trim asks for the deletion of something that was acknowledged, on all servers or only some.
func (s *sim) trim() {
	index := len(s.segments) - 1 - s.rng.IntN(min(2, len(s.segments)))
	seg := s.segments[index]
	if len(seg.acked) == 0 {
		return
	}
	global := cluster.Offset(1)
	for o := range seg.acked {
		global = max(global, o+1)
	}
	upTo := 1 + cluster.Offset(s.rng.IntN(int(global-1)))
	seg.trimmed = max(seg.trimmed, upTo)
	s.logf("segment %d is trimmed to %d, committed tail %d", index, upTo, global)
	for _, sv := range seg.servers {
		if s.rng.IntN(4) > 0 {
			m := &logserver.TrimRequest{Header: logserver.Header{Loglet: seg.params.ID, KnownGlobalTail: global}, UpTo: upTo}
			s.call(sv, cluster.GenNodeID{ID: 200, Generation: 1}, m, func(transport.Message, error) {})
		}
	}
}

// fault does something bad to a random segment of the last two.
func (s *sim) fault() {
	seg := s.segments[len(s.segments)-1-s.rng.IntN(min(2, len(s.segments)))]
	sv := seg.servers[s.rng.IntN(len(seg.servers))]
	switch s.rng.IntN(6) {
	case 0, 1:
		if sv.up {
			s.logf("server %d of %v crashes", sv.id, seg.params.ID)
			sv.crash(s)
			s.after(time.Duration(s.rng.IntN(2000))*time.Millisecond, func() {
				if !sv.up {
					sv.restart(seg.params.ID)
				}
			})
		}
	case 2, 3:
		sv.cut = true
		s.after(time.Duration(s.rng.IntN(3000))*time.Millisecond, func() { sv.cut = false })
	case 4:
		s.logf("sequencer of %v crashes", seg.params.ID)
		seg.seq = nil
		seg.seqLife++
	case 5: // power cut of all but one
		keep := s.rng.IntN(len(seg.servers))
		for i, other := range seg.servers {
			if i != keep && other.up {
				other.crash(s)
				s.after(time.Duration(s.rng.IntN(1000))*time.Millisecond, func() {
					if !other.up {
						other.restart(seg.params.ID)
					}
				})
			}
		}
	}
}

// run is chaos, then a time without faults in which everything must come to an end.
func (s *sim) run(steps int) {
	s.begin()
	for i := range steps {
		switch s.rng.IntN(12) {
		case 0:
			if s.rng.IntN(10) == 0 {
				s.fault()
			}
		case 1:
			if s.rng.IntN(20) == 0 && s.finders < 4 {
				s.reconfigure()
			}
		case 2:
			if s.rng.IntN(20) == 0 && s.finders < 4 {
				s.find(len(s.segments)-1, FindTail, func(TailResult) {})
			}
		case 3, 4:
			s.append(len(s.segments) - 1)
		case 6:
			if s.rng.IntN(30) == 0 {
				s.trim()
			}
		case 5:
			if len(s.segments) > 1 { // a sequencer that does not know that it was replaced
				s.append(len(s.segments) - 2)
			}
		default:
			if !s.step() {
				s.append(len(s.segments) - 1)
			}
		}
		if i%8 == 0 {
			for _, sv := range s.segments[len(s.segments)-1].servers {
				sv.check(s)
			}
		}
	}
	s.settle()
}

func (s *sim) settle() {
	s.quiet = true
	for _, seg := range s.segments {
		for _, sv := range seg.servers {
			sv.cut = false
			if !sv.up {
				sv.restart(seg.params.ID)
			}
		}
	}
	before := len(s.segments)
	s.reconfigure()
	limit := s.now + 5*time.Minute
	for (s.finders > 0 || len(s.segments) == before) && s.now < limit {
		if !s.step() {
			break
		}
	}
	if s.finders > 0 || len(s.segments) == before {
		s.fatalf("%d finders do not end without faults", s.finders)
	}
	for index, seg := range s.segments[:before] {
		if seg.tail == 0 {
			s.fatalf("segment %d has no tail", index)
		}
		for o := range seg.acked {
			if o >= seg.tail {
				s.fatalf("segment %d ended at %d but %d was acknowledged", index, seg.tail, o)
			}
		}
	}
}

// TestSimulation runs many seeds; PERDURE_SEED replays one, PERDURE_SEEDS sets how many.
func TestSimulation(t *testing.T) {
	if one, ok := os.LookupEnv("PERDURE_SEED"); ok {
		seed, err := strconv.ParseUint(one, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		newSim(t, seed).run(4000)
		return
	}
	seeds := 100
	if many, err := strconv.Atoi(os.Getenv("PERDURE_SEEDS")); err == nil {
		seeds = many
	}
	first := rand.Uint64N(1 << 40)
	t.Logf("seeds from %d", first)
	segments, acks := []int{}, 0
	for i := range seeds {
		s := newSim(t, first+uint64(i))
		s.run(4000)
		segments = append(segments, len(s.segments))
		acks += s.acks
	}
	slices.Sort(segments)
	t.Logf("%d seeds, %d acknowledged records, segments per seed: median %d, most %d", seeds, acks, segments[len(segments)/2], segments[len(segments)-1])
	if acks == 0 || segments[len(segments)-1] < 2 {
		t.Error("the simulation did nothing")
	}
}
