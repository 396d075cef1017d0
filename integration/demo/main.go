// Command demo starts a Perdure node and the example services, registers and invokes them, and keeps both running until
// it is interrupted. It is what make run runs. Started again on the same data, it goes on where it was.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

// demo is what to start, and where.
type demo struct {
	server, example      string // programs
	data                 string // directory
	ingress, admin, node string // host:port
	services             string // host:port of the example
	out                  io.Writer
	patience             time.Duration // for each step of getting ready
}

func main() {
	d := &demo{out: os.Stdout, patience: time.Minute}
	flag.StringVar(&d.server, "server", "bin/perdure", "the server's `program`")
	flag.StringVar(&d.example, "example", "bin/example", "the example services' `program`")
	flag.StringVar(&d.data, "data", "perdure-demo", "`directory` for the server's data; not the default of perdure server, which is the user's")
	flag.StringVar(&d.ingress, "ingress", "127.0.0.1:8080", "`host:port` for callers")
	flag.StringVar(&d.admin, "admin", "127.0.0.1:9070", "`host:port` for operators")
	flag.StringVar(&d.node, "node", "127.0.0.1:5122", "`host:port` of the node port")
	flag.StringVar(&d.services, "services", "127.0.0.1:9080", "`host:port` of the example services")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := d.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run is the whole demo. It returns nil when ctx ended it, and only after both programs have ended.
func (d *demo) run(ctx context.Context) error {
	if err := d.portsFree(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	example, err := start(cancel, d.example, "-addr", d.services)
	if err != nil {
		return err
	}
	defer example.stop()
	server, err := start(cancel, d.server, "server", "--base-dir", d.data, "--node-name", "demo", "--bind-address", d.node,
		"--ingress-bind-address", d.ingress, "--admin-bind-address", d.admin, "--log-format", "compact", "--log-filter", "warn")
	if err != nil {
		return err
	}
	defer server.stop() // first, so that the services can answer what is in progress
	if err := d.show(ctx); err != nil {
		if ctx.Err() != nil {
			return ended(ctx)
		}
		return err
	}
	<-ctx.Done()
	return ended(ctx)
}

// ended is why ctx ended, or nil if a signal was the reason.
func ended(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// portsFree gives a clear message before two programs write theirs into each other.
func (d *demo) portsFree() error {
	for _, p := range []struct{ addr, flag string }{{d.ingress, "-ingress"}, {d.admin, "-admin"}, {d.node, "-node"}, {d.services, "-services"}} {
		ln, err := net.Listen("tcp", p.addr)
		if err != nil {
			return fmt.Errorf("%w: stop the program that has the port, or give another: make run RUNFLAGS='%s 127.0.0.1:PORT'", err, p.flag)
		}
		ln.Close()
	}
	return nil
}

// show registers and invokes the example, and says how to go on.
func (d *demo) show(ctx context.Context) error {
	if err := d.ready(ctx, "http://"+d.admin+"/health", "http://"+d.ingress+"/restate/health"); err != nil {
		return err
	}
	if err := d.connected(ctx); err != nil {
		return err
	}
	registration := fmt.Sprintf(`{"uri":"http://%s"}`, d.services)
	if _, err := d.post(ctx, "http://"+d.admin+"/deployments", registration); err != nil {
		return fmt.Errorf("register the example: %w", err)
	}
	answer, err := d.invoke(ctx)
	if err != nil {
		return fmt.Errorf("invoke the example: %w", err)
	}
	fmt.Fprintf(d.out, `
Perdure is running, and the example services are registered with it.

  invoked      Greeter/Greet with "Ada"
  it answered  %s

Go on:
  curl http://%[2]s/Greeter/Greet --json '"Ada"'          call a service; the visits go up
  curl http://%[2]s/Counter/Ada/Get                       read an object's state
  curl http://%[2]s/Counter/Ada/Add/send --json 5         do not wait for the result
  curl http://%[3]s/services                              what is registered
  bin/perdure services list --admin-url http://%[3]s      the same for people

The services are in integration/example. Data is in %[4]s: stop with Ctrl-C, start again, and the visits go on.
`, bytes.TrimSpace(answer), d.ingress, d.admin, d.data)
	return nil
}

// invoke calls the example; right after a start the node may still ask to try again.
func (d *demo) invoke(ctx context.Context) (answer []byte, err error) {
	for try := 0; ; try++ {
		answer, err = d.post(ctx, "http://"+d.ingress+"/Greeter/Greet", `"Ada"`)
		var status *statusError
		if err == nil || try == 50 || !errors.As(err, &status) || status.code != http.StatusServiceUnavailable && status.code != http.StatusNotFound {
			return answer, err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// ready waits until all URLs answer 200.
func (d *demo) ready(ctx context.Context, urls ...string) error {
	ctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	for _, u := range urls {
		for {
			_, err := d.do(ctx, http.MethodGet, u, "")
			if err == nil {
				break
			}
			if pause(ctx, 50*time.Millisecond) != nil {
				return fmt.Errorf("the server is not ready: %w", err)
			}
		}
	}
	return nil
}

// connected waits until the example accepts connections.
func (d *demo) connected(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.services)
		if err == nil {
			return conn.Close()
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("the example services are not ready: %w", err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// statusError is an answer that is not a success.
type statusError struct {
	code int
	body string
}

func (e *statusError) Error() string { return fmt.Sprintf("HTTP %d: %s", e.code, e.body) }

func (d *demo) post(ctx context.Context, url, body string) ([]byte, error) {
	if !json.Valid([]byte(body)) {
		return nil, fmt.Errorf("%s is not JSON", body)
	}
	return d.do(ctx, http.MethodPost, url, body)
}

func (d *demo) do(ctx context.Context, method, url, body string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return nil, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, &statusError{resp.StatusCode, string(data)}
	}
	return data, nil
}

// process is a program that was started and will be waited for.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// start starts a program that writes to our standard error. When it ends, cancel is told why.
func start(cancel context.CancelCauseFunc, program string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(program, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = os.Stderr, os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C reaches us alone: we stop them in order
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s (make build builds it): %w", program, err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // the state says more
		cancel(fmt.Errorf("%s ended: %v", program, p.cmd.ProcessState))
	}()
	return p, nil
}

// stop asks the program to end and waits; after a while it is killed.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-p.ended:
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}
