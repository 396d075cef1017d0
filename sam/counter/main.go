// Command counter is a Lambda function that serves a virtual object, written with the published Go SDK.
package main

import (
	"fmt"
	"os"

	"github.com/aws/aws-lambda-go/lambda"
	restate "github.com/restatedev/sdk-go"
	"github.com/restatedev/sdk-go/server"
)

// Counter is a virtual object: it has state for each key, and Add runs once at a time per key. The state lies in the
// cluster; the function keeps nothing.
type Counter struct{}

const count = "count"

// Add adds to the count and returns it.
func (Counter) Add(ctx restate.ObjectContext, n int) (int, error) {
	sum, err := restate.Get[int](ctx, count)
	if err != nil {
		return 0, err
	}
	restate.Set(ctx, count, sum+n)
	return sum + n, nil
}

// Get returns the count. It is shared: it does not wait for Add.
func (Counter) Get(ctx restate.ObjectSharedContext) (int, error) {
	return restate.Get[int](ctx, count)
}

// Reset forgets the count.
func (Counter) Reset(ctx restate.ObjectContext) error {
	restate.ClearAll(ctx)
	return nil
}

func main() {
	handler, err := server.NewRestate().Bind(restate.Reflect(Counter{})).LambdaHandler()
	if err != nil {
		fmt.Fprintln(os.Stderr, "counter:", err)
		os.Exit(1)
	}
	lambda.Start(handler)
}
