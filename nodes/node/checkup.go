package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"perdure/control/admin"
	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers"
	"perdure/invokers/invocationpb"
	"perdure/nodes/partition"
	"perdure/nodes/partition/doctor"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/worker"
)

// checkups examines the partitions of this node, when asked and regularly.
type checkups struct {
	worker  *worker.Worker
	schemas interface{ Current() *schema.Schema }
	log     *slog.Logger
	found   atomic.Int64 // problems at the last checkup
	// settle is how long something must look wrong: what goes from partition to partition, or through the log, is
	// nowhere for a moment.
	settle time.Duration
}

const (
	checkupSettle = 3 * time.Second
	// checkupInterval is the time between regular checkups, at least. A checkup of very many invocations is made less often,
	// so that it takes a hundredth of one processor.
	checkupInterval = 5 * time.Minute
	checkupShare    = 100
)

var _ admin.Doctor = (*checkups)(nil)

// run makes a checkup regularly until ctx ends.
func (c *checkups) run(ctx context.Context) {
	t := time.NewTimer(checkupInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		r, err := c.Checkup(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.log.Warn("the invocations could not be examined", "err", err)
		} else if r.ProblemsTotal > 0 {
			first := &r.Problems[0]
			c.log.Error("invocations are stuck; perdure doctor shows them", "problems", r.ProblemsTotal, "invocation_id", first.ID, "target", first.Target, "problem", first.Problem)
		}
		t.Reset(max(checkupInterval, checkupShare*time.Since(began)))
	}
}

// register shows the number of problems as a metric.
func (c *checkups) register(r *prometheus.Registry) {
	if r == nil {
		return
	}
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "perdure_doctor_problems", Help: "Invocations and objects that nothing makes go on, at the last checkup. Anything but 0 is a mistake of the server.",
	}, func() float64 { return float64(c.found.Load()) }))
}

// Checkup implements admin.Doctor.
func (c *checkups) Checkup(ctx context.Context) (*admin.Checkup, error) {
	began := time.Now()
	r := &admin.Checkup{Invocations: map[string]int{}, WaitsFor: map[string]int{}, Problems: []admin.Diagnosis{}, Unexamined: map[uint16]string{}}
	first, err := c.examine(ctx, r)
	if err != nil {
		return nil, err
	}
	if len(first) > 0 {
		if err := c.confirm(ctx, r, first); err != nil {
			return nil, err
		}
	}
	r.Healthy = r.ProblemsTotal == 0 && len(r.Unexamined) == 0
	r.TookMs = time.Since(began).Milliseconds()
	c.found.Store(int64(r.ProblemsTotal))
	return r, nil
}

// examine sums up every partition and returns what looks wrong.
func (c *checkups) examine(ctx context.Context, r *admin.Checkup) (suspects map[cluster.PartitionID]*doctor.Summary, err error) {
	suspects = map[cluster.PartitionID]*doctor.Summary{}
	statuses := c.worker.Statuses()
	r.Notes = clockNotes(statuses)
	for _, st := range statuses {
		s, err := c.summary(ctx, st.Partition)
		if ctx.Err() != nil { // the partition may have been faster
			return nil, context.Cause(ctx)
		}
		if err != nil {
			r.Unexamined[uint16(st.Partition)] = err.Error()
			continue
		}
		r.Partitions++
		countStatuses(r.Invocations, s)
		for reason, n := range s.Reasons {
			r.WaitsFor[string(reason)] += n
		}
		if s.Total > 0 {
			suspects[st.Partition] = s
		}
	}
	return suspects, nil
}

// clockNotes says that the clock is behind the time in logs.
func clockNotes(statuses []worker.Status) []string {
	n, most := 0, time.Duration(0)
	for _, st := range statuses {
		if st.ClockBehind > partition.ClockTolerance {
			n, most = n+1, max(most, st.ClockBehind)
		}
	}
	if n == 0 {
		return nil
	}
	return []string{fmt.Sprintf("The clock of this node is up to %s behind the latest time in the logs of %d partitions. If it is wrong, timers are late "+
		"until it is right. If it is right, that of a leader was not: what was recorded then is kept longer by as much.", most.Round(time.Second), n)}
}

// countStatuses adds up statuses by the names that operators know.
func countStatuses(to map[string]int, s *doctor.Summary) {
	add := func(status string, n int) {
		if n > 0 {
			to[status] += n
		}
	}
	for status, n := range s.Statuses {
		if status == storepb.Invocation_INVOKED {
			running, failed := s.Reasons[doctor.Attempt], s.Reasons[doctor.Retry]
			add(admin.StatusRunning, running)
			add(admin.StatusBackingOff, failed)
			add(admin.StatusReady, n-running-failed)
			continue
		}
		add(statusText(&doctor.Finding{Status: status}), n)
	}
}

// confirm looks a second time at what looked wrong, and keeps what has not changed.
func (c *checkups) confirm(ctx context.Context, r *admin.Checkup, first map[cluster.PartitionID]*doctor.Summary) error {
	t := time.NewTimer(c.settle)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for _, st := range c.worker.Statuses() {
		before := first[st.Partition]
		if before == nil {
			continue
		}
		now, err := c.summary(ctx, st.Partition)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			r.Unexamined[uint16(st.Partition)] = err.Error()
			continue
		}
		kept := lasting(before, now)
		for i := range kept {
			if len(r.Problems) < doctor.MaxProblems {
				r.Problems = append(r.Problems, *diagnosis(&kept[i]))
			}
		}
		r.ProblemsTotal += len(kept)
		if len(before.Problems) < before.Total && len(now.Problems) < now.Total && len(kept) > 0 {
			r.ProblemsTotal += min(before.Total, now.Total) - doctor.MaxProblems // those beyond were not compared one by one
		}
	}
	return nil
}

// lasting are the problems of now that were there before.
func lasting(before, now *doctor.Summary) (kept []doctor.Finding) {
	type key struct{ id, target string }
	was := map[key]*doctor.Finding{}
	for i := range before.Problems {
		f := &before.Problems[i]
		was[key{f.ID.String(), f.Target}] = f
	}
	for i := range now.Problems {
		f := &now.Problems[i]
		if old := was[key{f.ID.String(), f.Target}]; old != nil && doctor.Same(old, f) {
			kept = append(kept, *f)
		}
	}
	return kept
}

// summary examines one partition, deadlocks included.
func (c *checkups) summary(ctx context.Context, p cluster.PartitionID) (*doctor.Summary, error) {
	v, done, err := c.view(ctx, p)
	if err != nil {
		return nil, err
	}
	defer done()
	s, err := v.Summary()
	if err != nil {
		return nil, err
	}
	for _, holder := range s.Contended {
		f, err := v.Invocation(holder)
		if err != nil || f == nil {
			continue // its lock was reported
		}
		_, cycle, err := doctor.Chain(f, func(id ident.InvocationID) (*doctor.Finding, error) { return c.find(ctx, v, id) })
		if err != nil {
			return nil, err
		}
		if cycle == holder && f.Problem == "" {
			f.Problem = "it waits for itself: what it called waits for the lock that it holds; only cancelling or killing it helps"
			s.Total++
			if len(s.Problems) < doctor.MaxProblems {
				s.Problems = append(s.Problems, *f)
			}
		}
	}
	return s, nil
}

// view is one moment of a partition; done must be called.
func (c *checkups) view(ctx context.Context, p cluster.PartitionID) (v *doctor.View, done func(), err error) {
	v, done, err = c.worker.Inspect(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	v.Peer = func(id ident.InvocationID) (*storepb.Invocation, bool) {
		st := c.worker.Store(id.PartitionKey())
		if st == nil {
			return nil, false
		}
		inv, err := st.Invocation(id)
		return inv, err == nil
	}
	v.Services = c.services
	return v, done, nil
}

// services says what an attempt lacks.
func (c *checkups) services(t *invocationpb.Target, dp ident.DeploymentID) string {
	s := c.schemas.Current()
	if !dp.IsZero() {
		if _, err := s.Deployment(dp); err != nil {
			return fmt.Sprintf("the deployment %s that it is pinned to is not registered any more: register it again, or pause it and resume it with another deployment", dp)
		}
		return ""
	}
	if s.Latest(t.GetService()) == nil {
		return fmt.Sprintf("no deployment serves %s: register one that does", t.GetService())
	}
	return ""
}

// find examines an invocation of any partition; v is a view that is open already.
func (c *checkups) find(ctx context.Context, v *doctor.View, id ident.InvocationID) (*doctor.Finding, error) {
	p := c.worker.PartitionOf(id.PartitionKey())
	if p == v.Partition {
		return v.Invocation(id)
	}
	other, done, err := c.view(ctx, p)
	if err != nil {
		return nil, nil // it is led elsewhere, or by nobody at the moment
	}
	defer done()
	return other.Invocation(id)
}

// Diagnose implements admin.Doctor.
func (c *checkups) Diagnose(ctx context.Context, id ident.InvocationID) (*admin.Diagnosis, error) {
	f, chain, err := c.look(ctx, id)
	if err != nil || f == nil {
		return nil, err
	}
	if f.Problem != "" { // see whether it stays
		t := time.NewTimer(c.settle)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		before := f
		if f, chain, err = c.look(ctx, id); err != nil || f == nil {
			return nil, err
		}
		if !doctor.Same(before, f) {
			f.Problem = ""
		}
	}
	d := diagnosis(f)
	for _, l := range chain {
		link := admin.Link{ID: l.ID.String(), Target: l.Target, Status: statusText(l)}
		if len(l.Waits) > 0 {
			link.Text = l.Waits[0].Text
		}
		d.Chain = append(d.Chain, link)
	}
	return d, nil
}

// look examines an invocation and those that it waits for.
func (c *checkups) look(ctx context.Context, id ident.InvocationID) (f *doctor.Finding, chain []*doctor.Finding, err error) {
	v, done, err := c.view(ctx, c.worker.PartitionOf(id.PartitionKey()))
	if err != nil {
		return nil, nil, err
	}
	defer done()
	f, err = v.Invocation(id)
	if err != nil || f == nil {
		return nil, nil, err
	}
	chain, cycle, err := doctor.Chain(f, func(id ident.InvocationID) (*doctor.Finding, error) { return c.find(ctx, v, id) })
	if err != nil {
		return nil, nil, err
	}
	if !cycle.IsZero() && f.Problem == "" {
		f.Problem = fmt.Sprintf("deadlock: it waits for %s, which waits for itself; only cancelling or killing one of them helps", cycle)
	}
	return f, chain[1:], nil
}

// statusText is the status of what was found, by the name that operators know.
func statusText(f *doctor.Finding) string {
	attempt := invokers.Status{}
	for _, w := range f.Waits {
		switch w.Reason {
		case doctor.Attempt:
			attempt.InFlight = true
		case doctor.Retry:
			attempt.RetryCount = 1
		}
	}
	return statusOf(&storepb.Invocation{Status: f.Status}, attempt, true)
}

func diagnosis(f *doctor.Finding) *admin.Diagnosis {
	d := &admin.Diagnosis{Target: f.Target, Needs: f.Needs, Problem: f.Problem}
	if !f.ID.IsZero() {
		d.ID = f.ID.String()
	}
	if f.Status != storepb.Invocation_FREE {
		d.Status = statusText(f)
	}
	if !f.Since.IsZero() {
		d.Since = &f.Since
	}
	for i := range f.Waits {
		w := &f.Waits[i]
		a := admin.Wait{Reason: string(w.Reason), Text: w.Text}
		if !w.On.IsZero() {
			a.Invocation = w.On.String()
		}
		if !w.Due.IsZero() {
			due := w.Due.UTC()
			a.Due = &due
		}
		d.Waits = append(d.Waits, a)
	}
	return d
}

// startCheckups begins the regular checkups.
func (n *Node) startCheckups(schemas interface{ Current() *schema.Schema }, w *worker.Worker) *checkups {
	c := &checkups{worker: w, schemas: schemas, log: n.log.With("component", "doctor"), settle: checkupSettle}
	c.register(n.registry)
	ctx, cancel := context.WithCancelCause(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { c.run(ctx) })
	n.onStop("checkups", func(context.Context) error {
		cancel(errStopping)
		wg.Wait()
		return nil
	})
	return c
}

var errStopping = errors.New("the node is stopping")
