package services

import (
	"errors"
	"fmt"
	"strings"
	"time"

	restate "github.com/restatedev/sdk-go"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// extras exercises what is left of the SDKs' interfaces.
func (s *set) extras() restate.ServiceDefinition {
	return restate.NewService(s.name("Extras"), s.options(fastRetries(), restate.WithDocumentation("what is left"))...).
		// random notes a random number and UUID in each of two attempts: replays must see the same.
		Handler("random", restate.NewServiceHandler(func(ctx restate.Context, token string) (string, error) {
			s.mem.Note(token, fmt.Sprint(restate.Rand(ctx).Uint64(), " ", restate.UUID(ctx)))
			if s.mem.Count(token) == 1 {
				return "", restate.ToRetryableError(errors.New("first attempt fails"), restate.WithErrorCode(501))
			}
			return restate.UUID(ctx).String(), nil
		})).
		// timeout waits for what never happens, for so many milliseconds.
		Handler("timeout", restate.NewServiceHandler(func(ctx restate.Context, ms int64) (string, error) {
			never, after := restate.Awakeable[string](ctx), restate.After(ctx, time.Duration(ms)*time.Millisecond, restate.WithName("limit"))
			it := restate.WaitIter(ctx, never, after)
			if !it.Next() {
				return "", it.Err()
			}
			if it.Value() != after {
				return "resolved", nil
			}
			return "timeout", nil
		})).
		// giveUp has a step that fails for longer than its policy allows.
		Handler("giveUp", restate.NewServiceHandler(func(ctx restate.Context, token string) (*Failure, error) {
			_, err := restate.Run(ctx, func(restate.RunContext) (string, error) {
				return "", fmt.Errorf("execution %d fails", s.mem.Count(token))
			}, restate.WithName("giveUp"), restate.WithInitialRetryInterval(20*time.Millisecond), restate.WithMaxRetryInterval(50*time.Millisecond),
				restate.WithRetryIntervalFactor(1.5), restate.WithMaxRetryDuration(150*time.Millisecond))
			if err == nil {
				return nil, restate.TerminalErrorf("the step succeeded")
			}
			return caught(err), nil
		})).
		// flow runs the workflow with that key through the clients for workflows, and attaches to it.
		Handler("flow", restate.NewServiceHandler(func(ctx restate.Context, key string) (Outcome, error) {
			id := restate.WorkflowSend(ctx, s.name("Flow"), key, "run").Send("in").GetInvocationId()
			if _, err := restate.Workflow[void](ctx, s.name("Flow"), key, "finish").Request("v"); err != nil {
				return Outcome{}, err
			}
			b, err := restate.AttachInvocation[[]byte](ctx, id, restate.WithBinary).Response()
			return outcome(b, err), nil
		})).
		// cancelled sends, cancels, and attaches to what was sent.
		Handler("cancelled", restate.NewServiceHandler(func(ctx restate.Context, t Target) (Outcome, error) {
			id := send(ctx, t)
			restate.CancelInvocation(ctx, id)
			b, err := restate.AttachInvocation[[]byte](ctx, id, restate.WithBinary).Response()
			return outcome(b, err), nil
		})).
		// key is the idempotency key that the invocation was made with, as far as the server tells it.
		Handler("key", restate.NewServiceHandler(func(ctx restate.Context, _ void) (string, error) { return ctx.Request().IdempotencyKey, nil })).
		// body is the request as it came.
		Handler("body", restate.NewServiceHandler(func(ctx restate.Context, _ string) (string, error) { return string(ctx.Request().Body), nil }))
}

// golang exercises what only the Go SDK has: other codecs, and services made from methods.
func (s *set) golang() restate.ServiceDefinition {
	reverse := func(_ restate.Context, in *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
		return wrapperspb.String("proto " + in.GetValue()), nil
	}
	return restate.NewService(s.name("Golang"), s.options()...).
		Handler("proto", restate.NewServiceHandler(reverse, restate.WithProto)).
		Handler("protoJSON", restate.NewServiceHandler(reverse, restate.WithProtoJSON)).
		// callProto calls proto in its own codec.
		Handler("callProto", restate.NewServiceHandler(func(ctx restate.Context, v string) (string, error) {
			out, err := restate.Service[*wrapperspb.StringValue](ctx, s.name("Golang"), "proto", restate.WithProto).Request(wrapperspb.String(v))
			return out.GetValue(), orNil(err)
		})).
		// typed calls with a client whose input has a type.
		Handler("typed", restate.NewServiceHandler(func(ctx restate.Context, v string) (string, error) {
			greet := restate.WithRequestType[string](restate.Service[string](ctx, s.name("Greeter"), "greet"))
			out, err := greet.Request(v, restate.WithHeaders(map[string]string{"x": "y"}))
			return out, orNil(err)
		}))
}

// orNil makes no error of a terminal one that is nil.
func orNil(err restate.TerminalError) error {
	if err == nil {
		return nil
	}
	return err
}

// reflected is an object made from methods.
type reflected struct{ name string }

func (r reflected) ServiceName() string { return r.name }

// Append and what follows are its handlers.
func (reflected) Append(ctx restate.ObjectContext, v string) (int, error) {
	l, err := restate.Get[[]string](ctx, "l")
	if err != nil {
		return 0, err
	}
	restate.Set(ctx, "l", append(l, v))
	return len(l) + 1, nil
}

func (reflected) Joined(ctx restate.ObjectSharedContext) (string, error) {
	l, err := restate.Get[[]string](ctx, "l")
	return strings.Join(l, " "), orNil(err)
}

func (reflected) Reset(ctx restate.ObjectContext) { restate.ClearAll(ctx) }
