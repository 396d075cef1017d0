// Command lambdaemu runs the emulator of AWS Lambda as a process of its own. It is a test tool.
//
//	lambdaemu -addr 127.0.0.1:26100 greeter=./greeter/bootstrap counter=./counter/bootstrap
//
// Each function gets version 1 and the alias live. Any number of name=bootstrap pairs of the same name makes more
// versions. The keys test/test may call everything and assume arn:aws:iam::123456789012:role/invoke.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"perdure/integration/lambdaemu"
)

type options struct {
	addr, region, account string
	timeout, latency      time.Duration
	concurrency           int
	faults                float64
	seed                  uint64
}

func main() {
	var o options
	flag.StringVar(&o.addr, "addr", "127.0.0.1:26100", "loopback address to listen on")
	flag.StringVar(&o.region, "region", "us-east-1", "region of the functions")
	flag.StringVar(&o.account, "account", "123456789012", "account of the functions")
	flag.DurationVar(&o.timeout, "timeout", 30*time.Second, "time limit of a call")
	flag.DurationVar(&o.latency, "latency", 0, "delay added to each call")
	flag.IntVar(&o.concurrency, "concurrency", 10, "calls of one function that may run at once")
	flag.Float64Var(&o.faults, "faults", 0, "share of calls that go wrong, 0 to 1: throttled, refused, dropped before and after, crashed")
	flag.Uint64Var(&o.seed, "seed", 1, "seed of the faults")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "lambdaemu: name at least one function as name=path-of-bootstrap")
		os.Exit(2)
	}
	if err := run(o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "lambdaemu:", err)
		os.Exit(1)
	}
}

func run(o options, functions []string) error {
	e, err := lambdaemu.Start(lambdaemu.Config{Address: o.addr, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	defer e.Close()
	role := "arn:aws:iam::" + o.account + ":role/invoke"
	e.AddUser(lambdaemu.User{AccessKeyID: "test", SecretAccessKey: "test", Invoke: []string{"*"}, AssumeRole: []string{"*"}})
	e.AddRole(lambdaemu.Role{ARN: role, Principals: []string{"*"}, Invoke: []string{"*"}, TagSession: true})
	made := map[string]int{}
	for _, f := range functions {
		name, bootstrap, ok := strings.Cut(f, "=")
		if !ok {
			return fmt.Errorf("%q is not name=path-of-bootstrap", f)
		}
		if bootstrap, err = filepath.Abs(bootstrap); err != nil {
			return fmt.Errorf("find the bootstrap of %s: %w", name, err)
		}
		arn := fmt.Sprintf("arn:aws:lambda:%s:%s:function:%s", o.region, o.account, name)
		if made[name] == 0 {
			if err := e.CreateFunction(lambdaemu.Function{ARN: arn, Timeout: o.timeout, Concurrency: o.concurrency}); err != nil {
				return err
			}
		}
		qualified, err := e.Publish(arn, bootstrap)
		if err != nil {
			return err
		}
		made[name]++
		if _, err := e.SetAlias(arn, "live", made[name]); err != nil {
			return err
		}
		fmt.Println(qualified)
	}
	e.SetFault(faults(o))
	fmt.Printf("AWS_ENDPOINT_URL=%s AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_REGION=%s\n", e.URL(), o.region)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
	return nil
}

// faults draws a fault for each call. Which call gets which depends on their order, so a seed replays a sequence only.
func faults(o options) func(lambdaemu.Call) lambdaemu.Fault {
	draws := make(chan [2]float64)
	go func() { // ends with the process
		r := rand.New(rand.NewPCG(o.seed, o.seed))
		for {
			draws <- [2]float64{r.Float64(), r.Float64()}
		}
	}()
	return func(lambdaemu.Call) lambdaemu.Fault {
		f := lambdaemu.Fault{Delay: o.latency}
		d := <-draws
		if d[0] >= o.faults {
			return f
		}
		switch int(d[1] * 5) {
		case 0:
			f.Throttle, f.RetryAfter = true, time.Second
		case 1:
			f.Internal = true
		case 2:
			f.DropBefore = true
		case 3:
			f.DropAfter = true
		default:
			f.Crash = true
		}
		return f
	}
}
