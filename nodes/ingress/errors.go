package ingress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
)

// All texts of errors that callers see are here; clients match on some of them.

// refusal is an answer of the ingress itself, source "ingress".
type refusal struct {
	status  int
	message string
}

func (e *refusal) Error() string { return e.message }

// statusNotReady answers a request for the output of an invocation that has not completed.
const statusNotReady = 470

var (
	errNotFound           = &refusal{http.StatusNotFound, "not found"}
	errInvocationNotFound = &refusal{http.StatusNotFound, "invocation not found"}
	errNotReady           = &refusal{statusNotReady, "the invocation exists but has not completed yet"}
	errMethod             = &refusal{http.StatusMethodNotAllowed, "method not allowed"}
	errOverloaded         = &refusal{http.StatusTooManyRequests, "too many requests, the ingress is overloaded. Retry later."}
	errNotPublic          = &refusal{http.StatusBadRequest, "the invoked service is not public"}
	errTargetPath         = &refusal{http.StatusBadRequest, "bad path, expected either /:service-name/:handler or /:object-name/:object-key/:handler"}
	errAwakeablePath      = &refusal{http.StatusBadRequest, "bad path, expected either /restate/awakeables/:id/resolve or /restate/awakeables/:id/reject"}
	errInvocationPath     = &refusal{http.StatusBadRequest, "bad path, expected either /restate/invocation/:invocation_id/output or /restate/invocation/:invocation_id/attach or /restate/invocation/:invocation_target/:idempotency_key/output or /restate/invocation/:invocation_target/:idempotency_key/attach"}
	errWorkflowPath       = &refusal{http.StatusBadRequest, "bad path, expected either /restate/workflow/:workflow_name/:workflow_key/output or /restate/workflow/:workflow_name/:workflow_key/attach"}
	errAPIPath            = &refusal{http.StatusBadRequest, "bad path, expected /restate/call/:service/:handler, /restate/send/:service/:handler, /restate/scope/:scope/call/:service/:handler, /restate/attach/:invocation_id, /restate/output/:invocation_id, or /restate/lookup"}
	errKeyUTF8            = &refusal{http.StatusBadRequest, "bad path, cannot decode key: it is not UTF-8"}
	errHeaderUTF8         = &refusal{http.StatusBadRequest, "bad idempotency key: it is not UTF-8"}
	errKeyLong            = &refusal{http.StatusBadRequest, fmt.Sprintf("bad path, the key is longer than %d bytes", ident.MaxName)}
	errIdempotencyLong    = &refusal{http.StatusBadRequest, fmt.Sprintf("bad idempotency key: it is longer than %d bytes", ident.MaxName)}
	errIdempotentWorkflow = &refusal{http.StatusBadRequest, "cannot use the idempotency key with workflow handlers. The handler invocation will already be idempotent by the workflow key itself."}
	errDelayOnCall        = &refusal{http.StatusBadRequest, "cannot use the delay query parameter with calls. The delay is supported only with sends"}
	errLimitKeyScope      = &refusal{http.StatusBadRequest, "limit-key requires a scope to be set"}
	errLimitKeyParts      = &refusal{http.StatusBadRequest, "invalid limit-key: too many path components in the given limit-key (max 2)"}
	errScopes             = &refusal{http.StatusBadRequest, "scoped invocations require vqueues to be enabled"}
	errNoOutput           = &refusal{http.StatusBadRequest, "cannot get output for the given invocation. You can get output only for invocations created with an idempotency key, or for workflows."}
	errBodyTooLarge       = &refusal{http.StatusRequestEntityTooLarge, "cannot read body: LengthLimitError"}
	errBodyTimeout        = &refusal{http.StatusRequestTimeout, "cannot read body: the client sent nothing for too long"}
	errDraining           = &refusal{http.StatusServiceUnavailable, "internal routing error: this node is shutting down. The invocation continues; retry to get its result."}
)

func badPath(path string) error {
	return &refusal{http.StatusBadRequest, "bad path: " + path}
}

func badHeader(name string) error {
	return &refusal{http.StatusBadRequest, "bad header " + name + ": its value is not UTF-8"}
}

func badScope(why string) error {
	return &refusal{http.StatusBadRequest, "bad scope value: " + why}
}

func scopeTooLong(n int) error {
	return badScope("value too long: " + strconv.Itoa(n) + " bytes (max " + strconv.Itoa(maxScope) + ")")
}

func badDelay(err error) error {
	return &refusal{http.StatusBadRequest, "bad delay query parameter, must be a ISO8601 duration: " + err.Error()}
}

func badInvocationID(id string, err error) error {
	return &refusal{http.StatusBadRequest, "bad invocation id '" + id + "': " + err.Error()}
}

func badAwakeableID(id string, err error) error {
	return &refusal{http.StatusBadRequest, "bad awakeable id '" + id + "': " + err.Error()}
}

func badLookup(err error) error {
	return &refusal{http.StatusBadRequest, "cannot read body: invalid lookup body: " + err.Error()}
}

func badBody(err error) error {
	return &refusal{http.StatusBadRequest, "cannot read body: " + err.Error()}
}

// refusalOf maps any error to what the caller is told.
func refusalOf(err error) *refusal {
	var (
		r        *refusal
		notFound *schema.NotFoundError
		input    *schema.InputError
	)
	switch {
	case errors.As(err, &r):
		return r
	case errors.As(err, &notFound):
		return &refusal{http.StatusNotFound, notFound.Error()}
	case errors.As(err, &input):
		return &refusal{http.StatusBadRequest, input.Error()}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &refusal{http.StatusServiceUnavailable, "internal routing error: the request was given up: " + err.Error()}
	}
	return &refusal{http.StatusServiceUnavailable, "internal routing error: " + err.Error()}
}

// workflowInvoked is the failure of a second call to the run handler of a workflow.
var workflowInvoked = &invocationpb.Failure{Code: http.StatusConflict, Message: "the workflow method was already invoked"}

// attachNotFound is the failure of attaching to an invocation that does not exist.
var attachNotFound = &invocationpb.Failure{Code: http.StatusNotFound, Message: "not found"}

type errorBody struct {
	Code       uint32            `json:"code"`
	Message    string            `json:"message"`
	Source     string            `json:"source"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	Stacktrace string            `json:"stacktrace,omitempty"`
}

var (
	sourceIngress    = []string{"ingress"}
	sourceInvocation = []string{"invocation"}
	contentJSON      = []string{"application/json"}
	contentText      = []string{"text/plain; charset=utf-8"}
)

// writeRefusal answers with an error of the ingress.
func writeRefusal(w http.ResponseWriter, r *refusal) {
	writeError(w, r.status, sourceIngress, errorBody{Code: uint32(r.status), Message: r.message})
}

// writeFailure answers with the terminal error of an invocation: its code is the status where it can be one.
func writeFailure(w http.ResponseWriter, f *invocationpb.Failure) {
	b := errorBody{Code: f.Code, Message: f.Message}
	if len(f.Metadata) > 0 {
		b.Metadata = make(map[string]string, len(f.Metadata))
		for _, m := range f.Metadata {
			b.Metadata[m.Key] = m.Value
		}
	}
	writeError(w, failureStatus(f), sourceInvocation, b)
}

// failureStatus is the HTTP status of a terminal error. 1xx are interim answers, no final ones.
func failureStatus(f *invocationpb.Failure) int {
	if f.Code < 200 || f.Code > 999 {
		return http.StatusInternalServerError
	}
	return int(f.Code)
}

// text is b as a message: what is not UTF-8 is replaced.
func text(b []byte) string { return strings.ToValidUTF8(string(b), "\uFFFD") }

func writeError(w http.ResponseWriter, status int, source []string, b errorBody) {
	b.Source = source[0]
	h := w.Header()
	h["X-Restate-Error-Source"] = source
	h["Content-Type"] = contentJSON
	w.WriteHeader(status)
	_, _ = w.Write(marshal(b)) // the client is gone: nobody to tell
}

// marshal is the JSON of v without HTML escaping and without the newline.
func marshal(v any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return []byte(`{"code":500,"message":"cannot encode the error","source":"ingress"}`)
	}
	return bytes.TrimRight(buf.Bytes(), "\n")
}

// writeTooLarge answers a request whose announced body exceeds the limit.
func writeTooLarge(w http.ResponseWriter) {
	w.Header()["Content-Type"] = contentText
	w.WriteHeader(http.StatusRequestEntityTooLarge)
	_, _ = w.Write([]byte("length limit exceeded"))
}
