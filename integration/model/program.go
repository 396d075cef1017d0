// Package model proves the meaning of handlers with random programs.
//
// A Program is what one request does: a tree of bodies, each the work of one invocation, made of operations: state,
// steps, sleeps, calls, one-way and delayed calls, awakeables, signals, promises, attaching, cancelling, failing. The same
// interpreter (exec) runs a body in two worlds: as a handler written with the published Go SDK against a running server,
// and in Reference, which keeps everything in memory, has virtual time and no failures. Check compares the two step by
// step: what every operation of every invocation gave, how each invocation ended, what each object holds at the end,
// how often steps were executed.
//
// Programs are generated so that their outcome does not depend on timing: an object belongs to one body, which alone
// calls it, in order; objects that several bodies share are only added to. So the comparison is for equality, also when
// server and endpoint are killed meanwhile. A program is a function of the seed and its number, and runs again alone.
//
// The comparison is itself tested: a Reference with a fault must be told from one without.
package model

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Program is what one request to the ingress does.
type Program struct {
	Number int    `json:"number"`
	Entry  Target `json:"entry"`
	// OneWay sends the request and attaches to it, DelayMs later if that is not 0.
	OneWay  bool  `json:"oneWay,omitempty"`
	DelayMs int   `json:"delayMs,omitempty"`
	Body    *Body `json:"body"`
}

// Target is a handler. Variant chooses among deployments that differ in how they talk to the server.
type Target struct {
	Variant string `json:"variant"`
	Service string `json:"service"` // Plain, Object or Flow
	Handler string `json:"handler"`
	Key     string `json:"key,omitempty"`
}

// The services that each variant has, and their handlers.
const (
	plain   = "Plain"  // work
	objects = "Object" // work, look (shared), dump (shared)
	flow    = "Flow"   // run, look (shared), dump (shared)

	work = "work"
	look = "look"
	run  = "run"
	dump = "dump"
)

func (t *Target) name() string { return t.Variant + t.Service }

// exclusive says that invocations of the target run one after the other for each key.
func (t *Target) exclusive() bool { return t.Service == objects && t.Handler == work }

// object names the state that the target works on.
func (t *Target) object() string {
	if t.Service == plain {
		return ""
	}
	return t.name() + "/" + t.Key
}

// Body is what one invocation does. ID is unique in a run.
type Body struct {
	ID  string `json:"id"`
	Ops []Op   `json:"ops"`
}

// Op is an operation of a body.
type Op struct {
	Do kind `json:"do"`
	// To and Body are for calls; Key is their idempotency key.
	To   *Target `json:"to,omitempty"`
	Body *Body   `json:"body,omitempty"`
	Key  string  `json:"key,omitempty"`
	// Name is a state key, a promise, a signal, or an awakeable by the id of the operation that made it.
	Name  string `json:"name,omitempty"`
	Value string `json:"value,omitempty"`
	N     int    `json:"n,omitempty"`
	// Ms is a time to wait, in milliseconds.
	Ms   int `json:"ms,omitempty"`
	Code int `json:"code,omitempty"`
	// Of are the positions of earlier operations of this body that this one is about.
	Of []int `json:"of,omitempty"`
	// Then is what a cancelled body still does; Rethrow ends it as cancelled afterwards.
	Then    []Op `json:"then,omitempty"`
	Rethrow bool `json:"rethrow,omitempty"`
}

type kind string

const (
	opSet      kind = "set"
	opGet      kind = "get"
	opClear    kind = "clear"
	opClearAll kind = "clearAll"
	opKeys     kind = "keys"
	opAppend   kind = "append" // to a list in the state
	opAdd      kind = "add"    // N to a number in the state; gives nothing, so it may race

	opRun      kind = "run"      // a step that fails N times, then gives Value, or fails for good with Code
	opRunAsync kind = "runAsync" // the same, awaited later
	opSleep    kind = "sleep"
	opTimer    kind = "timer" // a sleep, awaited later

	opCall    kind = "call"    // and wait
	opStart   kind = "start"   // a call, awaited later
	opSend    kind = "send"    // one-way
	opDelayed kind = "delayed" // one-way, Ms later
	opAttach  kind = "attach"  // to a one-way call
	opCancel  kind = "cancel"  // a call
	opAwait   kind = "await"   // something that was started
	opFirst   kind = "first"   // which of several things, of which one only can happen now

	opAwakeable kind = "awakeable" // awaited later
	opResolve   kind = "resolve"   // an awakeable
	opReject    kind = "reject"
	opSignal    kind = "signal"     // awaited later
	opSendSig   kind = "sendSignal" // to a one-way call

	opPromise    kind = "promise" // wait for it
	opPeek       kind = "peek"
	opComplete   kind = "complete" // a promise
	opRejectProm kind = "rejectPromise"

	opBlock kind = "block" // until cancelled
	opCrash kind = "crash" // fail the attempt, N times
	opFail  kind = "fail"  // for good, with Code and Value
)

// Failure is how a call, a step or an invocation failed for good.
type Failure struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// Error implements error.
func (f *Failure) Error() string { return fmt.Sprintf("%d %s", f.Code, f.Message) }

var cancelled = Failure{409, "cancelled"}

// failureOf brings what a server or an SDK says of a failure into one form: how a cancellation is spelled is not specified.
func failureOf(code int, message string) *Failure {
	if code == 409 && (strings.EqualFold(message, "cancelled") || strings.EqualFold(message, "canceled")) {
		f := cancelled
		return &f
	}
	return &Failure{code, message}
}

// Trace is what the operations of a body gave, in their order: the output of an invocation.
type Trace []json.RawMessage

// Input is what an invocation is given: its body, and the awakeables that those above it made, by operation.
type Input struct {
	Body       *Body             `json:"body"`
	Awakeables map[string]string `json:"awakeables,omitempty"`
}
