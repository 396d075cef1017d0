package bench

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"perdure/integration/bench/hist"
	"perdure/integration/bench/load"
	"perdure/integration/harness"
	"perdure/integration/proc"
)

// startup measures cold start, what an idle server costs, and a warm restart.
func startup() acase {
	return acase{"startup", "cold start on an empty directory, idle for a while, stop, start again", 1, func(b *bench, d *harness.Def) (Metrics, error) {
		r, err := b.fresh(d, 1)
		if err != nil {
			return nil, err
		}
		defer r.stop()
		out := Metrics{"cold start to healthy": ms(r.health), "cold start to first answer": ms(r.firstDone)}
		if bin, err := r.c.Binary(); err == nil {
			if fi, err := os.Stat(bin); err == nil {
				out["binary size"] = mib(fi.Size())
			}
		}
		time.Sleep(2 * time.Second)
		u0, t0 := r.c.Usage(), time.Now()
		time.Sleep(b.Duration / 2)
		u1 := r.c.Usage()
		out["idle RSS"], out["idle anonymous RSS"] = mib(u1.RSS), mib(u1.Anon)
		out["idle CPU of server"] = 100 * (u1.CPU - u0.CPU).Seconds() / time.Since(t0).Seconds()
		out["idle written"] = kib(u1.Write-u0.Write) / time.Since(t0).Seconds()
		out["threads"], out["open files"] = float64(u1.Threads), float64(u1.FDs)
		alloc, app := proc.Disk(r.c.Dirs()...)
		out["empty disk"], out["empty disk allocated"] = mib(app), mib(alloc)
		t0 = time.Now()
		r.c.Stop(60 * time.Second)
		out["graceful stop"] = ms(time.Since(t0))
		t0 = time.Now()
		if err := r.c.Start(b.StartTimeout); err != nil {
			return nil, err
		}
		out["warm start to healthy"] = ms(time.Since(t0))
		if err := r.c.WaitGreet(r.c.Nodes[0], 60*time.Second); err != nil {
			return nil, err
		}
		out["warm start to first answer"] = ms(time.Since(t0))
		return out, nil
	}}
}

// sendAll posts n one-way calls and returns how long accepting them took.
func sendAll(addrs []string, conns, n int, gen func(i int) load.Op) (time.Duration, error) {
	t0 := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	for w := 0; w < conns; w++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := load.NewH1(addrs[w%len(addrs)])
			defer c.Close()
			for {
				i := int(next.Add(1) - 1)
				if i >= n {
					return
				}
				op := gen(i)
				st, body, err := c.Do(&op, 60*time.Second)
				if err == nil && st/100 != 2 {
					err = fmt.Errorf("send: status %d: %.200s", st, body)
				}
				if err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
					return
				}
			}
		}()
	}
	wg.Wait()
	return time.Since(t0), first
}

func num(m map[string]any, k string) int { f, _ := m[k].(float64); return int(f) }

// suspended parks K invocations in a durable sleep that ends for all of them at one moment, and measures what parked ones
// cost, how long a server that was killed takes to start with them, and how fast all wake.
func suspended() acase {
	return acase{"suspended", "K invocations asleep, all due at the same moment", 1, func(b *bench, d *harness.Def) (Metrics, error) {
		r, err := b.fresh(d, 1)
		if err != nil {
			return nil, err
		}
		defer r.stop()
		out := Metrics{}
		u0 := r.c.Usage()
		m := r.meter()
		due := time.Now().Add(b.Lead)
		took, err := sendAll(r.c.Ingresses(), 64, b.Suspended, func(i int) load.Op {
			return load.Op{Path: "/Sleeper/park/send", Body: []byte(fmt.Sprintf(`{"until":%d,"name":"s%d"}`, due.UnixMilli(), i))}
		})
		if err != nil {
			return nil, err
		}
		out["sends accepted"] = float64(b.Suspended) / took.Seconds()
		// Parked: all have been started once and no attempt is open.
		for {
			s, err := r.stats()
			if err != nil {
				return nil, err
			}
			if num(s, "sleepers_started") == b.Suspended && num(s, "active") == 0 {
				break
			}
			if time.Until(due) < time.Second {
				return nil, fmt.Errorf("suspended: only %d of %d started and %d still open when due; give more time with -k-lead", num(s, "sleepers_started"), b.Suspended, num(s, "active"))
			}
			time.Sleep(100 * time.Millisecond)
		}
		out["time to park all"] = time.Since(due.Add(-b.Lead)).Seconds()
		time.Sleep(min(2*time.Second, time.Until(due)/2))
		u1 := r.c.Usage()
		out["RSS with K suspended"], out["anonymous RSS with K suspended"] = mib(u1.RSS), mib(u1.Anon)
		out["RSS per suspended"] = kib(u1.RSS-u0.RSS) / float64(b.Suspended)
		if err := r.restartSuspended(out, u0, b.Suspended, due); err != nil {
			return nil, err
		}
		c0, t0 := r.c.Usage().CPU, time.Now()
		time.Sleep(time.Until(due) - 200*time.Millisecond)
		if el := time.Since(t0); el > time.Second {
			out["CPU with K suspended"] = 100 * (r.c.Usage().CPU - c0).Seconds() / el.Seconds()
		}
		deadline := due.Add(5 * time.Minute)
		for {
			s, err := r.stats()
			if err != nil {
				return nil, err
			}
			if num(s, "fired") >= b.Suspended && num(s, "active") == 0 {
				out["all fired after"] = ms(time.UnixMicro(int64(num(s, "fired_last_us"))).Sub(due))
				late := s["late"].(map[string]any)
				out["lateness p50"], out["lateness p99"] = late["p50_us"].(float64)/1e3, late["p99_us"].(float64)/1e3
				if n := num(s, "fired"); n > b.Suspended {
					b.res.note(d.Name, "suspended", fmt.Sprintf("%d wake-ups for %d sleepers", n, b.Suspended))
				}
				break
			}
			if time.Now().After(deadline) {
				out["wrong"] = 1
				b.res.note(d.Name, "suspended", fmt.Sprintf("only %d of %d had fired after 5 minutes", num(s, "fired"), b.Suspended))
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		m.stop(out, float64(b.Suspended))
		if _, ok := out["wrong"]; !ok {
			out["wrong"] = 0
		}
		return out, nil
	}}
}

// restartSuspended kills a server that has n invocations asleep, starts it again and measures how long that takes and what
// they cost then.
func (r *run) restartSuspended(out Metrics, idle proc.Usage, n int, due time.Time) error {
	for _, n := range r.c.Nodes {
		n.Kill()
	}
	t0 := time.Now()
	if err := r.c.Start(r.b.StartTimeout); err != nil {
		return err
	}
	out["restart with K suspended"] = ms(time.Since(t0))
	if err := r.c.WaitGreet(r.c.Nodes[0], time.Minute); err != nil {
		return err
	}
	out["first answer with K suspended"] = ms(time.Since(t0))
	if time.Until(due) < 3*time.Second {
		return fmt.Errorf("suspended: restarted %s before they are due; give more time with -k-lead", time.Until(due))
	}
	time.Sleep(min(2*time.Second, time.Until(due)/2))
	u := r.c.Usage()
	out["RSS after restart"], out["RSS per suspended after restart"] = mib(u.RSS), kib(u.RSS-idle.RSS)/float64(n)
	return nil
}

// recovery kills the whole server while a backlog is pending, starts it again
// and measures the time to the first answer and to the end of the backlog.
func recovery(name string, nodes int) acase {
	desc := "kill -9 with a backlog of pending virtual-object invocations, start again"
	if nodes > 1 {
		desc = "kill -9 of all nodes at once with a backlog of pending virtual-object invocations, start them again"
	}
	return acase{name, desc, nodes, func(b *bench, d *harness.Def) (Metrics, error) {
		r, err := b.fresh(d, nodes)
		if err != nil {
			return nil, err
		}
		defer r.stop()
		out := Metrics{}
		if err := r.gate(true); err != nil {
			return nil, err
		}
		keys := max(b.Backlog/5, 1)
		took, err := sendAll(r.c.Ingresses(), 64, b.Backlog, func(i int) load.Op {
			return load.Op{Path: "/Gated/g" + strconv.Itoa(i%keys) + "/put/send", Body: strconv.AppendInt(nil, int64(i+1), 10)}
		})
		if err != nil {
			return nil, err
		}
		out["sends accepted"] = float64(b.Backlog) / took.Seconds()
		time.Sleep(500 * time.Millisecond)
		for _, n := range r.c.Nodes {
			n.Kill()
		}
		time.Sleep(300 * time.Millisecond)
		if err := r.gate(false); err != nil {
			return nil, err
		}
		t0 := time.Now()
		for _, n := range r.c.Nodes {
			if err := r.c.StartNode(n); err != nil {
				return nil, err
			}
		}
		for _, n := range r.c.Nodes {
			if err := r.c.WaitHealthy(n, b.StartTimeout); err != nil {
				return nil, err
			}
		}
		out["to healthy"] = ms(time.Since(t0))
		if err := r.c.WaitGreet(r.c.Nodes[0], 60*time.Second); err != nil {
			return nil, err
		}
		out["to first answer"] = ms(time.Since(t0))
		deadline := time.Now().Add(5 * time.Minute)
		for {
			s, err := r.stats()
			if err != nil {
				return nil, err
			}
			if num(s, "done_distinct") >= b.Backlog {
				out["to backlog done"] = ms(time.UnixMicro(int64(num(s, "done_last_us"))).Sub(t0))
				out["attempts repeated"] = float64(num(s, "done_repeated"))
				break
			}
			if time.Now().After(deadline) {
				b.res.note(d.Name, name, fmt.Sprintf("LOST: only %d of %d done 5 minutes after the restart", num(s, "done_distinct"), b.Backlog))
				out["wrong"] = 1
				return out, nil
			}
			time.Sleep(20 * time.Millisecond)
		}
		out["wrong"] = 0
		var sum int64
		for try := 0; try < 20; try++ { // the last effects may be committed a little later
			if sum, err = load.SumCounters(r.c.Ingresses(), "Gated", "g", keys); err != nil {
				return nil, err
			}
			if sum == int64(b.Backlog) {
				return out, nil
			}
			time.Sleep(200 * time.Millisecond)
		}
		out["wrong"] = 1
		b.res.note(d.Name, name, fmt.Sprintf("state says %d effects of %d sends", sum, b.Backlog))
		return out, nil
	}}
}

// crash kills the server (of one node: the server, started again at once; of
// several: the node that leads most, left dead) while an open-loop load with
// idempotency keys runs, every operation being retried until it succeeds.
func crash(name string, nodes int) acase {
	desc := "kill -9 under open-loop load, started again at once; every operation is retried with its idempotency key"
	if nodes > 1 {
		desc = "kill -9 of the leading node under open-loop load, left dead; every operation is retried on the other nodes with its idempotency key"
	}
	return acase{name, desc, nodes, func(b *bench, d *harness.Def) (Metrics, error) {
		r, err := b.fresh(d, nodes)
		if err != nil {
			return nil, err
		}
		defer r.stop()
		out := Metrics{}
		if nodes > 1 {
			out["cluster start to healthy"], out["cluster start to first answer"] = ms(r.health), ms(r.firstDone)
		}
		const keys = 45
		var mu sync.Mutex
		var last [keys]time.Time
		var worst [keys]time.Duration
		before, after := hist.New(), hist.New()
		run := strconv.FormatInt(time.Now().UnixNano(), 36)
		dur := max(3*b.Duration, 20*time.Second)
		start := time.Now()
		var killed time.Time
		var victim *harness.Node
		killErr := make(chan error, 1)
		go func() {
			time.Sleep(b.Warmup + dur/4)
			n, err := r.c.Leader()
			if err != nil {
				killErr <- err
				return
			}
			mu.Lock()
			killed = time.Now()
			victim = n
			mu.Unlock()
			n.Kill()
			if nodes == 1 {
				killErr <- r.c.StartNode(n)
				return
			}
			b.res.note(d.Name, name, fmt.Sprintf("killed node %d after %.1f s", n.N, killed.Sub(start).Seconds()))
			killErr <- nil
		}()
		res := load.Run(load.Config{
			Addrs: r.c.Ingresses(), Conns: 4096, Rate: b.CrashRate, Warmup: b.Warmup, Duration: dur, Timeout: 5 * time.Second,
			Retry: true, RetryFor: 60 * time.Second,
			Gen: func(_ int, seq uint64) load.Op {
				return load.Op{Path: "/Counter/f" + strconv.FormatUint(seq%keys, 10) + "/add", Body: []byte("1"), Idem: run + "-" + strconv.FormatUint(seq, 36)}
			},
			Check: func(op *load.Op, st int, body []byte) error {
				if st != 200 {
					return fmt.Errorf("status %d: %.200s", st, body)
				}
				return nil
			},
			OnSuccess: func(op *load.Op, intended, end time.Time) {
				k := op.Seq % keys
				mu.Lock()
				defer mu.Unlock()
				switch {
				case !killed.IsZero() && end.After(killed):
					after.Record(end.Sub(intended))
					if g := end.Sub(last[k]); !last[k].IsZero() && g > worst[k] {
						worst[k] = g
					}
				case intended.Sub(start) > b.Warmup:
					before.Record(end.Sub(intended))
				}
				if end.After(last[k]) {
					last[k] = end
				}
			},
		})
		if err := <-killErr; err != nil {
			return nil, err
		}
		bs, as := before.Summary(), after.Summary()
		out["p50 before"], out["p99 before"] = bs.P50/1e3, bs.P99/1e3
		out["p50 after"], out["p99 after"], out["max after"] = as.P50/1e3, as.P99/1e3, as.Max/1e3
		out["longest gap, any key"] = ms(res.Gap)
		every := time.Duration(float64(keys) / b.CrashRate * float64(time.Second)) // between operations on one key
		var w time.Duration
		hit := 0
		for _, g := range worst {
			w = max(w, g)
			if g > every+500*time.Millisecond {
				hit++
			}
		}
		out["longest gap, worst key"] = ms(w)
		out["keys that stalled"] = 100 * float64(hit) / keys
		out["errors"] = float64(res.Errors)
		out["attempts retried"] = float64(res.Retries)
		// Effects, read from the nodes that live.
		var live []string
		for _, n := range r.c.Nodes {
			if n.Pid() != 0 {
				live = append(live, fmt.Sprintf("127.0.0.1:%d", n.Ingress))
			}
		}
		sum, err := load.SumCounters(live, "Counter", "f", keys)
		if err != nil {
			return nil, err
		}
		acked, unknown := int64(res.AllOps), int64(res.Errors)
		out["effects lost"] = float64(max(0, acked-sum))
		out["effects doubled"] = float64(max(0, sum-acked-unknown))
		out["wrong"] = out["effects lost"] + out["effects doubled"]
		for k, n := range res.ErrKinds {
			b.res.note(d.Name, name, fmt.Sprintf("%d attempts failed with %s", n, k))
		}
		if nodes > 1 {
			t0 := time.Now()
			if err := r.c.StartNode(victim); err != nil {
				return nil, err
			}
			err := r.c.WaitHealthy(victim, b.StartTimeout)
			if err == nil {
				err = r.c.WaitGreet(victim, 60*time.Second)
			}
			if err != nil {
				b.res.note(d.Name, name, "the killed node did not come back: "+err.Error())
			} else {
				out["killed node back"] = ms(time.Since(t0))
			}
		}
		return out, nil
	}}
}
