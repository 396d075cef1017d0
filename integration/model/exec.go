package model

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// host is a world that bodies run in. Errors that are no *Failure end the attempt, not the invocation.
type host interface {
	get(key string) (*string, error)
	set(key, value string)
	clear(key string)
	clearAll()
	keys() ([]string, error)

	run(token string, op *Op) future
	timer(d time.Duration) future
	call(t *Target, in *Input, idempotencyKey string) future
	send(t *Target, in *Input, idempotencyKey string, delay time.Duration) sent
	awakeable() (id string, f future)
	complete(awakeable, value string, failed bool)
	signal(name string) future
	promise(name string) future
	peek(name string) (*string, error)
	completePromise(name, value string, failed bool) error
	// first waits for one of several and returns its place.
	first(fs []future) (int, error)
	// crash says that the attempt has to fail, as often as the operation asks for.
	crash(token string, times int) error
	// saw notes what the operation at a place of a body gave.
	saw(token string, outcome json.RawMessage)
}

// future is something that can be waited for.
type future interface {
	await() (json.RawMessage, error)
}

// sent is an invocation that was called.
type sent interface {
	attach() future
	cancel()
	signal(name, value string)
}

// executor runs one body in a host.
type executor struct {
	h          host
	id         string
	awakeables map[string]string
	futures    map[int]future
	calls      map[int]sent
}

// exec runs a body. The error is a *Failure if the invocation failed for good.
func exec(h host, in *Input) (Trace, error) {
	x := &executor{h: h, id: in.Body.ID, awakeables: maps.Clone(in.Awakeables), futures: map[int]future{}, calls: map[int]sent{}}
	if x.awakeables == nil {
		x.awakeables = map[string]string{}
	}
	trace := Trace{}
	err := x.ops(in.Body.Ops, "", &trace)
	return trace, err
}

func (x *executor) ops(ops []Op, prefix string, trace *Trace) error {
	for i := range ops {
		token := fmt.Sprintf("%s.%s%d", x.id, prefix, i)
		out, err := x.op(i, token, &ops[i], trace)
		if err != nil {
			return err
		}
		x.h.saw(token, out)
		*trace = append(*trace, out)
	}
	return nil
}

// thrown is an error that ends the body, as opposed to one that an operation gives.
type thrown struct{ error }

func (t thrown) Unwrap() error { return t.error }

func (x *executor) op(i int, token string, op *Op, trace *Trace) (json.RawMessage, error) {
	out, err := x.do(i, token, op, trace)
	switch e := err.(type) {
	case nil:
		if out == nil {
			out = json.RawMessage("null")
		}
		return out, nil
	case thrown:
		return nil, e.error
	case *Failure:
		return value(map[string]any{"failed": e}), nil
	}
	return nil, err
}

func value(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("outcome cannot be encoded: %v", err)) // only strings, numbers and maps of them come here
	}
	return b
}

// do carries out an operation. A *Failure is its outcome.
func (x *executor) do(i int, token string, op *Op, trace *Trace) (json.RawMessage, error) {
	switch op.Do {
	case opSet, opGet, opClear, opClearAll, opKeys, opAppend, opAdd:
		return x.state(op)
	case opRun:
		return x.h.run(token, op).await()
	case opRunAsync:
		x.futures[i] = x.h.run(token, op)
	case opSleep:
		return x.h.timer(time.Duration(op.Ms) * time.Millisecond).await()
	case opTimer:
		x.futures[i] = x.h.timer(time.Duration(op.Ms) * time.Millisecond)
	case opCall:
		return x.h.call(op.To, x.input(op), op.Key).await()
	case opStart:
		f := x.h.call(op.To, x.input(op), op.Key)
		x.futures[i] = f
		if s, ok := f.(sent); ok {
			x.calls[i] = s
		}
	case opSend, opDelayed:
		x.calls[i] = x.h.send(op.To, x.input(op), op.Key, time.Duration(op.Ms)*time.Millisecond)
	case opAttach:
		return x.calls[op.Of[0]].attach().await()
	case opCancel:
		x.calls[op.Of[0]].cancel()
	case opSendSig:
		x.calls[op.Of[0]].signal(op.Name, op.Value)
	case opAwait:
		return x.futures[op.Of[0]].await()
	case opFirst:
		return x.first(op)
	case opAwakeable:
		x.awakeables[token], x.futures[i] = x.h.awakeable()
	case opResolve, opReject:
		x.h.complete(x.awakeables[op.Name], op.Value, op.Do == opReject)
	case opSignal:
		x.futures[i] = x.h.signal(op.Name)
	case opPromise:
		return x.h.promise(op.Name).await()
	case opPeek:
		v, err := x.h.peek(op.Name)
		return value(v), err
	case opComplete, opRejectProm:
		return nil, x.h.completePromise(op.Name, op.Value, op.Do == opRejectProm)
	case opBlock:
		return x.block(token, op, trace)
	case opCrash:
		if err := x.h.crash(token, op.N); err != nil {
			return nil, thrown{err}
		}
	case opFail:
		return nil, thrown{&Failure{op.Code, op.Value}}
	default:
		return nil, thrown{&Failure{400, "unknown operation " + string(op.Do)}}
	}
	return nil, nil
}

func (x *executor) input(op *Op) *Input { return &Input{Body: op.Body, Awakeables: x.awakeables} }

func (x *executor) state(op *Op) (json.RawMessage, error) {
	switch op.Do {
	case opSet:
		x.h.set(op.Name, op.Value)
	case opClear:
		x.h.clear(op.Name)
	case opClearAll:
		x.h.clearAll()
	case opKeys:
		ks, err := x.h.keys()
		if err != nil {
			return nil, err
		}
		slices.Sort(ks)
		if ks == nil {
			ks = []string{}
		}
		return value(ks), nil
	default:
		v, err := x.h.get(op.Name)
		if err != nil {
			return nil, err
		}
		if op.Do == opGet {
			return value(v), nil
		}
		return nil, x.change(op, v)
	}
	return nil, nil
}

// change sets a value that depends on the old one.
func (x *executor) change(op *Op, old *string) error {
	if op.Do == opAppend {
		next := op.Value
		if old != nil {
			next = *old + " " + op.Value
		}
		x.h.set(op.Name, next)
		return nil
	}
	n := 0
	if old != nil {
		if _, err := fmt.Sscan(*old, &n); err != nil {
			return &Failure{500, fmt.Sprintf("state %q is no number: %v", op.Name, err)}
		}
	}
	x.h.set(op.Name, fmt.Sprint(n+op.N))
	return nil
}

func (x *executor) first(op *Op) (json.RawMessage, error) {
	fs := make([]future, len(op.Of))
	for i, of := range op.Of {
		fs[i] = x.futures[of]
	}
	n, err := x.h.first(fs)
	if err != nil {
		return nil, err
	}
	return value(n), nil
}

// block waits until the invocation is cancelled. With a body it waits for a call of that body, which is cancelled too.
func (x *executor) block(token string, op *Op, trace *Trace) (json.RawMessage, error) {
	var err error
	if op.Body != nil {
		_, err = x.h.call(op.To, x.input(op), "").await()
	} else {
		_, f := x.h.awakeable()
		_, err = f.await()
	}
	f, ok := err.(*Failure)
	if !ok {
		return nil, err
	}
	*trace = append(*trace, value(map[string]any{"blocked": f}))
	if err := x.ops(op.Then, token[len(x.id)+1:]+".", trace); err != nil {
		return nil, thrown{err}
	}
	if op.Rethrow {
		return nil, thrown{f}
	}
	return nil, nil
}
