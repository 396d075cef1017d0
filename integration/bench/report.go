package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
)

// Metrics are the figures of one run.
type Metrics map[string]float64

// unit of a metric and whether more is better (+1), less is better (-1), or
// neither (0).
type unit struct {
	unit string
	good int
}

var units = map[string]unit{
	"throughput": {"op/s", 1}, "accepted": {"op/s", 1}, "drain": {"ms", -1},
	"p50": {"ms", -1}, "p90": {"ms", -1}, "p99": {"ms", -1}, "p99.9": {"ms", -1}, "max": {"ms", -1},
	"p50 over sleep": {"ms", -1}, "p99 over sleep": {"ms", -1},
	"errors": {"", -1}, "wrong": {"", -1},
	"server CPU /1k": {"s", -1}, "endpoint CPU /1k": {"s", 0}, "load CPU /1k": {"s", 0},
	"written /1k": {"KiB", -1}, "write calls /1k": {"", -1}, "device flushes /1k": {"", 0}, "device written /1k": {"KiB", 0}, "disk /1k": {"KiB", -1}, "disk allocated /1k": {"KiB", -1},
	"peak RSS": {"MiB", -1}, "peak anonymous RSS": {"MiB", -1},
	"foreign CPU": {"%", 0}, "idle CPU": {"%", 0},
	"cold start to healthy": {"ms", -1}, "cold start to first answer": {"ms", -1}, "warm start to healthy": {"ms", -1}, "warm start to first answer": {"ms", -1},
	"graceful stop": {"ms", -1}, "binary size": {"MiB", -1}, "idle RSS": {"MiB", -1}, "idle anonymous RSS": {"MiB", -1},
	"idle CPU of server": {"% of a core", -1}, "idle written": {"KiB/s", -1}, "threads": {"", -1}, "open files": {"", -1},
	"empty disk": {"MiB", -1}, "empty disk allocated": {"MiB", -1},
	"sends accepted": {"op/s", 1}, "time to park all": {"s", -1}, "RSS with K suspended": {"MiB", -1}, "anonymous RSS with K suspended": {"MiB", -1},
	"restart with K suspended": {"ms", -1}, "first answer with K suspended": {"ms", -1}, "RSS after restart": {"MiB", -1}, "RSS per suspended after restart": {"KiB", -1},
	"RSS per suspended": {"KiB", -1}, "CPU with K suspended": {"% of a core", -1}, "all fired after": {"ms", -1}, "lateness p50": {"ms", -1}, "lateness p99": {"ms", -1},
	"RSS early": {"MiB", 0}, "RSS late": {"MiB", 0}, "RSS growth": {"%", -1}, "heap early": {"MiB", 0}, "heap late": {"MiB", 0}, "heap growth": {"%", -1},
	"goroutines early": {"", 0}, "goroutines late": {"", 0}, "goroutine growth": {"%", -1}, "disk early": {"MiB", 0}, "disk late": {"MiB", 0}, "disk growth": {"%", -1},
	"open files early": {"", 0}, "open files late": {"", 0}, "open file growth": {"%", -1},
	"to healthy": {"ms", -1}, "to first answer": {"ms", -1}, "to backlog done": {"ms", -1}, "attempts repeated": {"", 0},
	"cluster start to healthy": {"ms", -1}, "cluster start to first answer": {"ms", -1},
	"p50 before": {"ms", -1}, "p99 before": {"ms", -1}, "p50 after": {"ms", -1}, "p99 after": {"ms", -1}, "max after": {"ms", -1},
	"longest gap, any key": {"ms", -1}, "longest gap, worst key": {"ms", -1}, "keys that stalled": {"%", -1}, "attempts retried": {"", 0},
	"killed node back": {"ms", -1},
	"effects lost":     {"", -1}, "effects doubled": {"", -1},
}

// order in which Metrics are shown.
var order = func() map[string]int {
	o := map[string]int{}
	for i, k := range []string{
		"throughput", "accepted", "drain", "p50", "p90", "p99", "p99.9", "max", "p50 over sleep", "p99 over sleep",
		"cold start to healthy", "cold start to first answer", "graceful stop", "warm start to healthy", "warm start to first answer",
		"binary size", "idle RSS", "idle anonymous RSS", "idle CPU of server", "idle written", "threads", "open files", "empty disk", "empty disk allocated",
		"sends accepted", "time to park all", "RSS with K suspended", "anonymous RSS with K suspended", "RSS per suspended", "restart with K suspended", "first answer with K suspended", "RSS after restart", "RSS per suspended after restart", "CPU with K suspended", "all fired after", "lateness p50", "lateness p99",
		"RSS early", "RSS late", "RSS growth", "heap early", "heap late", "heap growth", "goroutines early", "goroutines late", "goroutine growth", "disk early", "disk late", "disk growth", "open files early", "open files late", "open file growth",
		"to healthy", "to first answer", "to backlog done", "attempts repeated",
		"cluster start to healthy", "cluster start to first answer", "p50 before", "p99 before", "longest gap, any key", "longest gap, worst key", "keys that stalled", "p50 after", "p99 after", "max after", "killed node back", "attempts retried", "effects lost", "effects doubled",
		"errors", "wrong", "server CPU /1k", "endpoint CPU /1k", "load CPU /1k", "written /1k", "write calls /1k", "device flushes /1k", "device written /1k", "disk /1k", "disk allocated /1k", "peak RSS", "peak anonymous RSS", "foreign CPU", "idle CPU",
	} {
		o[k] = i + 1
	}
	return o
}()

// Results collects every run.
type Results struct {
	mu    sync.Mutex
	Names []string                        `json:"servers"`
	Info  map[string]any                  `json:"info"`
	Runs  map[string]map[string][]Metrics `json:"runs"` // case -> server -> rounds
	Order []string                        `json:"order"`
	Desc  map[string]string               `json:"desc"`
	Notes []string                        `json:"notes"`

	progress io.Writer
}

func (r *Results) add(c acase, srv string, m Metrics) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Runs[c.name] == nil {
		r.Runs[c.name] = map[string][]Metrics{}
		r.Order = append(r.Order, c.name)
		r.Desc[c.name] = c.desc
	}
	r.Runs[c.name][srv] = append(r.Runs[c.name][srv], m)
}

func (r *Results) note(srv, c, s string) {
	r.mu.Lock()
	r.Notes = append(r.Notes, fmt.Sprintf("%s, %s: %s", srv, c, s))
	r.mu.Unlock()
	fmt.Fprintf(r.progress, "    note: %s: %s\n", srv, s)
}

type stat struct {
	med, lo, hi float64
	n           int
}

func statOf(ms []Metrics, k string) (s stat) {
	var v []float64
	for _, m := range ms {
		if x, ok := m[k]; ok {
			v = append(v, x)
		}
	}
	if len(v) == 0 {
		return
	}
	sort.Float64s(v)
	s = stat{v[len(v)/2], v[0], v[len(v)-1], len(v)}
	if len(v)%2 == 0 {
		s.med = (v[len(v)/2-1] + v[len(v)/2]) / 2
	}
	return
}

func fnum(x float64) string {
	a := math.Abs(x)
	switch {
	case x == math.Trunc(x) && a < 1e6:
		return fmt.Sprintf("%.0f", x)
	case a >= 100:
		return fmt.Sprintf("%.0f", x)
	case a >= 10:
		return fmt.Sprintf("%.1f", x)
	case a >= 0.1:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.4f", x)
}

// spread is (max − min) / median.
func (s stat) spread() string {
	if s.n < 2 {
		return "–"
	}
	if s.med == 0 {
		return fnum(s.lo) + "–" + fnum(s.hi)
	}
	return fmt.Sprintf("%.0f %%", 100*(s.hi-s.lo)/math.Abs(s.med))
}

// headline Metrics go into the short table at the top.
var headline = []string{"throughput", "p50", "p99", "server CPU /1k", "written /1k", "peak RSS",
	"cold start to first answer", "warm start to first answer", "idle RSS", "binary size",
	"RSS with K suspended", "all fired after", "to first answer", "to backlog done", "longest gap, any key", "longest gap, worst key", "effects lost", "effects doubled"}

// Write writes the report as Markdown.
func (r *Results) Write(w io.Writer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.Names) == 0 {
		return
	}
	a, b := r.Names[0], ""
	if len(r.Names) > 1 {
		b = r.Names[1]
	}
	fmt.Fprintf(w, "# %s", a)
	if b != "" {
		fmt.Fprintf(w, " (A) and %s (B), side by side", b)
	}
	fmt.Fprintf(w, "\n\n")
	keys := make([]string, 0, len(r.Info))
	for k := range r.Info {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Fprintf(w, "- %s: %v\n", k, r.Info[k])
	}
	fmt.Fprintf(w, "\nRatio is B/A of the medians; ↑ more is better, ↓ less is better; a ratio in B's favour is bold. Spread is (max − min)/median over the rounds.\n")

	r.writeTargets(w)

	table := func(only map[string]bool) {
		if b == "" {
			fmt.Fprintf(w, "\n| workload | metric | unit | median | spread |\n|---|---|---|---:|---:|\n")
		} else {
			fmt.Fprintf(w, "\n| workload | metric | unit | A median | B median | ratio B/A | spread A | spread B |\n|---|---|---|---:|---:|---:|---:|---:|\n")
		}
		for _, c := range r.Order {
			set := map[string]bool{}
			for _, ms := range r.Runs[c] {
				for _, m := range ms {
					for k := range m {
						set[k] = true
					}
				}
			}
			var ks []string
			for k := range set {
				if only == nil || only[k] {
					ks = append(ks, k)
				}
			}
			sort.Slice(ks, func(i, j int) bool { return order[ks[i]] < order[ks[j]] })
			for _, k := range ks {
				u := units[k]
				arrow := map[int]string{1: " ↑", -1: " ↓", 0: ""}[u.good]
				sa := statOf(r.Runs[c][a], k)
				if b == "" {
					fmt.Fprintf(w, "| %s | %s%s | %s | %s | %s |\n", c, k, arrow, u.unit, fnum(sa.med), sa.spread())
					continue
				}
				sb := statOf(r.Runs[c][b], k)
				ratio, av, bv := "–", "–", "–"
				if sa.n > 0 {
					av = fnum(sa.med)
				}
				if sb.n > 0 {
					bv = fnum(sb.med)
				}
				if sa.n > 0 && sb.n > 0 && sa.med != 0 {
					q := sb.med / sa.med
					ratio = fmt.Sprintf("%.2f×", q)
					if u.good > 0 && q > 1.02 || u.good < 0 && q < 0.98 {
						ratio = "**" + ratio + "**"
					}
				}
				fmt.Fprintf(w, "| %s | %s%s | %s | %s | %s | %s | %s | %s |\n", c, k, arrow, u.unit, av, bv, ratio, sa.spread(), sb.spread())
			}
		}
	}
	hl := map[string]bool{}
	for _, k := range headline {
		hl[k] = true
	}
	fmt.Fprintf(w, "\n## Headline\n")
	table(hl)
	fmt.Fprintf(w, "\n## Everything\n")
	table(nil)
	fmt.Fprintf(w, "\n## Workloads\n\n")
	for _, c := range r.Order {
		fmt.Fprintf(w, "- %s: %s\n", c, r.Desc[c])
	}
	if len(r.Notes) > 0 {
		fmt.Fprintf(w, "\n## Notes\n\n")
		for _, n := range r.Notes {
			fmt.Fprintf(w, "- %s\n", n)
		}
	}
}

func (r *Results) save(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r.mu.Lock()
	b, err := json.MarshalIndent(r, "", " ")
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), b, 0o644); err != nil {
		return err
	}
	var s strings.Builder
	r.Write(&s)
	return os.WriteFile(filepath.Join(dir, "results.md"), []byte(s.String()), 0o644)
}
