package services

import "encoding/json"

// Failure describes a terminal error: what Failing/terminal shall fail with, or what a handler caught.
type Failure struct {
	Code     int               `json:"code"`
	Message  string            `json:"message"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Flaky asks for a number of failures before success. The count of attempts is kept under Token.
type Flaky struct {
	Token    string `json:"token"`
	Failures int    `json:"failures"`
}

// Added is the answer of Counter/add.
type Added struct {
	Old int `json:"old"`
	New int `json:"new"`
}

// Executed is the answer of Runner handlers: a value and how often the step that made it ran.
type Executed struct {
	Value      string `json:"value"`
	Executions int    `json:"executions"`
}

// Target is what Caller handlers shall call. Key is for objects and workflows, DelayMs for sends.
type Target struct {
	Service        string            `json:"service"`
	Key            string            `json:"key,omitempty"`
	Handler        string            `json:"handler"`
	Input          json.RawMessage   `json:"input,omitempty"`
	IdempotencyKey string            `json:"idempotencyKey,omitempty"`
	Headers        map[string]string `json:"headers,omitempty"`
	DelayMs        int64             `json:"delayMs,omitempty"`
}

// Outcome is what a call came to: an output or a failure.
type Outcome struct {
	Output  json.RawMessage `json:"output,omitempty"`
	Failure *Failure        `json:"failure,omitempty"`
}

// Completion resolves or rejects an awakeable or a signal.
type Completion struct {
	ID     string `json:"id"`
	Name   string `json:"name,omitempty"`
	Value  string `json:"value,omitempty"`
	Reason string `json:"reason,omitempty"`
}
