// Command endpoint serves the benchmark services until it is interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"perdure/integration/bench/endpoint"
	"perdure/integration/bench/h2lite"
)

func main() {
	var cfg endpoint.Config
	addr := flag.String("addr", "127.0.0.1:9080", "address of the service protocol")
	ctl := flag.String("control", "127.0.0.1:9081", "address of the control port")
	flag.BoolVar(&cfg.RequestResponse, "rr", false, "plain HTTP/1.1 request/response instead of h2c and bidirectional streams")
	flag.DurationVar(&cfg.Inactivity, "inactivity", 100*time.Millisecond, "inactivity timeout that the waiting services ask for (-1: the server's)")
	flag.DurationVar(&cfg.Retention, "retention", -1, "journal retention that all services ask for (-1: the server's)")
	flag.Parse()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(cfg, *addr, *ctl, log); err != nil {
		log.Error("endpoint ended", "err", err)
		os.Exit(1)
	}
}

func run(cfg endpoint.Config, addr, ctl string, log *slog.Logger) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer ln.Close()
	cln, err := net.Listen("tcp", ctl)
	if err != nil {
		return err
	}
	defer cln.Close()
	e := endpoint.New(cfg)
	ended := make(chan error, 2)
	go func() { ended <- http.Serve(cln, e.Control()) }()
	go func() {
		if cfg.RequestResponse {
			ended <- http.Serve(ln, e)
			return
		}
		ended <- h2lite.Serve(ln, e.H2)
	}()
	log.Info("endpoint listening", "addr", ln.Addr(), "control", cln.Addr())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return errors.Join(ln.Close(), cln.Close())
	}
}
