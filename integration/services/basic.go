package services

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	restate "github.com/restatedev/sdk-go"
)

type void = restate.Void

func terminal(f Failure) error {
	return restate.ToTerminalError(errors.New(f.Message), restate.WithErrorCode(restate.Code(f.Code)), restate.WithMetadataMap(f.Metadata))
}

// caught turns a terminal error into data, so that a handler can return it.
func caught(err restate.TerminalError) *Failure {
	f := &Failure{Code: int(err.Code()), Message: err.Message()}
	for k, v := range err.Metadata().Iter() {
		if f.Metadata == nil {
			f.Metadata = map[string]string{}
		}
		f.Metadata[k] = v
	}
	return f
}

// greeter has handlers without any journal beyond input and output.
func (s *set) greeter() restate.ServiceDefinition {
	return restate.NewService(s.name("Greeter"), s.options()...).
		Handler("greet", restate.NewServiceHandler(func(_ restate.Context, name string) (string, error) {
			return "Hello, " + name + "!", nil
		})).
		Handler("echo", restate.NewServiceHandler(func(_ restate.Context, in []byte) ([]byte, error) { return in, nil }, restate.WithBinary)).
		Handler("headers", restate.NewServiceHandler(func(ctx restate.Context, _ void) (map[string]string, error) {
			out := map[string]string{}
			for k, v := range ctx.Request().Headers.Iter() {
				out[k] = v
			}
			return out, nil
		})).
		Handler("id", restate.NewServiceHandler(func(ctx restate.Context, _ void) (string, error) { return ctx.Request().ID, nil })).
		Handler("blob", restate.NewServiceHandler(func(_ restate.Context, n int) (string, error) { return strings.Repeat("x", n), nil })).
		Handler("length", restate.NewServiceHandler(func(_ restate.Context, in string) (int, error) { return len(in), nil })).
		Handler("nothing", restate.NewServiceHandler(func(restate.Context, void) (void, error) { return void{}, nil }))
}

// failing has handlers that fail in every way a handler can.
func (s *set) failing() restate.ServiceDefinition {
	policy := func(last restate.InvocationRetryPolicyOption) restate.HandlerOption {
		return restate.WithInvocationRetryPolicy(restate.WithInitialRetryInterval(20*time.Millisecond), restate.WithMaxRetryAttempts(2), last)
	}
	always := func(_ restate.Context, token string) (string, error) {
		s.mem.Count(token)
		if s.mem.IsOpen(token) {
			return "recovered", nil
		}
		return "", fmt.Errorf("still failing: %s", token)
	}
	return restate.NewService(s.name("Failing"), s.options(fastRetries())...).
		Handler("terminal", restate.NewServiceHandler(func(_ restate.Context, f Failure) (string, error) { return "", terminal(f) })).
		Handler("transient", restate.NewServiceHandler(func(_ restate.Context, f Flaky) (int, error) {
			n := s.mem.Count(f.Token)
			if n <= f.Failures {
				return 0, fmt.Errorf("attempt %d fails", n)
			}
			return n, nil
		})).
		Handler("pausing", restate.NewServiceHandler(always, policy(restate.PauseOnMaxAttempts()))).
		Handler("killing", restate.NewServiceHandler(always, policy(restate.KillOnMaxAttempts()))).
		Handler("retrying", restate.NewServiceHandler(always)).
		Handler("caught", restate.NewServiceHandler(func(ctx restate.Context, f Failure) (*Failure, error) {
			_, err := restate.Service[string](ctx, s.name("Failing"), "terminal").Request(f)
			if err == nil {
				return nil, restate.TerminalErrorf("the call succeeded")
			}
			return caught(err), nil
		}))
}

// counter is an object with numbers and more in its state.
func (s *set) counter() restate.ServiceDefinition {
	get := func(ctx restate.ObjectSharedContext, _ void) (int, error) {
		n, err := restate.Get[int](ctx, "count")
		if err != nil {
			return 0, err
		}
		return n, nil
	}
	add := func(ctx restate.ObjectContext, d int) (Added, error) {
		n, err := restate.Get[int](ctx, "count")
		if err != nil {
			return Added{}, err
		}
		restate.Set(ctx, "count", n+d)
		return Added{Old: n, New: n + d}, nil
	}
	keys := func(ctx restate.ObjectSharedContext, _ void) ([]string, error) {
		k, err := restate.Keys(ctx)
		if err != nil {
			return nil, err
		}
		if k == nil {
			k = []string{}
		}
		return k, nil
	}
	return restate.NewObject(s.name("Counter"), s.options(fastRetries())...).
		Handler("add", restate.NewObjectHandler(add)).
		Handler("get", restate.NewObjectSharedHandler(get)).
		Handler("keys", restate.NewObjectSharedHandler(keys)).
		Handler("put", restate.NewObjectHandler(func(ctx restate.ObjectContext, kv map[string]string) (void, error) {
			for _, k := range sortedKeys(kv) {
				restate.Set(ctx, k, kv[k])
			}
			return void{}, nil
		})).
		Handler("read", restate.NewObjectSharedHandler(func(ctx restate.ObjectSharedContext, key string) (*string, error) {
			v, err := restate.Get[*string](ctx, key)
			if err != nil {
				return nil, err
			}
			return v, nil
		})).
		Handler("clear", restate.NewObjectHandler(func(ctx restate.ObjectContext, key string) (void, error) {
			restate.Clear(ctx, key)
			return void{}, nil
		})).
		Handler("clearAll", restate.NewObjectHandler(func(ctx restate.ObjectContext, _ void) (void, error) {
			restate.ClearAll(ctx)
			return void{}, nil
		})).
		// addFail shows that state written before a terminal failure stays written.
		Handler("addFail", restate.NewObjectHandler(func(ctx restate.ObjectContext, d int) (void, error) {
			if _, err := add(ctx, d); err != nil {
				return void{}, err
			}
			return void{}, terminal(Failure{Code: 418, Message: "after the write"})
		})).
		// addRetry writes, fails once for real, and writes again in the next attempt: the first write must not count twice.
		Handler("addRetry", restate.NewObjectHandler(func(ctx restate.ObjectContext, token string) (int, error) {
			a, err := add(ctx, 1)
			if err != nil {
				return 0, err
			}
			if s.mem.Count(token) == 1 {
				return 0, errors.New("first attempt fails after the write")
			}
			return a.New, nil
		})).
		// mixed writes, clears and reads within one invocation; a and c are left.
		Handler("mixed", restate.NewObjectHandler(func(ctx restate.ObjectContext, _ void) (void, error) {
			restate.ClearAll(ctx)
			restate.Set(ctx, "b", "1")
			restate.Set(ctx, "a", "2")
			restate.Clear(ctx, "b")
			restate.Set(ctx, "c", "3")
			for _, k := range []string{"a", "b", "c"} {
				v, err := restate.Get[*string](ctx, k)
				if err != nil {
					return void{}, err
				}
				if (v != nil) != (k != "b") {
					return void{}, restate.TerminalErrorf("own write of %s is not seen", k)
				}
			}
			return void{}, nil
		}))
}

// sleeper has durable timers.
func (s *set) sleeper() restate.ServiceDefinition {
	return restate.NewService(s.name("Sleeper"), s.options()...).
		Handler("sleep", restate.NewServiceHandler(func(ctx restate.Context, ms int64) (string, error) {
			if err := restate.Sleep(ctx, time.Duration(ms)*time.Millisecond); err != nil {
				return "", err
			}
			return "slept", nil
		})).
		Handler("parallel", restate.NewServiceHandler(func(ctx restate.Context, ms []int64) (int, error) {
			var fs []restate.Future
			for _, m := range ms {
				fs = append(fs, restate.After(ctx, time.Duration(m)*time.Millisecond))
			}
			n := 0
			for f, err := range restate.Wait(ctx, fs...) {
				if err != nil {
					return 0, err
				}
				if err := f.(restate.AfterFuture).Done(); err != nil {
					return 0, err
				}
				n++
			}
			return n, nil
		})).
		// race sleeps for both times and tells which timer was first.
		Handler("race", restate.NewServiceHandler(func(ctx restate.Context, ms []int64) (int, error) {
			var fs []restate.Future
			for _, m := range ms {
				fs = append(fs, restate.After(ctx, time.Duration(m)*time.Millisecond))
			}
			first, err := restate.WaitFirst(ctx, fs...)
			if err != nil {
				return 0, err
			}
			for i, f := range fs {
				if f == first {
					return i, nil
				}
			}
			return -1, nil
		}))
}

// private can only be called by services.
func (s *set) private() restate.ServiceDefinition {
	return restate.NewService(s.name("Private"), s.options(restate.WithIngressPrivate(true))...).
		Handler("hello", restate.NewServiceHandler(func(_ restate.Context, name string) (string, error) { return "private hello to " + name, nil }))
}

// half has one public and one private handler.
func (s *set) half() restate.ServiceDefinition {
	hello := func(_ restate.Context, name string) (string, error) { return "hello " + name, nil }
	return restate.NewService(s.name("Half"), s.options()...).
		Handler("open", restate.NewServiceHandler(hello)).
		Handler("closed", restate.NewServiceHandler(hello, restate.WithIngressPrivate(true)))
}

// brief keeps its results for a second only.
func (s *set) brief() restate.ServiceDefinition {
	return restate.NewService(s.name("Brief"), s.options(restate.WithIdempotencyRetention(time.Second), restate.WithJournalRetention(0))...).
		Handler("echo", restate.NewServiceHandler(func(_ restate.Context, in string) (string, error) { return in, nil }))
}

// probe reads and changes the endpoint's memory.
func (s *set) probe() restate.ServiceDefinition {
	return restate.NewService(s.name("Probe"), s.options()...).
		Handler("count", restate.NewServiceHandler(func(_ restate.Context, token string) (int, error) { return s.mem.Counted(token), nil })).
		Handler("lines", restate.NewServiceHandler(func(_ restate.Context, token string) ([]string, error) { return s.mem.Lines(token), nil })).
		Handler("open", restate.NewServiceHandler(func(_ restate.Context, token string) (void, error) {
			s.mem.Open(token)
			return void{}, nil
		}))
}

func raw(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only plain values get here
	}
	return b
}
