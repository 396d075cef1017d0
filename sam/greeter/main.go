// Command greeter is a Lambda function that serves a durable service, written with the published Go SDK. It is a starting
// point for your own: copy it, change it, deploy it, and register the version's ARN.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/aws/aws-lambda-go/lambda"
	restate "github.com/restatedev/sdk-go"
	"github.com/restatedev/sdk-go/server"
)

// Greeter is a service: its handlers run independently of each other.
type Greeter struct{}

// Greeting is what Greeter answers.
type Greeting struct {
	Message string `json:"message"`
	// Visits is what the object Counter has counted for the name, which runs in another function.
	Visits int `json:"visits"`
}

// Greet greets somebody and counts the visit. While it waits for Counter the function does not run and costs nothing.
func (Greeter) Greet(ctx restate.Context, name string) (Greeting, error) {
	if strings.TrimSpace(name) == "" {
		// A terminal error is an answer; any other error is retried.
		return Greeting{}, restate.ToTerminalError(errors.New("tell me your name"), restate.WithErrorCode(400))
	}
	visits, err := restate.Object[int](ctx, "Counter", name, "Add").Request(1)
	if err != nil {
		return Greeting{}, err
	}
	return Greeting{Message: "Hello, " + name + "!", Visits: visits}, nil
}

func main() {
	handler, err := server.NewRestate().Bind(restate.Reflect(Greeter{})).LambdaHandler()
	if err != nil {
		fmt.Fprintln(os.Stderr, "greeter:", err)
		os.Exit(1)
	}
	lambda.Start(handler)
}
