package bench

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"perdure/integration/bench/load"
	"perdure/integration/harness"
)

// acase is one row group of the report: it is run for every server in turn,
// each time on a fresh one.
type acase struct {
	name  string
	desc  string
	nodes int
	run   func(b *bench, d *harness.Def) (Metrics, error)
}

// opsLimit ends a load of Options.Ops operations at a server that hangs.
const opsLimit = 2 * time.Minute

// loadCase runs a workload in a closed loop (rate 0) or an open one.
func loadCase(name, workload string, nodes, conns int, open bool, h2c bool, p load.Params) acase {
	w := load.All[workload]
	how := fmt.Sprintf("closed loop, %d in flight", conns)
	if open {
		how = "open loop at the given rate"
	}
	if h2c {
		how += ", h2c"
	}
	return acase{name, w.Desc + "; " + how, nodes, func(b *bench, d *harness.Def) (Metrics, error) {
		r, err := b.fresh(d, nodes)
		if err != nil {
			return nil, err
		}
		defer r.stop()
		p := p
		p.Conns, p.RunID, p.Base = conns, strconv.FormatInt(time.Now().UnixNano(), 36), 1
		inst := w.Make(p)
		cfg := load.Config{Addrs: r.c.Ingresses(), Conns: conns, H2C: h2c, Warmup: b.Warmup, Duration: b.Duration, Gen: inst.Gen, Check: inst.Check}
		if open {
			cfg.Rate = b.Rate
		}
		if b.Ops > 0 {
			cfg.MaxOps, cfg.Warmup, cfg.Duration = b.Ops, 0, opsLimit
		}
		m := r.meter()
		t0 := time.Now()
		res := load.Run(cfg)
		if n := res.Issued + res.Backlog; n < b.Ops {
			return nil, fmt.Errorf("only %d of %d operations in %v, %d errors %v: %s", n, b.Ops, cfg.Duration, res.Errors, res.ErrKinds, res.FirstErr)
		}
		out := Metrics{}
		var verr error
		if strings.HasSuffix(workload, "send") {
			end := time.Now()
			verr = inst.Verify(r.verifyEnv(), res)
			s, err := r.stats()
			if err != nil {
				return nil, err
			}
			last := time.UnixMicro(int64(s["sink_last_us"].(float64)))
			out["throughput"] = float64(res.AllOps) / last.Sub(t0).Seconds()
			out["accepted"] = res.Throughput
			out["drain"] = max(0, ms(last.Sub(end)))
		} else {
			out["throughput"] = res.Throughput
		}
		m.stop(out, float64(res.AllOps)*w.PerOp(p))
		if inst.Verify != nil && !strings.HasSuffix(workload, "send") {
			verr = inst.Verify(r.verifyEnv(), res)
		}
		lat(out, res, "")
		if workload == "sleep" {
			out["p50 over sleep"] = out["p50"] - float64(p.Ms)
			out["p99 over sleep"] = out["p99"] - float64(p.Ms)
		}
		out["errors"] = float64(res.Errors)
		out["wrong"] = 0
		if verr != nil {
			out["wrong"] = 1
			b.res.note(d.Name, name, verr.Error())
		}
		if res.Errors > 0 {
			b.res.note(d.Name, name, fmt.Sprintf("%d errors %v: %s", res.Errors, res.ErrKinds, res.FirstErr))
		}
		return out, nil
	}}
}

func lat(out Metrics, res *load.Result, pre string) {
	s := res.Latency.Summary()
	out[pre+"p50"], out[pre+"p90"], out[pre+"p99"], out[pre+"p99.9"], out[pre+"max"] = s.P50/1e3, s.P90/1e3, s.P99/1e3, s.P999/1e3, s.Max/1e3
}

func (b *bench) cases() []acase {
	P := func(keys, n, size, ms int) load.Params {
		return load.Params{Keys: keys, N: n, Size: size, Ms: ms}
	}
	cs := []acase{
		startup(),
		loadCase("greet-c1", "greet", 1, 1, false, false, P(0, 0, 0, 0)),
		loadCase("greet-c64", "greet", 1, 64, false, false, P(0, 0, 0, 0)),
		loadCase("greet-c256", "greet", 1, 256, false, false, P(0, 0, 0, 0)),
		loadCase("greet-h2c-c64", "greet", 1, 64, false, true, P(0, 0, 0, 0)),
		loadCase("greet-open", "greet", 1, 512, true, false, P(0, 0, 0, 0)),
		loadCase("greet-64KiB-c16", "greet", 1, 16, false, false, P(0, 0, 64<<10, 0)),
		loadCase("greet-idem-c64", "greet-idem", 1, 64, false, false, P(0, 0, 0, 0)),
		loadCase("counter-c1", "counter", 1, 1, false, false, P(1000, 0, 0, 0)),
		loadCase("counter-c64", "counter", 1, 64, false, false, P(1000, 0, 0, 0)),
		loadCase("counter-open", "counter", 1, 512, true, false, P(1000, 0, 0, 0)),
		loadCase("counter-hot-c16", "counter-hot", 1, 16, false, false, P(1, 0, 0, 0)),
		loadCase("store-64KiB-c16", "store", 1, 16, false, false, P(200, 0, 64<<10, 0)),
		loadCase("steps5-c1", "steps", 1, 1, false, false, P(0, 5, 32, 0)),
		loadCase("steps5-c32", "steps", 1, 32, false, false, P(0, 5, 32, 0)),
		loadCase("steps50-c4", "steps", 1, 4, false, false, P(0, 50, 32, 0)),
		loadCase("chain3-c32", "chain", 1, 32, false, false, P(0, 3, 0, 0)),
		loadCase("fan10-c8", "fan", 1, 8, false, false, P(0, 10, 0, 0)),
		loadCase("send-c32", "send", 1, 32, false, false, P(0, 0, 0, 0)),
		loadCase("fan-send10-c8", "fan-send", 1, 8, false, false, P(0, 10, 0, 0)),
		loadCase("awakeable-c32", "awakeable", 1, 32, false, false, P(0, 0, 0, 0)),
		loadCase("sleep50-c64", "sleep", 1, 64, false, false, P(0, 0, 0, 50)),
		suspended(),
		soak(),
		recovery("recovery", 1),
		crash("crash", 1),
	}
	if b.Nodes > 1 {
		cs = append(cs,
			loadCase("cluster-greet-c64", "greet", b.Nodes, 64, false, false, P(0, 0, 0, 0)),
			loadCase("cluster-counter-c64", "counter", b.Nodes, 64, false, false, P(1000, 0, 0, 0)),
			loadCase("cluster-steps5-c32", "steps", b.Nodes, 32, false, false, P(0, 5, 32, 0)),
			crash("cluster-failover", b.Nodes),
			recovery("cluster-recovery", b.Nodes),
		)
	}
	return cs
}
