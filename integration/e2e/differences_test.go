package e2e

import "testing"

// differences are the places where servers differ: where Perdure deliberately does better than another one, and what it
// does not have. A case calls differs with its name; the differing behaviour is then asserted where that is safe, and
// left alone where the case would harm the server for the tests that follow.
var differences = map[string]map[string]string{
	"perdure": {
		"query": "there is no SQL introspection yet; it is refused with a clear error",
	},
	"restate": {
		"lookup-bad-body":    "a malformed lookup body is answered 500 with an internal backtrace; it is the client's mistake, so 400",
		"bare-end":           "an End as the very first message ends the whole server process; it must be a protocol violation of that attempt",
		"end-without-output": "an End after commands but without an Output leaves the invocation in flight for ever; it must be a protocol violation",
		"setstate-no-value":  "a SetState without value stops the partition for good; it must be a protocol violation of that attempt",
		"drained-delete":     "a drained deployment can only be removed by force; it needs none, because nothing needs the deployment",
		"content-type-case":  "media types are told apart by their case; they are the same, says RFC 9110",
		"header-text":        "a header with anything but ASCII is refused; UTF-8 is text that handlers can read",
		"forged-path":        "a client's own x-restate-ingress-path takes the place of the real one; handlers must be able to believe it",
		"hop-by-hop":         "headers of the connection, such as te and keep-alive, are forwarded to handlers, whom they do not concern",
		"method-last":        "what a path names is looked up before the method is; a method that is never right needs no look-up",
		"options":            "OPTIONS is refused at the admin API; it tells the methods of the path",
		"scheme":             "a deployment with an unknown scheme fails to be called, 500; it is the client's mistake, so 400",
		"bad-address":        "a bad address or header is answered with a text about the type of the request; it says which field is wrong",
		"scopes":             "scopes work in some places without the feature that they belong to; here they are refused everywhere",
		"ui":                 "there is a web interface; here is none yet",
		"v7-key":             "handlers are told their idempotency key only together with scopes; here always, in version 7",
		"forgotten-promise":  "a handler that waits for a promise when its workflow is forgotten waits for ever; it is told, with 410",
		"custom-message":     "a message type of the range for custom messages ends the attempt's task with a panic; it must be a protocol violation",
	},
}

// differs reports whether the server under test is known to differ in the named case.
func differs(t testing.TB, name string) bool {
	t.Helper()
	reason, ok := differences[target.kind][name]
	if ok {
		t.Logf("%s differs: %s", target.kind, reason)
	}
	return ok
}
