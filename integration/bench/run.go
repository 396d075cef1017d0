// Package bench measures servers side by side: every workload runs A, B, A, B, … each time on a freshly started server,
// a fresh endpoint and an empty directory, and the report gives medians, their ratio and their spread.
//
// A server is a definition of package harness, so the comparison knows nothing of any server's code. Answers and effects
// are checked in every run: "wrong" must be 0. "Foreign CPU" is what other processes used of the machine meanwhile;
// figures taken above some 5 % are not worth quoting.
package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"perdure/integration/harness"
)

// Options says what to measure and how. The zero value of a duration or count means its default.
type Options struct {
	// Servers are one or two definitions (names or files, see harness.Load).
	Servers []string
	// Vars are values for ${name} in the definitions.
	Vars map[string]string
	// Work is the directory for data and logs, on the disk to be measured. "" is a temporary one.
	Work string
	// Out is where results.md and results.json go; "" writes neither.
	Out string
	// Only and Skip choose workloads by name (regular expressions; empty: all, none).
	Only, Skip string
	// Rounds is how often each workload runs per server (default 3).
	Rounds int
	// Duration is the measured window of a load (default 10 s), Warmup the time before it (default 3 s), Settle the pause
	// after a start (default 1 s), StartTimeout how long a server may take to become healthy (default 1 min).
	Duration, Warmup, Settle, StartTimeout time.Duration
	// Ops ends a load after so many operations instead of after Duration, without Warmup, so that slow and fast machines do the
	// same work. A load that has not begun them all after 2 minutes fails. 0 leaves it to Duration.
	Ops uint64
	// Rate is that of the open-loop workloads, CrashRate that of the crash workload, per second (default 200, 90).
	Rate, CrashRate float64
	// Suspended is the number of invocations asleep in the suspended workload (default 20,000), all due Lead after the
	// first was sent (default 1 min). Backlog is the number pending at the kill in the recovery workload (default 5,000).
	Suspended int
	Lead      time.Duration
	Backlog   int
	// Soak is how long the soak workload runs (default 10 min), at Rate.
	Soak time.Duration
	// Nodes is the size of the cluster in the cluster workloads; below 2 there are none.
	Nodes int
	// RequestResponse serves the endpoint over HTTP/1.1 in request/response mode.
	RequestResponse bool
	// ServerCPUs and EndpointCPUs pin processes to CPUs (taskset's notation).
	ServerCPUs, EndpointCPUs string
	// KeepLogs leaves the servers' logs in Work.
	KeepLogs bool
	// Progress receives a line per run.
	Progress io.Writer
}

func (o *Options) fill() {
	if o.Rounds == 0 {
		o.Rounds = 3
	}
	for d, def := range map[*time.Duration]time.Duration{&o.Duration: 10 * time.Second, &o.Warmup: 3 * time.Second, &o.Settle: time.Second,
		&o.StartTimeout: time.Minute, &o.Lead: time.Minute, &o.Soak: 10 * time.Minute} {
		if *d == 0 {
			*d = def
		}
	}
	if o.Rate == 0 {
		o.Rate = 200
	}
	if o.CrashRate == 0 {
		o.CrashRate = 90
	}
	if o.Suspended == 0 {
		o.Suspended = 20_000
	}
	if o.Backlog == 0 {
		o.Backlog = 5000
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
}

// Workloads are the names and descriptions of all workloads that Options select.
func Workloads(o Options) [][2]string {
	o.fill()
	b := &bench{Options: o}
	var out [][2]string
	for _, c := range b.cases() {
		out = append(out, [2]string{c.name, c.desc})
	}
	return out
}

// ErrFailed is returned when a run did not come to an end. What did is in the results.
var ErrFailed = errors.New("some runs failed; see the notes")

// Run measures. It ends early, with what it has, when ctx is done.
func Run(ctx context.Context, o Options) (*Results, error) {
	o.fill()
	b := &bench{Options: o, res: &Results{Runs: map[string]map[string][]Metrics{}, Desc: map[string]string{}, progress: o.Progress}}
	if err := b.load(); err != nil {
		return nil, err
	}
	cleanup, err := b.prepare(ctx)
	if err != nil {
		return nil, err
	}
	defer cleanup()
	only, err := regexp.Compile(o.Only)
	if err != nil {
		return nil, fmt.Errorf("choose workloads: %w", err)
	}
	skip, err := regexp.Compile(o.Skip)
	if err != nil {
		return nil, fmt.Errorf("leave out workloads: %w", err)
	}
	failed := false
	start := time.Now()
	for _, c := range b.cases() {
		if !only.MatchString(c.name) || o.Skip != "" && skip.MatchString(c.name) {
			continue
		}
		for round := 1; round <= o.Rounds; round++ {
			for _, d := range b.defs {
				if ctx.Err() != nil {
					return b.res, context.Cause(ctx)
				}
				fmt.Fprintf(o.Progress, "%6.0fs %-20s round %d/%d %-12s ", time.Since(start).Seconds(), c.name, round, o.Rounds, d.Name)
				m, err := c.run(b, d)
				if err != nil {
					failed = true
					fmt.Fprintf(o.Progress, "FAILED: %v\n", err)
					b.res.note(d.Name, c.name, "FAILED: "+err.Error())
					continue
				}
				fmt.Fprintln(o.Progress, brief(m))
				b.res.add(c, d.Name, m)
			}
		}
		if err := b.res.save(o.Out); err != nil {
			return b.res, err
		}
	}
	if failed {
		return b.res, ErrFailed
	}
	return b.res, nil
}

func (b *bench) load() error {
	for _, name := range b.Servers {
		d, err := harness.Load(name)
		if err != nil {
			return err
		}
		b.defs = append(b.defs, d)
	}
	switch {
	case len(b.defs) == 0:
		return errors.New("no server to measure")
	case len(b.defs) > 2:
		return errors.New("at most two servers can be compared")
	case len(b.defs) == 2 && b.defs[0].Name == b.defs[1].Name:
		b.defs[1].Name += "'"
	}
	b.res.Info = b.info()
	for _, d := range b.defs {
		b.res.Names = append(b.res.Names, d.Name)
		if d.Notes != "" {
			b.res.Info["settings of "+d.Name] = d.Notes
		}
	}
	return nil
}

// prepare makes the working directory and builds the endpoint.
func (b *bench) prepare(ctx context.Context) (cleanup func(), err error) {
	cleanup = func() {}
	if b.Work == "" {
		t, err := os.MkdirTemp("", "perdure-bench-")
		if err != nil {
			return nil, fmt.Errorf("make the working directory: %w", err)
		}
		b.Work = t
		cleanup = func() { os.RemoveAll(t) }
	}
	if b.Work, err = filepath.Abs(b.Work); err != nil {
		return nil, err
	}
	root, err := harness.ModuleRoot()
	if err != nil {
		return nil, err
	}
	b.endpoint = filepath.Join(b.Work, "endpoint")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", b.endpoint, "./integration/bench/cmd/endpoint")
	cmd.Dir = root
	if msg, err := cmd.CombinedOutput(); err != nil {
		cleanup()
		return nil, fmt.Errorf("build the endpoint: %w: %s", err, msg)
	}
	return cleanup, nil
}

func brief(m Metrics) string {
	var s []string
	for _, k := range append(append([]string(nil), headline...), "foreign CPU", "wrong") {
		if v, ok := m[k]; ok {
			s = append(s, fmt.Sprintf("%s %s %s", k, fnum(v), units[k].unit))
		}
	}
	return strings.Join(s, ", ")
}

func (b *bench) info() map[string]any {
	read := func(f string) string {
		x, err := os.ReadFile(f)
		if err != nil {
			return "unknown"
		}
		return string(bytes.TrimSpace(x))
	}
	cpu := "unknown CPU"
	for _, l := range strings.Split(read("/proc/cpuinfo"), "\n") {
		if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == "model name" {
			cpu = strings.TrimSpace(v)
			break
		}
	}
	window := fmt.Sprintf("%v after %v of warm-up", b.Duration, b.Warmup)
	if b.Ops > 0 {
		window = fmt.Sprintf("%d operations", b.Ops)
	}
	return map[string]any{
		"when":                      time.Now().UTC().Format(time.RFC3339),
		"machine":                   fmt.Sprintf("%d × %s, kernel %s", runtime.NumCPU(), cpu, read("/proc/sys/kernel/osrelease")),
		"windows":                   fmt.Sprintf("%d rounds of %s; open loops at %g/s, crash at %g/s; %d suspended, backlog %d", b.Rounds, window, b.Rate, b.CrashRate, b.Suspended, b.Backlog),
		"pinning":                   fmt.Sprintf("server %q, endpoint %q", b.ServerCPUs, b.EndpointCPUs),
		"load average at the start": read("/proc/loadavg"),
	}
}
