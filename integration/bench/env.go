package bench

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"perdure/integration/bench/load"
	"perdure/integration/harness"
	"perdure/integration/proc"
)

// bench is a comparison being run.
type bench struct {
	Options
	defs     []*harness.Def
	endpoint string // the executable
	runs     int
	res      *Results
}

// run is one server with its endpoint, freshly started.
type run struct {
	b   *bench
	c   *harness.Cluster
	ep  *exec.Cmd
	ctl string
	uri string
	dir string
	// keep leaves the logs behind.
	keep bool
	// started is when the server's process was started.
	started   time.Time
	health    time.Duration
	firstDone time.Duration
}

// fresh starts an endpoint and a server on empty directories.
func (b *bench) fresh(d *harness.Def, nodes int) (*run, error) { return b.configured(d, nodes, nil) }

// configured is fresh with options of the server, by name without prefix.
func (b *bench) configured(d *harness.Def, nodes int, config map[string]string) (*run, error) {
	b.runs++
	dir := filepath.Join(b.Work, fmt.Sprintf("%03d-%s", b.runs, d.Name))
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	ports, err := harness.FreePorts(2 + 4*nodes)
	if err != nil {
		return nil, err
	}
	r := &run{b: b, dir: dir, ctl: fmt.Sprintf("127.0.0.1:%d", ports[1]), uri: fmt.Sprintf("http://127.0.0.1:%d", ports[0])}
	args := []string{b.endpoint, "-addr", fmt.Sprintf("127.0.0.1:%d", ports[0]), "-control", r.ctl, fmt.Sprintf("-rr=%v", b.RequestResponse)}
	if b.EndpointCPUs != "" {
		args = append([]string{"taskset", "-c", b.EndpointCPUs}, args...)
	}
	log, err := os.Create(filepath.Join(dir, "endpoint.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r.ep = exec.Command(args[0], args[1:]...)
	r.ep.Stdout, r.ep.Stderr = log, log
	r.ep.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := r.ep.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(b.StartTimeout); ; {
		if _, err := load.Stats(r.ctl); err == nil {
			break
		} else if time.Now().After(deadline) {
			r.stop()
			return nil, fmt.Errorf("start the endpoint: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	vars, err := b.vars(d)
	if err != nil {
		r.stop()
		return nil, err
	}
	r.c = harness.New(d, nodes, dir, 0, vars)
	r.c.Config = config
	for i, n := range r.c.Nodes {
		p := ports[2+4*i:]
		n.Ingress, n.Admin, n.Fabric, n.Spare = p[0], p[1], p[2], p[3]
	}
	if b.ServerCPUs != "" {
		r.c.Pre = []string{"taskset", "-c", b.ServerCPUs}
	}
	r.started = time.Now()
	if err := r.c.Start(b.StartTimeout); err != nil {
		r.keep = true // the error names the log
		r.stop()
		return nil, err
	}
	r.health = time.Since(r.started)
	if err := r.c.Register(r.uri, b.RequestResponse); err != nil {
		r.stop()
		return nil, err
	}
	for _, n := range r.c.Nodes {
		if err := r.c.WaitGreet(n, 60*time.Second); err != nil {
			r.stop()
			return nil, err
		}
	}
	r.firstDone = time.Since(r.started)
	time.Sleep(b.Settle)
	if _, err := http.Post("http://"+r.ctl+"/reset", "", nil); err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

func (r *run) stats() (map[string]any, error) { return load.Stats(r.ctl) }

func (r *run) gate(closed bool) error {
	resp, err := http.Post(fmt.Sprintf("http://%s/gate?closed=%v", r.ctl, closed), "", nil)
	if err == nil {
		resp.Body.Close()
	}
	return err
}

func (r *run) verifyEnv() *load.VerifyEnv {
	return &load.VerifyEnv{Addrs: r.c.Ingresses(), Stats: r.stats}
}

// stop kills everything and removes the data.
func (r *run) stop() {
	if r.c != nil {
		r.c.Stop(0)
	}
	if r.ep != nil && r.ep.Process != nil {
		r.ep.Process.Kill()
		r.ep.Wait()
	}
	if r.b.KeepLogs || r.keep {
		if r.c != nil {
			r.c.Wipe()
		}
		return
	}
	os.RemoveAll(r.dir)
}

// meter measures what everything costs between two points.
type meter struct {
	r          *run
	srv, ep    proc.Usage
	self       time.Duration
	busy       time.Duration
	total      time.Duration
	alloc, app int64
	dev        proc.Device
	peak       *proc.Peak
}

func (r *run) meter() *meter {
	m := &meter{r: r, srv: r.c.Usage(), ep: proc.Of(r.ep.Process.Pid), self: proc.Self()}
	m.busy, m.total = proc.Machine()
	m.dev = proc.DeviceOf(r.dir)
	m.alloc, m.app = proc.Disk(r.c.Dirs()...)
	m.peak = proc.Watch(250*time.Millisecond, r.c.Pids)
	return m
}

// stop fills in the resource Metrics; n is the number of invocations run.
func (m *meter) stop(out Metrics, n float64) {
	rss, anon := m.peak.Stop()
	srv, ep, self := m.r.c.Usage(), proc.Of(m.r.ep.Process.Pid), proc.Self()
	busy, total := proc.Machine()
	dev := proc.DeviceOf(m.r.dir)
	alloc, app := proc.Disk(m.r.c.Dirs()...)
	k := n / 1000
	out["peak RSS"] = mib(rss)
	out["peak anonymous RSS"] = mib(anon)
	if k > 0 {
		out["server CPU /1k"] = (srv.CPU - m.srv.CPU).Seconds() / k
		out["endpoint CPU /1k"] = (ep.CPU - m.ep.CPU).Seconds() / k
		out["load CPU /1k"] = (self - m.self).Seconds() / k
		out["written /1k"] = kib(srv.Write-m.srv.Write) / k
		out["write calls /1k"] = float64(srv.Syscw-m.srv.Syscw) / k
		if dev.OK {
			out["device flushes /1k"] = float64(dev.Flushes-m.dev.Flushes) / k
			out["device written /1k"] = float64(dev.Sectors-m.dev.Sectors) / 2 / k
		}
		out["disk /1k"] = kib(app-m.app) / k
		out["disk allocated /1k"] = kib(alloc-m.alloc) / k
	}
	ours := srv.CPU - m.srv.CPU + ep.CPU - m.ep.CPU + self - m.self
	if t := total - m.total; t > 0 {
		out["foreign CPU"] = max(0, 100*(busy-m.busy-ours).Seconds()/t.Seconds())
		out["idle CPU"] = 100 * (t - (busy - m.busy)).Seconds() / t.Seconds()
	}
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
func kib(n int64) float64 { return float64(n) / (1 << 10) }
func ms(d time.Duration) float64 {
	return float64(d) / 1e6
}

// vars are the values for a definition's variables: those given, and the executable if it is to be built here.
func (b *bench) vars(d *harness.Def) (map[string]string, error) {
	vars := maps.Clone(b.Vars)
	if vars == nil {
		vars = map[string]string{}
	}
	if d.Binary == "${PERDURE_BINARY}" && vars["PERDURE_BINARY"] == "" {
		bin, err := harness.Binary()
		if err != nil {
			return nil, err
		}
		vars["PERDURE_BINARY"] = bin
	}
	return vars, nil
}
