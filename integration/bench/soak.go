package bench

import (
	"bufio"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"perdure/integration/bench/load"
	"perdure/integration/harness"
	"perdure/integration/proc"
)

// soakConfig lets go of what is not needed any more within half a minute, and uses few partitions so that each of them is
// flushed and its log trimmed many times.
var soakConfig = map[string]string{
	"DEFAULT_NUM_PARTITIONS":        "4",
	"DEFAULT_JOURNAL_RETENTION":     "10s",
	"DEFAULT_IDEMPOTENCY_RETENTION": "10s",
	"WORKER__CLEANUP_INTERVAL":      "1s",
	"WORKER__TRIM_DELAY_INTERVAL":   "10s",
}

// growing is by how much a figure may be higher in the last third of a soak than in the second before it is noted: more
// than the noise of garbage collection and compaction. Memory and disk of a store rise and fall with its memtables, so the
// thirds should be some minutes long.
const growing = 20 // percent

// soak runs a mixed load at a fixed rate for long, and compares what the server needs in the second and in the last third:
// the first third fills caches and retention.
func soak() acase {
	return acase{"soak", "a mixed load at a fixed rate for long, short retention: what grows from the second to the last third", 1, func(b *bench, d *harness.Def) (Metrics, error) {
		r, err := b.configured(d, 1, soakConfig)
		if err != nil {
			return nil, err
		}
		defer r.stop()
		out := Metrics{}
		p := load.Params{Keys: 1000, N: 3, Size: 100, Ms: 50, Conns: 256, RunID: strconv.FormatInt(time.Now().UnixNano(), 36), Base: 1}
		w := load.All["mixed"]
		inst := w.Make(p)
		m := r.meter()
		stop := r.watch(b.Soak / 200)
		res := load.Run(load.Config{Addrs: r.c.Ingresses(), Conns: p.Conns, Rate: b.Rate, Duration: b.Soak, Gen: inst.Gen, Check: inst.Check})
		samples := stop()
		m.stop(out, float64(res.AllOps)*w.PerOp(p))
		out["throughput"], out["errors"], out["wrong"] = res.Throughput, float64(res.Errors), 0
		lat(out, res, "")
		if res.Errors > 0 {
			b.res.note(d.Name, "soak", fmt.Sprintf("%d errors %v: %s", res.Errors, res.ErrKinds, res.FirstErr))
		}
		for _, g := range []struct {
			name, growth string
			of           func(*sample) float64
		}{
			{"RSS", "RSS growth", func(s *sample) float64 { return s.rss }},
			{"heap", "heap growth", func(s *sample) float64 { return s.heap }},
			{"goroutines", "goroutine growth", func(s *sample) float64 { return s.goroutines }},
			{"disk", "disk growth", func(s *sample) float64 { return s.disk }},
			{"open files", "open file growth", func(s *sample) float64 { return s.files }},
		} {
			early, late := mean(samples[len(samples)/3:len(samples)*2/3], g.of), mean(samples[len(samples)*2/3:], g.of)
			if early == 0 {
				continue // this server does not tell
			}
			out[g.name+" early"], out[g.name+" late"], out[g.growth] = early, late, 100*(late-early)/early
			if out[g.growth] > growing {
				b.res.note(d.Name, "soak", fmt.Sprintf("%s grew by %.0f %%: %s", g.name, out[g.growth], sketch(samples, g.of)))
			}
		}
		return out, nil
	}}
}

// sample is what a server uses at a moment: MiB and counts.
type sample struct{ rss, heap, goroutines, disk, files float64 }

// watch takes samples until stop is called, which waits for the last and returns them.
func (r *run) watch(every time.Duration) (stop func() []sample) {
	quit, done := make(chan struct{}), make(chan []sample, 1)
	go func() {
		var all []sample
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				all = append(all, r.sample())
			case <-quit:
				done <- all
				return
			}
		}
	}()
	return func() []sample {
		close(quit)
		return <-done
	}
}

func (r *run) sample() sample {
	u := r.c.Usage()
	_, app := proc.Disk(r.c.Dirs()...)
	s := sample{rss: mib(u.RSS), disk: mib(app), files: float64(u.FDs)}
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", r.c.Nodes[0].Fabric))
	if err != nil {
		return s
	}
	defer resp.Body.Close()
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		name, v, _ := strings.Cut(sc.Text(), " ")
		f, err := strconv.ParseFloat(v, 64)
		switch {
		case err != nil:
		case name == "go_goroutines":
			s.goroutines = f
		case name == "go_memstats_heap_inuse_bytes":
			s.heap = f / (1 << 20)
		}
	}
	return s
}

func mean(ss []sample, of func(*sample) float64) (sum float64) {
	for i := range ss {
		sum += of(&ss[i])
	}
	return sum / float64(max(len(ss), 1))
}

// sketch shows twenty points of a curve.
func sketch(ss []sample, of func(*sample) float64) string {
	var out []string
	for i := range 20 {
		if at := i * len(ss) / 20; at < len(ss) {
			out = append(out, strconv.FormatFloat(of(&ss[at]), 'f', 0, 64))
		}
	}
	return strings.Join(out, " ")
}
