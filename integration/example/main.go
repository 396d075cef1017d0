// Command example serves a durable service and a virtual object, written with the published Go SDK. It is a starting
// point for your own: copy it, change it, and register its URL.
package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	restate "github.com/restatedev/sdk-go"
	"github.com/restatedev/sdk-go/server"
)

// Greeter is a service: its handlers run independently of each other.
type Greeter struct{}

// Greeting is what Greeter answers.
type Greeting struct {
	Message string `json:"message"`
	Visits  int    `json:"visits"`
}

// Greet greets somebody and counts the visit. Each step is recorded: when this process or the server dies in the middle,
// the invocation goes on where it was, and no visit is counted twice.
func (Greeter) Greet(ctx restate.Context, name string) (Greeting, error) {
	if strings.TrimSpace(name) == "" {
		// A terminal error is an answer; any other error is retried.
		return Greeting{}, restate.ToTerminalError(errors.New("tell me your name"), restate.WithErrorCode(400))
	}
	visits, err := restate.Object[int](ctx, "Counter", name, "Add").Request(1)
	if err != nil {
		return Greeting{}, err
	}
	message, err := restate.Run(ctx, func(restate.RunContext) (string, error) {
		// Talk to the outside world in here: the result is recorded and not computed again.
		return "Hello, " + name + "!", nil
	}, restate.WithName("compose"))
	if err != nil {
		return Greeting{}, err
	}
	return Greeting{Message: message, Visits: visits}, nil
}

// Counter is a virtual object: it has state for each key, and Add runs once at a time per key.
type Counter struct{}

// Add adds to the count and returns it.
func (Counter) Add(ctx restate.ObjectContext, n int) (int, error) {
	count, err := restate.Get[int](ctx, "count")
	if err != nil {
		return 0, err
	}
	restate.Set(ctx, "count", count+n)
	return count + n, nil
}

// Get returns the count. It is shared: it does not wait for Add.
func (Counter) Get(ctx restate.ObjectSharedContext) (int, error) {
	return restate.Get[int](ctx, "count")
}

func endpoint() *server.Restate {
	return server.NewRestate().Bind(restate.Reflect(Greeter{})).Bind(restate.Reflect(Counter{}))
}

func main() {
	addr := flag.String("addr", "127.0.0.1:9080", "address to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := endpoint().Start(ctx, *addr); err != nil {
		slog.Error("the example ended", "err", err)
		os.Exit(1)
	}
}
