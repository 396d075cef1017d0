// Command bench measures Perdure, and another server beside it when there is one.
//
// Without -servers it measures a Perdure built from this module; if an executable of the other server is found (in the
// environment variable RESTATE_SERVER, below node_modules/.bin, or in PATH as restate-server), both are measured in turn.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"perdure/integration/bench"
	"perdure/integration/harness"
)

// short are the workloads that run unless -all or -only asks for others.
const short = "^(startup|greet-c1|greet-c64|greet-c256|counter-c64|steps5-c32|send-c32)$"

func main() {
	o := bench.Options{Progress: os.Stderr, Vars: map[string]string{}}
	servers := flag.String("servers", "", "one or two server definitions with a comma (names or files; default: perdure, and restate if it is found)")
	all := flag.Bool("all", false, "all workloads, not only the usual ones")
	list := flag.Bool("list", false, "list the workloads and end")
	flag.StringVar(&o.Only, "only", "", "run only the workloads that match this regular expression")
	flag.StringVar(&o.Skip, "skip", "", "leave out the workloads that match this regular expression")
	flag.StringVar(&o.Out, "out", "", "directory for results.md and results.json")
	flag.StringVar(&o.Work, "work", "", "directory for data and logs, on the disk to be measured (default: a temporary one)")
	flag.IntVar(&o.Rounds, "rounds", 3, "rounds")
	flag.DurationVar(&o.Duration, "d", 5*time.Second, "measured window of a load")
	flag.Uint64Var(&o.Ops, "ops", 0, "end a load after so many operations instead of after -d, without warm-up")
	flag.DurationVar(&o.Warmup, "warmup", 2*time.Second, "warm-up before it")
	flag.Float64Var(&o.Rate, "rate", 200, "rate of the open-loop workloads; choose one that both servers sustain")
	flag.IntVar(&o.Suspended, "k", 20_000, "suspended invocations of that workload")
	flag.DurationVar(&o.Lead, "k-lead", time.Minute, "when they are due, after the first was sent; 100,000 need some minutes")
	flag.DurationVar(&o.Soak, "soak", 10*time.Minute, "how long the soak workload runs, at -rate")
	flag.IntVar(&o.Backlog, "backlog", 5000, "pending invocations at the kill in the recovery workload")
	flag.IntVar(&o.Nodes, "nodes", 1, "nodes of the cluster workloads; 1 leaves them out")
	flag.BoolVar(&o.RequestResponse, "rr", false, "serve the endpoint over HTTP/1.1 in request/response mode")
	flag.StringVar(&o.ServerCPUs, "server-cpus", "", "pin the server to these CPUs (taskset)")
	flag.StringVar(&o.EndpointCPUs, "endpoint-cpus", "", "pin the endpoint to these CPUs (taskset)")
	flag.BoolVar(&o.KeepLogs, "keep-logs", false, "keep the servers' logs")
	flag.Parse()
	if *list {
		for _, w := range bench.Workloads(o) {
			fmt.Printf("%-20s %s\n", w[0], w[1])
		}
		return
	}
	if o.Only == "" && !*all {
		o.Only = short
	}
	o.Servers = choose(*servers, o.Vars)
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(o bench.Options) error {
	defer harness.Cleanup()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	res, err := bench.Run(ctx, o)
	if res != nil {
		res.Write(os.Stdout)
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// choose returns the definitions to measure and sets the variables that the second one needs.
func choose(servers string, vars map[string]string) []string {
	if servers != "" {
		return strings.Split(servers, ",")
	}
	other := findOther()
	if other == "" {
		fmt.Fprintln(os.Stderr, "no restate-server found (set RESTATE_SERVER, or npm install @restatedev/restate-server): measuring perdure alone")
		return []string{"perdure"}
	}
	vars["RESTATE_SERVER"] = other
	return []string{"restate", "perdure"}
}

func findOther() string {
	candidates := []string{os.Getenv("RESTATE_SERVER")}
	if local, err := filepath.Abs("node_modules/.bin/restate-server"); err == nil {
		candidates = append(candidates, local)
	}
	if found, err := exec.LookPath("restate-server"); err == nil {
		candidates = append(candidates, found)
	}
	for _, c := range candidates {
		if c == "" {
			continue
		}
		if _, err := os.Stat(c); err == nil {
			return unwrap(c)
		}
	}
	return ""
}

// unwrap returns the executable behind a script that npm installs: its own process would count as the server's.
func unwrap(path string) string {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return path
	}
	// …/@restatedev/restate-server/lib/index.js → …/@restatedev/restate-server-<os>-<arch>/bin/restate-server
	scope := filepath.Dir(filepath.Dir(filepath.Dir(real)))
	found, err := filepath.Glob(filepath.Join(scope, "restate-server-*", "bin", "restate-server"))
	if err != nil || len(found) != 1 {
		return path
	}
	return found[0]
}
