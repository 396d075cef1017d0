// Package sdks tests a whole server with services written with the SDKs that the end-to-end suite does not have:
// Python, Rust and Java. Each directory holds one program with the same services, so one driver tests them all. The SDKs are
// unmodified, pinned, and fetched by the language's own tools into the user's cache directory; that takes minutes, so the
// package does nothing unless it is told which languages to test:
//
//	PERDURE_SDKS=all go test ./integration/e2e/sdks           those whose tool chain this machine has; make e2e-sdks
//	PERDURE_SDKS=python,rust go test ./integration/e2e/sdks   these, and it is a failure if one is not there
//
// PERDURE_E2E_SERVER chooses another server, as in the end-to-end suite.
//
// # The programs
//
// A program listens on 127.0.0.1:$PORT. MODE=rr announces request/response instead of bidirectional streams; IDENTITY_KEY is
// the public key of the server that may call. Failed attempts are retried after 20 ms. Tokens count in the program's memory,
// which is not durable on purpose: how often something was executed is visible in the answers.
//
// Service Svc:
//
//	greet, nothing, echo, double   answer at once; nothing has neither input nor output
//	fail {code, message}           a terminal failure
//	retry TOKEN                    fails twice, then its number of attempts
//	run TOKEN                      a step with a retry policy of its own that fails twice, then its number of attempts
//	exhaust TOKEN                  a step that fails always and may be tried three times: "CODE after ATTEMPTS"
//	runTerminal TOKEN              a step that fails for good: "CODE MESSAGE after ATTEMPTS"
//	steps N                        the sum of the results of N steps
//	sleep MS                       "slept"
//	race MS                        the first of an awakeable, a sleep of MS and one of an hour: "sleep"
//	gather N                       the sum of N calls of double that are made at once
//	order [MS…]                    these sleeps in the order in which they end
//	random TOKEN                   whether two attempts drew the same
//	awake BOX                      puts the id of an awakeable into the object, awaits it: its value, or "CODE MESSAGE"
//	resolve, reject {id, value}    an awakeable
//	calls KEY                      calls add 1, sends add 10, calls add 100: the two answers
//	later {key, ms}                sends add 1 with a delay: the id of the invocation
//	block KEY                      waits for ever; undone with add 7 when cancelled
//	cancelOther KEY                sends block, cancels it, attaches to it: the code of its failure
//	attach ID                      the output of another invocation
//	once TOKEN                     counts
//	idempotent TOKEN               calls once twice with one idempotency key: both answers
//	header, forward                the header x-a; calls header with x-a: b
//	generic KEY                    calls add 5 by names and bytes: what is new
//	workflow KEY                   calls run and resolve of Flow: the output of run
//	waitSignal BOX                 as awake, with the signal "go" and its own id
//	sendSignal {id, value}         the signal "go"; value "reject" rejects it with "no"
//	idempotencyKey                 that of its own invocation
//	long {key, n}                  n times: a step, a call of add 1, a sleep of 5 ms; the last answer
//
// Virtual object Obj: add and slowAdd N (with a sleep and a step between reading and writing), put {name, value}, clear NAME,
// clearAll, within (what a handler sees of its own changes); shared: get, read NAME, keys.
//
// Workflow Flow: run TEXT awaits the promise "go": "TEXT:VALUE"; shared: resolve VALUE, reject REASON, peek, status.
package sdks
