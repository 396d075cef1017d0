package services

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	restate "github.com/restatedev/sdk-go"
)

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// runner has durable steps.
func (s *set) runner() restate.ServiceDefinition {
	step := func(token string) func(restate.RunContext) (string, error) {
		return func(restate.RunContext) (string, error) {
			s.mem.Count(token)
			return "v-" + token, nil
		}
	}
	fast := []restate.RunOption{restate.WithInitialRetryInterval(10 * time.Millisecond), restate.WithMaxRetryInterval(50 * time.Millisecond)}
	return restate.NewService(s.name("Runner"), s.options(fastRetries())...).
		Handler("once", restate.NewServiceHandler(func(ctx restate.Context, token string) (Executed, error) {
			v, err := restate.Run(ctx, step(token), restate.WithName("step"))
			if err != nil {
				return Executed{}, err
			}
			return Executed{v, s.mem.Counted(token)}, nil
		})).
		// flaky has a step that fails a number of times before it succeeds.
		Handler("flaky", restate.NewServiceHandler(func(ctx restate.Context, f Flaky) (Executed, error) {
			v, err := restate.Run(ctx, func(restate.RunContext) (string, error) {
				if n := s.mem.Count(f.Token); n <= f.Failures {
					return "", fmt.Errorf("execution %d fails", n)
				}
				return "v-" + f.Token, nil
			}, append(fast, restate.WithName("flaky"))...)
			if err != nil {
				return Executed{}, err
			}
			return Executed{v, s.mem.Counted(f.Token)}, nil
		})).
		// terminal has a step that fails for good; the handler catches it.
		Handler("terminal", restate.NewServiceHandler(func(ctx restate.Context, f Failure) (*Failure, error) {
			_, err := restate.Run(ctx, func(restate.RunContext) (string, error) { return "", terminal(f) }, restate.WithName("terminal"))
			if err == nil {
				return nil, restate.TerminalErrorf("the step succeeded")
			}
			return caught(err), nil
		})).
		// exhausted has a step whose own retry policy gives up after three executions.
		Handler("exhausted", restate.NewServiceHandler(func(ctx restate.Context, token string) (*Failure, error) {
			_, err := restate.Run(ctx, func(restate.RunContext) (string, error) {
				return "", fmt.Errorf("execution %d fails", s.mem.Count(token))
			}, append(fast, restate.WithName("exhausted"), restate.WithMaxRetryAttempts(3))...)
			if err == nil {
				return nil, restate.TerminalErrorf("the step succeeded")
			}
			return caught(err), nil
		})).
		Handler("steps", restate.NewServiceHandler(func(ctx restate.Context, n int) (int, error) {
			sum := 0
			for i := range n {
				v, err := restate.Run(ctx, func(restate.RunContext) (int, error) { return i, nil }, restate.WithName(fmt.Sprintf("step-%d", i)))
				if err != nil {
					return 0, err
				}
				sum += v
			}
			return sum, nil
		})).
		Handler("parallel", restate.NewServiceHandler(func(ctx restate.Context, n int) (int, error) {
			var fs []restate.Future
			for i := range n {
				fs = append(fs, restate.RunAsync(ctx, func(restate.RunContext) (int, error) { return i, nil }))
			}
			sum := 0
			for f, err := range restate.Wait(ctx, fs...) {
				if err != nil {
					return 0, err
				}
				v, err := f.(restate.RunAsyncFuture[int]).Result()
				if err != nil {
					return 0, err
				}
				sum += v
			}
			return sum, nil
		})).
		// replayed runs a step, fails the attempt, and must not run the step again.
		Handler("replayed", restate.NewServiceHandler(func(ctx restate.Context, token string) (Executed, error) {
			v, err := restate.Run(ctx, step(token), restate.WithName("step"))
			if err != nil {
				return Executed{}, err
			}
			if s.mem.Count(token+"/attempt") == 1 {
				return Executed{}, errors.New("first attempt fails after the step")
			}
			return Executed{v, s.mem.Counted(token)}, nil
		}))
}

// invoke makes a call and returns its future. Bytes travel untouched in both directions.
func invoke(ctx restate.Context, t Target) restate.ResponseFuture[[]byte] {
	opts := []restate.RequestOption{}
	if t.IdempotencyKey != "" {
		opts = append(opts, restate.WithIdempotencyKey(t.IdempotencyKey))
	}
	if len(t.Headers) > 0 {
		opts = append(opts, restate.WithHeaders(t.Headers))
	}
	if t.Key != "" {
		return restate.Object[[]byte](ctx, t.Service, t.Key, t.Handler, restate.WithBinary).RequestFuture([]byte(t.Input), opts...)
	}
	return restate.Service[[]byte](ctx, t.Service, t.Handler, restate.WithBinary).RequestFuture([]byte(t.Input), opts...)
}

func send(ctx restate.Context, t Target) string {
	opts := []restate.SendOption{}
	if t.IdempotencyKey != "" {
		opts = append(opts, restate.WithIdempotencyKey(t.IdempotencyKey))
	}
	if len(t.Headers) > 0 {
		opts = append(opts, restate.WithHeaders(t.Headers))
	}
	if t.DelayMs != 0 {
		opts = append(opts, restate.WithDelay(time.Duration(t.DelayMs)*time.Millisecond))
	}
	if t.Key != "" {
		return restate.ObjectSend(ctx, t.Service, t.Key, t.Handler, restate.WithBinary).Send([]byte(t.Input), opts...).GetInvocationId()
	}
	return restate.ServiceSend(ctx, t.Service, t.Handler, restate.WithBinary).Send([]byte(t.Input), opts...).GetInvocationId()
}

func outcome(b []byte, err restate.TerminalError) Outcome {
	if err != nil {
		return Outcome{Failure: caught(err)}
	}
	return Outcome{Output: orNull(b)}
}

func orNull(b []byte) json.RawMessage {
	if len(b) == 0 {
		return json.RawMessage("null")
	}
	return b
}

// caller calls what it is told to call.
func (s *set) caller() restate.ServiceDefinition {
	return restate.NewService(s.name("Caller"), s.options(fastRetries())...).
		Handler("call", restate.NewServiceHandler(func(ctx restate.Context, t Target) (Outcome, error) {
			b, err := invoke(ctx, t).Response()
			return outcome(b, err), nil
		})).
		Handler("send", restate.NewServiceHandler(func(ctx restate.Context, t Target) (string, error) { return send(ctx, t), nil })).
		// ids makes the same call twice and returns both invocation ids and the output.
		Handler("ids", restate.NewServiceHandler(func(ctx restate.Context, t Target) ([]string, error) {
			a, b := invoke(ctx, t), invoke(ctx, t)
			out := []string{a.GetInvocationId(), b.GetInvocationId()}
			for _, f := range []restate.ResponseFuture[[]byte]{a, b} {
				v, err := f.Response()
				if err != nil {
					return nil, err
				}
				out = append(out, string(v))
			}
			return out, nil
		})).
		Handler("fan", restate.NewServiceHandler(func(ctx restate.Context, n int) (int, error) {
			var fs []restate.Future
			for i := range n {
				fs = append(fs, invoke(ctx, Target{Service: s.name("Greeter"), Handler: "greet", Input: raw(fmt.Sprint(i))}))
			}
			done := 0
			for f, err := range restate.Wait(ctx, fs...) {
				if err != nil {
					return 0, err
				}
				if _, err := f.(restate.ResponseFuture[[]byte]).Response(); err != nil {
					return 0, err
				}
				done++
			}
			return done, nil
		})).
		Handler("chain", restate.NewServiceHandler(func(ctx restate.Context, depth int) (int, error) {
			if depth <= 0 {
				return 0, nil
			}
			n, err := restate.Service[int](ctx, s.name("Caller"), "chain").Request(depth - 1)
			if err != nil {
				return 0, err
			}
			return n + 1, nil
		})).
		// sends makes n one-way calls that each add 1 to the counter with the given key.
		Handler("sends", restate.NewServiceHandler(func(ctx restate.Context, t Target) (void, error) {
			var n int
			if err := json.Unmarshal(t.Input, &n); err != nil {
				return void{}, restate.ToTerminalError(err, restate.WithErrorCode(400))
			}
			for range n {
				restate.ObjectSend(ctx, s.name("Counter"), t.Key, "add").Send(1)
			}
			return void{}, nil
		})).
		Handler("attach", restate.NewServiceHandler(func(ctx restate.Context, id string) (Outcome, error) {
			b, err := restate.AttachInvocation[[]byte](ctx, id, restate.WithBinary).Response()
			return outcome(b, err), nil
		})).
		Handler("cancel", restate.NewServiceHandler(func(ctx restate.Context, id string) (void, error) {
			restate.CancelInvocation(ctx, id)
			return void{}, nil
		}))
}

// awaiter waits for awakeables. Its key is the test's token.
func (s *set) awaiter() restate.ServiceDefinition {
	return restate.NewObject(s.name("Awaiter"), s.options()...).
		// hold publishes an awakeable's id in its state and waits for it.
		Handler("hold", restate.NewObjectHandler(func(ctx restate.ObjectContext, _ void) (Outcome, error) {
			a := restate.Awakeable[string](ctx)
			restate.Set(ctx, "id", a.Id())
			v, err := a.Result()
			if err != nil {
				return Outcome{Failure: caught(err)}, nil
			}
			return Outcome{Output: raw(v)}, nil
		})).
		Handler("id", restate.NewObjectSharedHandler(func(ctx restate.ObjectSharedContext, _ void) (string, error) {
			v, err := restate.Get[string](ctx, "id")
			if err != nil {
				return "", err
			}
			return v, nil
		})).
		Handler("resolve", restate.NewObjectSharedHandler(func(ctx restate.ObjectSharedContext, c Completion) (void, error) {
			restate.ResolveAwakeable(ctx, c.ID, c.Value)
			return void{}, nil
		})).
		Handler("reject", restate.NewObjectSharedHandler(func(ctx restate.ObjectSharedContext, c Completion) (void, error) {
			restate.RejectAwakeable(ctx, c.ID, errors.New(c.Reason))
			return void{}, nil
		}))
}

// signaler waits for named signals.
func (s *set) signaler() restate.ServiceDefinition {
	return restate.NewService(s.name("Signaler"), s.options()...).
		Handler("wait", restate.NewServiceHandler(func(ctx restate.Context, name string) (Outcome, error) {
			v, err := restate.Signal[string](ctx, name).Result()
			if err != nil {
				return Outcome{Failure: caught(err)}, nil
			}
			return Outcome{Output: raw(v)}, nil
		})).
		Handler("resolve", restate.NewServiceHandler(func(ctx restate.Context, c Completion) (void, error) {
			restate.ResolveSignal(ctx, c.ID, c.Name, c.Value)
			return void{}, nil
		})).
		Handler("reject", restate.NewServiceHandler(func(ctx restate.Context, c Completion) (void, error) {
			restate.RejectSignal(ctx, c.ID, c.Name, errors.New(c.Reason))
			return void{}, nil
		}))
}

// blocker holds its key, on a gate in memory or on an awakeable that nobody resolves.
func (s *set) blocker() restate.ServiceDefinition {
	hold := func(ctx restate.Context, token string) (string, error) {
		s.mem.Note(token, "enter")
		if err := s.mem.Pass(ctx, token); err != nil {
			return "", err
		}
		s.mem.Note(token, "leave")
		return "done", nil
	}
	// enter notes that it has begun and waits for an awakeable that nobody resolves.
	enter := func(ctx restate.Context, token string) (string, restate.TerminalError) {
		a := restate.Awakeable[string](ctx)
		if err := restate.RunVoid(ctx, func(restate.RunContext) error { s.mem.Note(token, "enter"); return nil }); err != nil {
			return "", err
		}
		return a.Result()
	}
	// await ends by cancellation only. It cleans up in a durable step and passes the cancellation on.
	await := func(ctx restate.Context, token string) (string, error) {
		v, err := enter(ctx, token)
		if err == nil {
			return v, nil
		}
		if err := restate.RunVoid(ctx, func(restate.RunContext) error { s.mem.Note(token, "cleanup"); return nil }); err != nil {
			return "", err
		}
		return "", err
	}
	return restate.NewObject(s.name("Blocker"), s.options(fastRetries())...).
		Handler("hold", restate.NewObjectHandler(func(ctx restate.ObjectContext, token string) (string, error) { return hold(ctx, token) })).
		Handler("holdShared", restate.NewObjectSharedHandler(func(ctx restate.ObjectSharedContext, token string) (string, error) { return hold(ctx, token) })).
		Handler("await", restate.NewObjectHandler(func(ctx restate.ObjectContext, token string) (string, error) { return await(ctx, token) })).
		Handler("free", restate.NewObjectHandler(func(restate.ObjectContext, void) (string, error) { return "free", nil })).
		// swallow is cancelled like await but ends well.
		Handler("swallow", restate.NewObjectHandler(func(ctx restate.ObjectContext, token string) (string, error) {
			if _, err := await(ctx, token); err != nil {
				return "survived " + fmt.Sprint(restate.AsTerminalError(err).Code()), nil
			}
			return "resolved", nil
		})).
		// tree sends to one child and calls another, both of which wait for ever.
		Handler("tree", restate.NewObjectHandler(func(ctx restate.ObjectContext, token string) (string, error) {
			restate.ObjectSend(ctx, s.name("Blocker"), restate.Key(ctx)+"-sent", "await").Send(token + "/sent")
			v, err := restate.Object[string](ctx, s.name("Blocker"), restate.Key(ctx)+"-called", "await").Request(token + "/called")
			if err != nil {
				return "", err
			}
			return v, nil
		}))
}

// fifo records who came in which order.
func (s *set) fifo() restate.ServiceDefinition {
	return restate.NewObject(s.name("Fifo"), s.options(fastRetries())...).
		Handler("push", restate.NewObjectHandler(func(ctx restate.ObjectContext, v string) (int, error) {
			l, err := restate.Get[[]string](ctx, "list")
			if err != nil {
				return 0, err
			}
			l = append(l, v)
			restate.Set(ctx, "list", l)
			return len(l), nil
		})).
		Handler("list", restate.NewObjectSharedHandler(func(ctx restate.ObjectSharedContext, _ void) ([]string, error) {
			l, err := restate.Get[[]string](ctx, "list")
			if err != nil {
				return nil, err
			}
			if l == nil {
				l = []string{}
			}
			return l, nil
		})).
		// holdPush waits for a gate before it records.
		Handler("holdPush", restate.NewObjectHandler(func(ctx restate.ObjectContext, token string) (int, error) {
			s.mem.Note(token, "enter")
			if err := s.mem.Pass(ctx, token); err != nil {
				return 0, err
			}
			l, err := restate.Get[[]string](ctx, "list")
			if err != nil {
				return 0, err
			}
			restate.Set(ctx, "list", append(l, token))
			return len(l) + 1, nil
		}))
}

// flow is a workflow that waits for a promise.
func (s *set) flow() restate.ServiceDefinition { return s.workflow("Flow") }

// briefFlow forgets finished runs after a second.
func (s *set) briefFlow() restate.ServiceDefinition {
	return s.workflow("BriefFlow", restate.WithWorkflowRetention(time.Second))
}

func (s *set) workflow(name string, run ...restate.HandlerOption) restate.ServiceDefinition {
	return restate.NewWorkflow(s.name(name), s.options(fastRetries())...).
		Handler("run", restate.NewWorkflowHandler(func(ctx restate.WorkflowContext, in string) (string, error) {
			restate.Set(ctx, "stage", "waiting")
			v, err := restate.Promise[string](ctx, "done").Result()
			if err != nil {
				return "", err
			}
			restate.Set(ctx, "stage", "done")
			return in + ":" + v, nil
		}, run...)).
		Handler("finish", restate.NewWorkflowSharedHandler(func(ctx restate.WorkflowSharedContext, v string) (void, error) {
			if err := restate.Promise[string](ctx, "done").Resolve(v); err != nil {
				return void{}, err
			}
			return void{}, nil
		})).
		Handler("fail", restate.NewWorkflowSharedHandler(func(ctx restate.WorkflowSharedContext, reason string) (void, error) {
			if err := restate.Promise[string](ctx, "done").Reject(errors.New(reason)); err != nil {
				return void{}, err
			}
			return void{}, nil
		})).
		Handler("peek", restate.NewWorkflowSharedHandler(func(ctx restate.WorkflowSharedContext, _ void) (*string, error) {
			v, err := restate.Promise[*string](ctx, "done").Peek()
			if err != nil {
				return nil, err
			}
			return v, nil
		})).
		Handler("await", restate.NewWorkflowSharedHandler(func(ctx restate.WorkflowSharedContext, _ void) (string, error) {
			v, err := restate.Promise[string](ctx, "done").Result()
			if err != nil {
				return "", err
			}
			return v, nil
		})).
		Handler("stage", restate.NewWorkflowSharedHandler(func(ctx restate.WorkflowSharedContext, _ void) (*string, error) {
			v, err := restate.Get[*string](ctx, "stage")
			if err != nil {
				return nil, err
			}
			return v, nil
		}))
}
