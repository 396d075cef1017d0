// Command reminder is a Lambda function that serves a workflow which sleeps, written with the published Go SDK. The function
// is not running while the workflow sleeps, for seconds or for months.
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	restate "github.com/restatedev/sdk-go"
	"github.com/restatedev/sdk-go/server"
)

// Reminder is a workflow: Run runs once per key.
type Reminder struct{}

// Order says of what to remind, and when.
type Order struct {
	Text         string `json:"text"`
	AfterSeconds int    `json:"afterSeconds"`
}

// Reminded is the end of a reminder.
type Reminded struct {
	Text      string    `json:"text"`
	OrderedAt time.Time `json:"orderedAt"`
	SentAt    time.Time `json:"sentAt"`
}

const (
	status   = "status"
	waiting  = "waiting"
	reminded = "reminded"
)

// Run notes the order, sleeps, and sends the reminder. Each restate.Run is executed until it succeeds once; its result is
// recorded.
func (Reminder) Run(ctx restate.WorkflowContext, o Order) (Reminded, error) {
	restate.Set(ctx, status, waiting)
	ordered, err := restate.Run(ctx, func(restate.RunContext) (time.Time, error) { return time.Now().UTC(), nil }, restate.WithName("note"))
	if err != nil {
		return Reminded{}, err
	}
	if err := restate.Sleep(ctx, time.Duration(o.AfterSeconds)*time.Second); err != nil {
		return Reminded{}, err
	}
	sent, err := restate.Run(ctx, func(restate.RunContext) (time.Time, error) {
		// Send a mail, a message or a push notification in here.
		return time.Now().UTC(), nil
	}, restate.WithName("send"))
	if err != nil {
		return Reminded{}, err
	}
	restate.Set(ctx, status, reminded)
	return Reminded{Text: o.Text, OrderedAt: ordered, SentAt: sent}, nil
}

// Status tells how far the workflow is: empty before it began, waiting, or reminded.
func (Reminder) Status(ctx restate.WorkflowSharedContext) (string, error) {
	return restate.Get[string](ctx, status)
}

func main() {
	handler, err := server.NewRestate().Bind(restate.Reflect(Reminder{})).LambdaHandler()
	if err != nil {
		fmt.Fprintln(os.Stderr, "reminder:", err)
		os.Exit(1)
	}
	lambda.Start(handler)
}
