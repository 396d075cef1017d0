// Command services serves the test services of package services until it is interrupted.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"perdure/integration/services"
)

func main() {
	var o services.Options
	addr := flag.String("addr", "127.0.0.1:9080", "address to listen on")
	flag.StringVar(&o.Prefix, "prefix", "", "start of every service name")
	mode := flag.String("mode", "bidi", "bidi (bidirectional streams) or rr (request/response)")
	flag.BoolVar(&o.HTTP1, "http1", false, "serve HTTP/1.1 only")
	flag.BoolVar(&o.LazyState, "lazy", false, "ask for lazy state")
	flag.BoolVar(&o.Suspend, "suspend", false, "inactivity timeout 0: suspend at every wait")
	verbose := flag.Bool("v", false, "log what the SDK logs")
	flag.Parse()
	switch *mode {
	case "bidi":
	case "rr":
		o.RequestResponse = true
	default:
		fmt.Fprintln(os.Stderr, "-mode must be bidi or rr")
		os.Exit(2)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if *verbose {
		o.Log = log.Handler()
	}
	if err := run(*addr, o, log); err != nil {
		log.Error("services ended", "err", err)
		os.Exit(1)
	}
}

func run(addr string, o services.Options, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	s, err := services.Start(addr, o)
	if err != nil {
		return err
	}
	log.Info("services listening", "url", s.URL)
	ended := make(chan error, 1)
	go func() { ended <- s.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return s.Shutdown(grace)
}
