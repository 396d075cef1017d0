package harness

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"perdure/integration/proc"
)

// Def is a server definition. In every string ${NAME} is replaced, in this
// order: the built-in names below, -var name=value given on the command
// line, the environment.
//
//	${dir}            the node's data directory (fresh for every run)
//	${node}           the node's number, from 1
//	${nodes}          how many nodes there are
//	${first}          "true" for node 1, "false" for the others
//	${ingress} ${admin} ${fabric} ${spare}      the node's ports
//	${ingress.2} …    another node's ports
type Def struct {
	// Extends names another definition (a file beside this one) that this one
	// adds to and overrides.
	Extends string            `json:"extends"`
	Name    string            `json:"name"`
	Binary  string            `json:"binary"`
	Args    []string          `json:"args"`
	Env     map[string]string `json:"env"`
	Single  Variant           `json:"single"`
	Cluster Variant           `json:"cluster"`
	// ConfigPrefix starts the names of the environment variables that set the server's options: option WORKER__CLEANUP_INTERVAL
	// is set by ConfigPrefix + that name.
	ConfigPrefix string `json:"config_prefix"`
	// Health paths; a node is up when all answer 200.
	IngressHealth string `json:"ingress_health"`
	AdminHealth   string `json:"admin_health"`
	// Notes goes into the report (durability settings and the like).
	Notes string `json:"notes"`
}

// Variant adds to a definition for one shape of deployment.
type Variant struct {
	Args []string          `json:"args"`
	Env  map[string]string `json:"env"`
	// After is run once all nodes listen (e.g. to provision the cluster).
	After []string `json:"after"`
	// Leader prints the number of the node to kill in the fail-over test (the
	// last integer of its output). Without it the first node is killed.
	Leader []string `json:"leader"`
	// Settled is run until it exits 0 before a cluster counts as ready.
	Settled []string `json:"settled"`
}

//go:embed defs/*.json
var defs embed.FS

// Load reads a definition: the name of one that comes with the package ("perdure", "restate") or a file ending in .json.
func Load(file string) (*Def, error) {
	d := &Def{IngressHealth: "/restate/health", AdminHealth: "/health"}
	if err := d.read(file, 0); err != nil {
		return nil, fmt.Errorf("read server definition: %w", err)
	}
	if d.Name == "" || d.Binary == "" {
		return nil, fmt.Errorf("server definition %s: name and binary are needed", file)
	}
	return d, nil
}

func readDef(file string) ([]byte, error) {
	if filepath.Ext(file) != ".json" {
		return defs.ReadFile("defs/" + file + ".json")
	}
	return os.ReadFile(file)
}

func (d *Def) read(file string, depth int) error {
	b, err := readDef(file)
	if err != nil {
		return err
	}
	var ext struct {
		Extends string `json:"extends"`
	}
	if err := json.Unmarshal(b, &ext); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if ext.Extends != "" {
		if depth > 5 {
			return fmt.Errorf("%s: extends too deep", file)
		}
		base := ext.Extends
		if filepath.Ext(base) == ".json" {
			base = filepath.Join(filepath.Dir(file), base)
		}
		if err := d.read(base, depth+1); err != nil {
			return err
		}
	}
	dec := json.NewDecoder(bytes.NewReader(b)) // maps are added to, the rest replaced
	dec.DisallowUnknownFields()
	if err := dec.Decode(d); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// Cluster is a running server of one or more nodes.
type Cluster struct {
	Def   *Def
	Nodes []*Node
	Vars  map[string]string
	// Config are server options by name without prefix; they win over the definition's environment.
	Config map[string]string
	Pre    []string // command prefix, e.g. taskset -c 0
	v      Variant
}

// Node is one process.
type Node struct {
	N                             int
	Dir                           string
	Ingress, Admin, Fabric, Spare int
	Log                           string
	cmd                           *exec.Cmd
	done                          chan struct{}
}

// Pid is the process' id, 0 when it does not run.
func (n *Node) Pid() int {
	if n.cmd == nil || n.cmd.Process == nil {
		return 0
	}
	select {
	case <-n.done:
		return 0
	default:
		return n.cmd.Process.Pid
	}
}

// New lays out a cluster under dir with ports from base on.
func New(d *Def, nodes int, dir string, base int, vars map[string]string) *Cluster {
	c := &Cluster{Def: d, Vars: vars, v: d.Single}
	if nodes > 1 {
		c.v = d.Cluster
	}
	for i := 1; i <= nodes; i++ {
		b := base + (i-1)*4
		c.Nodes = append(c.Nodes, &Node{N: i, Dir: filepath.Join(dir, "n"+strconv.Itoa(i)), Log: filepath.Join(dir, "n"+strconv.Itoa(i)+".log"),
			Ingress: b, Admin: b + 1, Fabric: b + 2, Spare: b + 3})
	}
	return c
}

var varRE = regexp.MustCompile(`\$\{([^}]*)\}`)

func (c *Cluster) expand(n *Node, s string) (string, error) {
	var missing error
	out := varRE.ReplaceAllStringFunc(s, func(m string) string {
		k := m[2 : len(m)-1]
		port := func(n *Node, what string) (string, bool) {
			switch what {
			case "ingress":
				return strconv.Itoa(n.Ingress), true
			case "admin":
				return strconv.Itoa(n.Admin), true
			case "fabric":
				return strconv.Itoa(n.Fabric), true
			case "spare":
				return strconv.Itoa(n.Spare), true
			case "dir":
				return n.Dir, true
			}
			return "", false
		}
		switch k {
		case "node":
			return strconv.Itoa(n.N)
		case "nodes":
			return strconv.Itoa(len(c.Nodes))
		case "first":
			return strconv.FormatBool(n.N == 1)
		}
		if v, ok := port(n, k); ok {
			return v
		}
		if what, i, ok := strings.Cut(k, "."); ok {
			if j, err := strconv.Atoi(i); err == nil && j >= 1 && j <= len(c.Nodes) {
				if v, ok := port(c.Nodes[j-1], what); ok {
					return v
				}
			}
		}
		if v, ok := c.Vars[k]; ok {
			return v
		}
		if v, ok := os.LookupEnv(k); ok {
			return v
		}
		missing = fmt.Errorf("${%s} is not set (give -var %s=… or set it in the environment)", k, k)
		return ""
	})
	return out, missing
}

// Binary is the path of the server's executable.
func (c *Cluster) Binary() (string, error) {
	b, err := c.expand(c.Nodes[0], c.Def.Binary)
	if err != nil {
		return "", err
	}
	return exec.LookPath(b)
}

// StartNode starts one node's process without waiting for it.
func (c *Cluster) StartNode(n *Node) error {
	bin, err := c.expand(n, c.Def.Binary)
	if err != nil {
		return err
	}
	argv := append([]string(nil), c.Pre...)
	argv = append(argv, bin)
	for _, a := range append(append([]string(nil), c.Def.Args...), c.v.Args...) {
		a, err := c.expand(n, a)
		if err != nil {
			return err
		}
		argv = append(argv, a)
	}
	env := Environ(c.Def.ConfigPrefix)
	for _, m := range []map[string]string{c.Def.Env, c.v.Env} {
		for k, v := range m {
			v, err := c.expand(n, v)
			if err != nil {
				return err
			}
			env = append(env, k+"="+v)
		}
	}
	for k, v := range c.Config {
		env = append(env, c.Def.ConfigPrefix+k+"="+v)
	}
	if err := os.MkdirAll(n.Dir, 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(n.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = env, log, log, n.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.cmd, n.done = cmd, make(chan struct{})
	go func(done chan struct{}) { cmd.Wait(); close(done) }(n.done)
	return nil
}

// Start starts all nodes and waits until they are healthy and settled.
func (c *Cluster) Start(timeout time.Duration) error {
	for _, n := range c.Nodes {
		if err := c.StartNode(n); err != nil {
			return err
		}
	}
	return c.Ready(timeout)
}

// Ready waits until all running nodes are healthy, and settled.
func (c *Cluster) Ready(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	if len(c.v.After) > 0 {
		for _, n := range c.Nodes { // its ports must listen first
			for {
				conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", n.Fabric), time.Second)
				if err == nil {
					conn.Close()
					break
				}
				if time.Now().After(deadline) {
					return fmt.Errorf("%s: node %d does not listen", c.Def.Name, n.N)
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
		if out, err := c.Command(c.v.After); err != nil {
			return fmt.Errorf("%s: %v: %s", c.Def.Name, err, out)
		}
	}
	for _, n := range c.Nodes {
		if n.Pid() == 0 && n.cmd != nil {
			return fmt.Errorf("%s: node %d ended; see %s", c.Def.Name, n.N, n.Log)
		}
		if err := c.WaitHealthy(n, time.Until(deadline)); err != nil {
			return err
		}
	}
	for len(c.v.Settled) > 0 {
		out, err := c.Command(c.v.Settled)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not settled: %v: %s", c.Def.Name, err, out)
		}
		time.Sleep(200 * time.Millisecond)
	}
	return nil
}

// Command runs one of the definition's commands.
func (c *Cluster) Command(argv []string) (string, error) {
	var a []string
	for _, s := range argv {
		s, err := c.expand(c.Nodes[0], s)
		if err != nil {
			return "", err
		}
		a = append(a, s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, a[0], a[1:]...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), err
}

// Leader is the node that the definition says leads most, else the first.
func (c *Cluster) Leader() (*Node, error) {
	if len(c.v.Leader) == 0 {
		return c.Nodes[0], nil
	}
	out, err := c.Command(c.v.Leader)
	if err != nil {
		return nil, fmt.Errorf("leader command: %v: %s", err, out)
	}
	nums := regexp.MustCompile(`\d+`).FindAllString(out, -1)
	if len(nums) == 0 {
		return nil, fmt.Errorf("leader command printed no number: %s", out)
	}
	i, _ := strconv.Atoi(nums[len(nums)-1])
	if i < 1 || i > len(c.Nodes) {
		return nil, fmt.Errorf("leader command named node %d", i)
	}
	return c.Nodes[i-1], nil
}

var health = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// WaitHealthy waits until a node's health checks answer 200.
func (c *Cluster) WaitHealthy(n *Node, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for _, u := range []string{
		fmt.Sprintf("http://127.0.0.1:%d%s", n.Ingress, c.Def.IngressHealth),
		fmt.Sprintf("http://127.0.0.1:%d%s", n.Admin, c.Def.AdminHealth),
	} {
		for {
			resp, err := health.Get(u)
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode == 200 {
					break
				}
			}
			if n.Pid() == 0 {
				return fmt.Errorf("%s: node %d ended; see %s", c.Def.Name, n.N, n.Log)
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s: node %d not healthy after %v at %s; see %s", c.Def.Name, n.N, timeout, u, n.Log)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// Register registers a service endpoint with the admin API.
func (c *Cluster) Register(uri string, http11 bool) error {
	b, _ := json.Marshal(map[string]any{"uri": uri, "use_http_11": http11, "force": true})
	var last error
	for try := 0; try < 500; try++ {
		resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/deployments", c.Nodes[0].Admin), "application/json", bytes.NewReader(b))
		if err == nil {
			msg, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
			resp.Body.Close()
			if resp.StatusCode/100 == 2 {
				return nil
			}
			err = fmt.Errorf("register: %s: %s", resp.Status, msg)
		}
		last = err
		time.Sleep(20 * time.Millisecond)
	}
	return last
}

// WaitGreet asks one node's ingress until Greeter answers.
func (c *Cluster) WaitGreet(n *Node, timeout time.Duration) error {
	hc := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	deadline := time.Now().Add(timeout)
	for {
		resp, err := hc.Post(fmt.Sprintf("http://127.0.0.1:%d/Greeter/greet", n.Ingress), "application/octet-stream", strings.NewReader("hello"))
		if err == nil {
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == 200 && string(b) == "hello" {
				return nil
			}
			err = fmt.Errorf("%s: %.200s", resp.Status, b)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: no answer from node %d: %w", c.Def.Name, n.N, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Ingresses are the host:port of all nodes.
func (c *Cluster) Ingresses() (s []string) {
	for _, n := range c.Nodes {
		s = append(s, fmt.Sprintf("127.0.0.1:%d", n.Ingress))
	}
	return
}

// Pids are the processes now running.
func (c *Cluster) Pids() (p []int) {
	for _, n := range c.Nodes {
		if pid := n.Pid(); pid != 0 {
			p = append(p, pid)
		}
	}
	return
}

// Dirs are the nodes' data directories.
func (c *Cluster) Dirs() (s []string) {
	for _, n := range c.Nodes {
		s = append(s, n.Dir)
	}
	return
}

// Usage is what all nodes have used.
func (c *Cluster) Usage() proc.Usage { return proc.Of(c.Pids()...) }

// Kill kills a node and its children at once (kill -9).
func (n *Node) Kill() {
	if pid := n.Pid(); pid != 0 {
		for _, p := range proc.Tree(pid) {
			syscall.Kill(p, syscall.SIGKILL)
		}
		<-n.done
	}
}

// Stop ends all nodes: politely first, hard after grace.
func (c *Cluster) Stop(grace time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	c.StopContext(ctx)
}

// StopContext ends all nodes: politely first, hard once ctx is done.
func (c *Cluster) StopContext(ctx context.Context) {
	if ctx.Err() == nil {
		for _, n := range c.Nodes {
			if pid := n.Pid(); pid != 0 {
				syscall.Kill(pid, syscall.SIGTERM)
			}
		}
	}
	for _, n := range c.Nodes {
		if n.cmd == nil {
			continue
		}
		select {
		case <-n.done:
		case <-ctx.Done():
			n.Kill()
		}
	}
}

// Wipe removes the nodes' data.
func (c *Cluster) Wipe() error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, os.RemoveAll(n.Dir))
	}
	return errors.Join(errs...)
}
