// Command faulty is a Lambda function that goes wrong in the way that its environment variable FAULTY names; without it is a
// good one. It is for tests.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	restate "github.com/restatedev/sdk-go"
	"github.com/restatedev/sdk-go/server"
)

// Faulty is the service.
type Faulty struct{}

// Echo answers with its input, unless the function goes wrong around it.
func (Faulty) Echo(_ restate.Context, in string) (string, error) { return in, nil }

// Work takes a while, as a function that computes does, and its answer says that it did. Where FAULTY_GATE is a URL, it lasts
// until that answers.
func (Faulty) Work(_ restate.Context, n int) (int, error) {
	if gate := os.Getenv("FAULTY_GATE"); gate != "" {
		resp, err := http.Get(gate)
		if err != nil {
			return 0, err
		}
		return n, resp.Body.Close()
	}
	<-time.After(30 * time.Millisecond)
	return n, nil
}

// Big makes a journal of n bytes in steps of 1 MiB and reads it again.
func (Faulty) Big(ctx restate.Context, n int) (int, error) {
	sum := 0
	for n > 0 {
		size := min(n, 1<<20)
		s, err := restate.Run(ctx, func(restate.RunContext) (string, error) { return strings.Repeat("x", size), nil })
		if err != nil {
			return 0, err
		}
		sum += len(s)
		n -= size
	}
	return sum, nil
}

// manifests replace what the SDK says of itself.
var manifests = map[string]string{
	"old-protocol": `{"protocolMode":"REQUEST_RESPONSE","minProtocolVersion":1,"maxProtocolVersion":3,"services":[]}`,
	"streams":      `{"protocolMode":"BIDI_STREAM","minProtocolVersion":5,"maxProtocolVersion":7,"services":[]}`,
}

func main() {
	mode := os.Getenv("FAULTY")
	if mode == "exit-at-start" {
		fmt.Fprintln(os.Stderr, "no table configured")
		os.Exit(1)
	}
	var options []restate.ServiceDefinitionOption
	if os.Getenv("FAULTY_RETRIES") != "server" { // else those that the server gives to who says nothing
		options = append(options, restate.WithInvocationRetryPolicy(restate.WithInitialRetryInterval(50*time.Millisecond),
			restate.WithMaxRetryInterval(200*time.Millisecond), restate.WithRetryIntervalFactor(2), restate.WithMaxRetryAttempts(1000)))
	}
	service := restate.Reflect(Faulty{}, options...)
	handler, err := server.NewRestate().Bind(service).LambdaHandler()
	if err != nil {
		fmt.Fprintln(os.Stderr, "faulty:", err)
		os.Exit(1)
	}
	lambda.Start(func(ctx context.Context, event server.LambdaRequest) (any, error) {
		if mode == "no-sdk" {
			return "hello", nil
		}
		if event.Path == "/discover" {
			if m, ok := manifests[mode]; ok {
				return server.LambdaResponse{StatusCode: 200, Headers: map[string]string{"content-type": "application/vnd.restate.endpointmanifest.v3+json"},
					Body: base64.StdEncoding.EncodeToString([]byte(m)), IsBase64Encoded: true}, nil
			}
			return handler(ctx, event)
		}
		switch mode {
		case "error":
			return nil, errors.New("the table is gone")
		case "panic":
			panic("the table is gone")
		case "exit":
			os.Exit(137)
		case "hang":
			<-time.After(time.Hour)
		case "garbage":
			return json.RawMessage(`{"status":"done"}`), nil
		}
		return handler(ctx, event)
	})
}
